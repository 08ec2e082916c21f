"""Trains one population from wherever it stands to its results on disk.

1. restore the newest intact checkpoint, or initialise;
2. train to the next reading, a multiple of `eval.every`; read; perhaps write a checkpoint;
3. at the end: train_eval/*, nll, pictures; one folder a run, `result.json` last.
"""

import functools
import operator
import pathlib
import re
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.plan import PopulationPlan
from experiments.programs import Programs, iw_block
from experiments.progress import Progress
from experiments.workdir import Workdir
from vae import checkpoint, data, divergence, gallery, layers, train, writers
from vae.data import Examples
from vae.evaluate import SPLITS
from vae.gradients import probe

# A dispatch lasts about this long, so that progress is seen and Ctrl-C is heard. Its length changes
# no number: a reading is a running mean over whatever dispatches it took.
DISPATCH_SECONDS = 0.5


class Stopped(Exception):
    """The user asked to stop; the population's state is saved."""


class DeviceData:
    """The arrays of a dataset on the device, each moved there when first asked for."""

    def __init__(self, dataset: data.Dataset) -> None:
        self._dataset = dataset
        self._examples: dict[Any, Examples] = {}

    def training(self) -> Examples:
        return self._get("training", lambda: (self._dataset.train, self._dataset.transform))

    def evaluation(self, split: str, limit: int) -> Examples:
        return self._get((split, limit), lambda: self._dataset.evaluation(split, limit))

    def _get(self, key: Any, make: Callable[[], tuple[np.ndarray, data.Transform]]) -> Examples:
        if key not in self._examples:
            raw, transform = make()
            self._examples[key] = Examples(jnp.asarray(raw), transform)
        return self._examples[key]


class Trainer:
    """One population on its way; asks `stop` between dispatches, tells `progress` of steps."""

    def __init__(
        self,
        plan: PopulationPlan,
        programs: Programs,
        examples: DeviceData,
        workdir: Workdir,
        tensorboard: writers.TensorBoard,
        *,
        stop: Callable[[], bool],
        progress: Progress,
        checkpoint_seconds: float,
    ) -> None:
        self._plan = plan
        self._programs = programs
        self._examples = examples
        self._workdir = workdir
        self._tensorboard = tensorboard
        self._stop = stop
        self._progress = progress.update
        self._note = progress.note
        self._checkpoint_seconds = checkpoint_seconds
        self._folder = workdir.checkpoints(plan.id)
        self._records: list[list[dict[str, Any]]] = [[] for _ in plan.runs]
        self._looked: list[list[dict[str, Any]]] = [[] for _ in plan.runs]
        self._seconds = 0.0
        self._saved_step = -1
        self._steps_per_dispatch = 1
        self.first_step: float | None = None  # when it was done, by time.monotonic

    def run(self) -> None:
        """Trains and writes results.

        Raises:
          Stopped: `stop` said so; what was done is saved.
          OSError: a file could not be written; checkpoints on disk stand.
        """
        started = time.monotonic()
        population = self._begin()
        last_saved = time.monotonic()
        step = int(population.step)
        self._probe(population)
        self._progress(step, self._score())
        while step < self._plan.num_steps:
            reading = min(
                (step // self._plan.evaluation.every + 1) * self._plan.evaluation.every,
                self._plan.num_steps,
            )
            for target in self._looks(step, reading):
                population = self._advance(population, target, started)
                self._probe(population)
            population = self._advance(population, reading - 1, started)
            population = self._read(population)
            self._probe(population)
            self.first_step = self.first_step or time.monotonic()
            step = reading
            self._progress(step, self._score())
            overdue = time.monotonic() - last_saved >= self._checkpoint_seconds
            stopping = self._stop()
            if overdue or stopping or step == self._plan.num_steps:
                self._save(population, started)
                last_saved = time.monotonic()
            if stopping:
                raise Stopped
        self._finish(population, started)

    def _begin(self) -> train.Population:
        """1. The newest intact checkpoint, with its readings, or the first state."""
        plan = self._plan
        start = plan.start()
        shapes = jax.eval_shape(functools.partial(train.init, plan.spec), *start)
        like = (shapes, jax.ShapeDtypeStruct((), np.float64))
        restored = checkpoint.restore(self._folder, like)
        if restored is None:
            return self._programs.get("init", plan)(*start)
        step, (population, seconds) = restored
        self._saved_step = step
        self._seconds = float(seconds)
        for name, kept in self._files():
            for records, run in zip(kept, plan.runs, strict=True):
                file = self._workdir.run(run.run_id) / name
                records += [r for r in writers.read_jsonl(file) if r["step"] <= step]
        return jax.tree.map(jnp.asarray, population)

    def _save(self, population: train.Population, started: float) -> None:
        """The readings first: a checkpoint never knows of steps whose readings are not on disk."""
        for i, run in enumerate(self._plan.runs):
            self._write_records(i, self._workdir.run(run.run_id))
        step = int(population.step)
        if step != self._saved_step:
            seconds = np.float64(self._seconds + time.monotonic() - started)
            checkpoint.save(self._folder, step, (population, seconds))
            self._saved_step = step

    def _files(self) -> list[tuple[str, list[list[dict[str, Any]]]]]:
        """The files of a run that grow in training, and their records of each run."""
        looked = [("probe.jsonl", self._looked)] if self._plan.probe.instruments else []
        return [("metrics.jsonl", self._records), *looked]

    def _write_records(self, i: int, folder: pathlib.Path) -> None:
        for name, kept in self._files():
            writers.write_jsonl(folder / name, kept[i])

    def _advance(
        self, population: train.Population, target: int, started: float
    ) -> train.Population:
        """Trains to step `target`, in dispatches that adapt to their measured length."""
        chunk = self._programs.get("chunk", self._plan)
        examples = self._examples.training()
        step = int(population.step)
        while step < target:
            if self._stop():
                self._save(population, started)
                raise Stopped
            steps = min(self._steps_per_dispatch, target - step)
            before = time.monotonic()
            population = jax.block_until_ready(chunk(population, examples, jnp.int32(steps)))
            seconds = max(time.monotonic() - before, 1e-4)
            self.first_step = self.first_step or time.monotonic()
            step += steps
            wanted = int(steps * DISPATCH_SECONDS / seconds)
            self._steps_per_dispatch = max(1, min(wanted, 8 * self._steps_per_dispatch))
            self._progress(step, self._score())
        return population

    def _read(self, population: train.Population) -> train.Population:
        """Makes one more step, measures it, evaluates, and starts the next interval."""
        plan = self._plan
        before = jax.tree.map(jnp.copy, population.states.params)
        chunk = self._programs.get("chunk", plan)
        population = chunk(population, self._examples.training(), jnp.int32(1))
        changes = self._programs.get("changes", plan)(before, population.states.params)
        test = self._evaluate("test", population)
        readings = (population.interval, population.states.diverged, changes, test)
        interval, diverged, changes, test = jax.device_get(readings)
        names = layers.layer_names(population.states.params)
        for i, records in enumerate(self._records):
            if diverged[i]:
                continue  # its readings end where it diverged
            record: dict[str, Any] = {"step": int(population.step)}
            record |= {f"train/{name}": float(v[i]) for name, v in interval.means.items()}
            record |= {f"test/{n}": test[n][i].item() for n in _scalars(test)}
            norms = {"grad": interval.grad_norms, **changes}
            for kind, values in norms.items():
                pairs = zip(names, values[i], strict=True)
                record |= {f"{kind}/{name}/norm": float(v) for name, v in pairs}
            records.append(record)
            self._tensorboard.write(plan.runs[i].run_id, record)
        return train.reset_interval(population)

    def _looks(self, step: int, reading: int) -> list[int]:
        """The steps before a reading at which instruments look."""
        probes = self._plan.probe
        if not probes.instruments:
            return []
        first = (step // probes.every + 1) * probes.every
        return list(range(first, reading, probes.every))

    def _probe(self, population: train.Population) -> None:
        """Looks at the population with the instruments, where that is due and not yet done."""
        plan, step = self._plan, int(population.step)
        if not plan.probe.instruments or step % plan.probe.every and step != plan.num_steps:
            return
        if any(records and records[-1]["step"] == step for records in self._looked):
            return
        program = self._programs.get("probe", plan)
        seen = program(population.states, self._examples.training())
        seen, diverged = jax.device_get((seen, population.states.diverged))
        for i, records in enumerate(self._looked):
            if diverged[i]:
                continue
            found = probe.record(
                population.states.params,
                jax.tree.map(operator.itemgetter(i), seen),
                plan.probe.layers,
            )
            records.append({"step": step} | found)
            self._tensorboard.write(plan.runs[i].run_id, records[-1])

    def _evaluate(self, split: str, population: train.Population) -> dict[str, jax.Array]:
        program = self._programs.get(f"evaluate_{split}", self._plan)
        return program(population, self._evaluation(split), jnp.int32(SPLITS[split]))

    def _evaluation(self, split: str) -> Examples:
        plan = self._plan
        limit = plan.evaluation.train_limit if split == "train" else plan.dataset.num_test
        return self._examples.evaluation(split, limit)

    def _score(self) -> tuple[str, float] | None:
        """Mean test elbo over the runs that still train, for the progress bar.

        Of runs that have none, autoencoders, the mean test distortion.
        """
        last = [records[-1] for records in self._records if records]
        newest = max((record["step"] for record in last), default=0)
        for name in ("elbo", "distortion"):
            values = [record[f"test/{name}"] for record in last if record["step"] == newest]
            finite = [value for value in values if value is not None and np.isfinite(value)]
            if finite:
                return f"test {name}", float(np.mean(finite))
        return None

    def _finish(self, population: train.Population, started: float) -> None:
        """3. Final evaluations, then the folder of each run."""
        plan = self._plan
        test = self._evaluate("test", population)
        on_train = self._evaluate("train", population)
        nll = self._nll(population) if plan.evaluation.iw_samples else None
        shown = min(plan.dataset.num_test, gallery.NUM_LATENTS)
        pictures = self._programs.get("gallery", plan)(
            population, self._examples.evaluation("test", shown), test["kl_per_dim"]
        )
        values = jax.device_get((population.states, test, on_train, pictures))
        states, test, on_train, pictures = values
        wall_s = (self._seconds + time.monotonic() - started) / len(plan.runs)

        def write(i: int) -> None:
            state, kl = jax.tree.map(lambda a: a[i], (states, test["kl_per_dim"]))
            folder = self._workdir.run(plan.runs[i].run_id)
            writers.write_json(folder / "config.json", plan.runs[i].config)
            self._write_records(i, folder)
            pictures_of_run = {name: array[i] for name, array in pictures.items()}
            write_gallery(folder, plan.dataset, pictures_of_run, kl)
            checkpoint.save_tree(
                folder / "params", {"params": state.eval_params, "stats": state.stats}
            )
            names = _scalars(test)
            scalars = {f"test/{name}": test[name][i].item() for name in names}
            if nll is not None:
                scalars |= {"test/nll": nll[i].item()}
                scalars |= {"test/nll_samples": plan.evaluation.iw_samples}
            scalars |= {f"train_eval/{name}": on_train[name][i].item() for name in names}
            scalars["gap/elbo"] = scalars["train_eval/elbo"] - scalars["test/elbo"]
            row = self._result(i, state, scalars) | {"wall_s": round(wall_s, 3)}
            writers.write_json(folder / "result.json", row)

        # Side by side, because most of it is waiting for the disk.
        with ThreadPoolExecutor(max_workers=8) as pool:
            list(pool.map(write, range(len(plan.runs))))

    def _nll(self, population: train.Population) -> np.ndarray:
        """−(mean bound) of each run [R], some examples at a time: it can take minutes.

        Raises:
          Stopped: the final checkpoint is on disk already.
        """
        program = self._programs.get("iw_bounds", self._plan)
        examples = self._evaluation("test")
        count = self._plan.dataset.num_test
        block = iw_block(self._plan)
        bounds = []
        for start in range(0, count, block):
            if self._stop():
                raise Stopped
            self._note(f"nll of {self._plan.evaluation.iw_samples} samples, {start}/{count}")
            # The last block is filled up by repeating the last example.
            index = jnp.minimum(jnp.arange(start, start + block), count - 1)
            part = program(population, examples, jnp.int32(SPLITS["test"]), index)
            bounds.append(np.asarray(part)[:, : count - start])
        return -np.concatenate(bounds, axis=1).astype(np.float64).mean(axis=1)

    def _result(self, i: int, state: train.TrainState, scalars: dict[str, float]) -> dict[str, Any]:
        """The row of run i in results.csv; a diverged run has its cause in place of numbers."""
        run = self._plan.runs[i]
        row: dict[str, Any] = {"run_id": run.run_id, "status": "ok", **run.overrides}
        row |= {"seed": run.flat["seed"], "steps": self._plan.num_steps}
        row["data/fingerprint"] = self._plan.dataset.protocol["fingerprint"][:16]
        row |= {"steps_clipped": int(state.clipped)} if run.flat["optimizer.clip_norm"] else {}
        row |= {"steps_skipped": int(state.skipped)} if self._plan.spec.optimizer.skip else {}
        if not state.diverged:
            return row | scalars
        cause = divergence.diagnose(self._plan.spec, self._examples.training(), state)
        row |= {"status": "diverged", "steps": int(state.diverged_step)}
        return row | {f"diverged/{name}": value for name, value in cause._asdict().items()}


_SCALARS = ("elbo", "rate", "distortion", "active_units", "bpd")


def _scalars(test: Mapping[str, Any]) -> list[str]:
    """The numbers of an evaluation: `_SCALARS`, then those of each stochastic layer."""
    of_layers = [name for name in test if re.search(r"_z\d+$", name)]
    return [*(name for name in _SCALARS if name in test), *of_layers]


def write_gallery(
    folder: pathlib.Path,
    dataset: data.Dataset,
    pictures: dict[str, np.ndarray],
    kl_per_dim: np.ndarray,
) -> None:
    """Writes gallery.npz: images as bytes 0..255 of what one would display.

    The values along a traversal are `traversal_codes` where the latents are discrete, else
    `traversal_values`.
    """
    arrays: dict[str, np.ndarray] = {"kl_per_dim": kl_per_dim}
    images = ("originals", "reconstructions", "samples", "traversals")
    low, high = dataset.value_range()
    arrays |= {name: _display(pictures[name], low, high) for name in images}
    arrays |= {name: array for name, array in pictures.items() if name not in images}
    if "traversal_codes" not in pictures:
        arrays["traversal_values"] = np.array(gallery.TRAVERSAL, np.float32)
    if dataset.test_labels is not None and "latents" in pictures:
        arrays["labels"] = dataset.test_labels[: len(pictures["latents"])].astype(np.int32)
    writers.write_npz(folder / "gallery.npz", arrays)


def _display(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Model units to bytes: the range of the data becomes 0..255, and what exceeds it is cut."""
    unit = np.nan_to_num((x - low) / max(high - low, 1e-12))
    return np.round(255 * np.clip(unit, 0, 1)).astype(np.uint8)


def pending(plans: Iterable[PopulationPlan], workdir: Workdir) -> list[PopulationPlan]:
    """The populations of which some run has no result yet."""
    return [p for p in plans if any(workdir.result(run.run_id) is None for run in p.runs)]
