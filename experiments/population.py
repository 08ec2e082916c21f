"""Trains one population from wherever it stands to its results on disk.

1. restore the newest intact checkpoint, or initialise;
2. train to the next reading, a multiple of `eval.every`; read; perhaps write a checkpoint;
3. at the end: train_eval/*, nll, pictures; one folder a run, `result.json` last.
"""

import contextlib
import functools
import operator
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from experiments import distributed
from experiments.outcome import Outcome, scalars, write_run
from experiments.plan import PopulationPlan
from experiments.programs import (
    Program,
    Programs,
    first_population,
    iw_block,
    population_shapes,
)
from experiments.progress import Progress
from experiments.workdir import Workdir
from vae import checkpoint, data, divergence, gallery, layers, mesh, packed, train, writers
from vae.data import Examples, Window
from vae.evaluate import SPLITS
from vae.gradients import probe

# A dispatch lasts about this long, so that progress is seen and Ctrl-C is heard. Its length changes
# no number: a reading is a running mean over whatever dispatches it took.
DISPATCH_SECONDS = 0.5


class Stopped(Exception):
    """The user asked to stop; the population's state is saved."""


class DeviceData:
    """The arrays of a dataset on each device of a mesh, moved there when first asked for.

    Args:
      on: None: the default device.
    """

    def __init__(self, dataset: data.Dataset, on: Mesh | None = None) -> None:
        self._dataset = dataset
        self._sharding = mesh.everywhere(on)
        self._examples: dict[Any, Examples] = {}

    def training(self) -> Examples:
        return self._get("training", lambda: (self._dataset.train, self._dataset.transform))

    def local(self) -> Examples:
        """The training examples on this process's default device alone."""
        if self._sharding is None:
            return self.training()
        return Examples(jnp.asarray(self._dataset.train), self._dataset.transform)

    def evaluation(self, split: str, limit: int) -> Examples:
        return self._get((split, limit), lambda: self._dataset.evaluation(split, limit))

    def _get(self, key: Any, make: Callable[[], tuple[np.ndarray, data.Transform]]) -> Examples:
        if key not in self._examples:
            raw, transform = make()
            self._examples[key] = Examples(mesh.put(raw, self._sharding), transform)
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
        keep_checkpoints: int,
    ) -> None:
        self._plan = plan
        self._programs = programs
        self._examples = examples
        self._workdir = workdir
        self._tensorboard = tensorboard
        self._stop = stop
        self._progress = progress.update
        self._leads = distributed.writes()
        self._note = progress.note
        self._checkpoint_seconds = checkpoint_seconds
        self._stream = plan.stream()
        self._folder = workdir.checkpoints(plan.id)
        # Each run's own, of which the population's model may be a larger one.
        self._own = [plan.own(run) for run in plan.runs]
        self._writer = checkpoint.Writer(self._folder, keep_checkpoints)
        self._records: list[list[dict[str, Any]]] = [[] for _ in plan.runs]
        self._looked: list[list[dict[str, Any]]] = [[] for _ in plan.runs]
        self._seconds = 0.0  # that earlier processes took
        self._started = 0.0
        self._restored_step = -1
        self._steps_per_dispatch = 1
        self.first_step: float | None = None  # when it was done, by time.monotonic

    def run(self) -> None:
        """Trains and writes results.

        Raises:
          Stopped: `stop` said so; what was done is saved.
          OSError: a file that is needed could not be written; checkpoints on disk stand.
        """
        self._started = time.monotonic()
        try:
            self._run()
        except Exception as error:
            # Of several processes, others may be gone: closing would wait for them.
            if isinstance(error, Stopped) or not distributed.several():
                self._close()
            raise
        self._close()

    def _close(self) -> None:
        # Where the last one failed there is a result in its place, or another error.
        with _tolerated("the checkpoint"):
            self._writer.close()

    def _run(self) -> None:
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
                population = self._advance(population, target)
                self._probe(population)
            population = self._advance(population, reading - 1)
            population = self._read(population)
            self._probe(population)
            self.first_step = self.first_step or time.monotonic()
            step = reading
            self._progress(step, self._score())
            self._stop_here(population)
            overdue = distributed.first(time.monotonic() - last_saved >= self._checkpoint_seconds)
            if overdue or step == self._plan.num_steps:
                self._save(population)
                last_saved = time.monotonic()
        self._finish(population)

    def _begin(self) -> train.Population:
        """1. The newest intact checkpoint, with its readings, or the first state."""
        plan = self._plan
        like = (population_shapes(plan), jax.ShapeDtypeStruct((), np.float64))
        restored = checkpoint.restore(self._folder, like, rows=len(plan.runs))
        if restored is None:
            return first_population(plan, self._program("init", None))
        step, (population, seconds) = restored
        self._restored_step = step
        self._seconds = float(seconds)
        for name, kept in self._files():
            for records, run in zip(kept, plan.runs, strict=True):
                file = self._workdir.run(run.run_id) / name
                records += [r for r in writers.read_jsonl(file) if r["step"] <= step]
        return population if plan.mesh else mesh.put(population, None)

    def _scalar(self, value: int) -> jax.Array:
        return mesh.put(np.int32(value), mesh.everywhere(self._plan.mesh))

    def _save(self, population: train.Population, *, required: bool = False) -> None:
        """Starts a checkpoint, which is written as training goes on.

        The readings first: a checkpoint never knows of steps whose readings are not on disk. A disk
        that is full is no reason to end the training: the next one may find room. Where it is
        `required`, waits until all is on disk.

        Raises:
          OSError: it is required, and failed.
        """
        with _tolerated("the checkpoint"):
            self._writer.wait()
        step = int(population.step)
        with contextlib.nullcontext() if required else _tolerated("the readings or a checkpoint"):
            for i, run in enumerate(self._plan.runs if self._leads else ()):
                self._write_records(i, self._workdir.run(run.run_id))
            if step not in (self._restored_step, self._writer.newest):
                seconds = np.float64(self._seconds + time.monotonic() - self._started)
                self._writer.save(step, (population, seconds), self._merit(step))
            if required:
                self._writer.wait()

    def _stop_here(self, population: train.Population | None) -> None:
        """Where the user asked to stop, saves the population, if there is one yet, and stops."""
        if self._stop():
            if population is not None and int(population.step):  # else there is nothing to keep
                self._save(population, required=True)
            raise Stopped

    def _program(self, name: str, population: train.Population | None) -> Program:
        """The compiled program; until it is, may stop and save the population.

        Not one of several processes: they compile for different times, and stop together.
        """
        while not distributed.several() and not self._programs.ready(name, self._plan):
            self._stop_here(population)
        return self._programs.get(name, self._plan)

    def _files(self) -> list[tuple[str, list[list[dict[str, Any]]]]]:
        """The files of a run that grow in training, and their records of each run."""
        looked = [("probe.jsonl", self._looked)] if self._plan.probe.instruments else []
        return [("metrics.jsonl", self._records), *looked]

    def _write_records(self, i: int, folder: pathlib.Path) -> None:
        for name, kept in self._files():
            writers.write_jsonl(folder / name, kept[i])

    def _advance(self, population: train.Population, target: int) -> train.Population:
        """Trains to step `target`, in dispatches that adapt to their measured length."""
        chunk = self._program("chunk", population)
        step = int(population.step)
        while step < target:
            self._stop_here(population)
            examples, there = self._training(step)
            steps = min(self._steps_per_dispatch, target - step, there)
            before = time.monotonic()
            population = jax.block_until_ready(chunk(population, examples, self._scalar(steps)))
            seconds = max(float(distributed.first(time.monotonic() - before)), 1e-4)
            if self.first_step is None:
                self.first_step = time.monotonic()
                self._writer.prepare()
            step += steps
            wanted = int(steps * DISPATCH_SECONDS / seconds)
            self._steps_per_dispatch = max(1, min(wanted, 8 * self._steps_per_dispatch))
            self._progress(step, self._score())
        return population

    def _training(self, step: int) -> tuple[Examples | Window, int]:
        """What the program of steps reads, and for how many steps from this one on."""
        if self._stream is None:
            return self._examples.training(), self._plan.num_steps
        return self._stream.at(step)

    def _read(self, population: train.Population) -> train.Population:
        """Makes one more step, measures it, evaluates, and starts the next interval."""
        plan = self._plan
        # All three before the step: a population is saved before its reading or after it.
        names = ("chunk", "changes", "evaluate_test")
        chunk, changes_of, _ = (self._program(name, population) for name in names)
        before = jax.tree.map(jnp.copy, population.states.params)
        examples, _ = self._training(int(population.step))
        population = chunk(population, examples, self._scalar(1))
        changes = changes_of(before, population.states.params)
        del before  # or an evaluation would have it beside its own
        test = self._evaluate("test", population)
        readings = (population.interval, population.states.diverged, changes, test)
        interval, diverged, changes, test = mesh.fetch(readings)
        names = layers.layer_names(population.states.params)
        for i, records in enumerate(self._records):
            if diverged[i]:
                continue  # its readings end where it diverged
            record: dict[str, Any] = {"step": int(population.step)}
            record |= {f"train/{name}": float(v[i]) for name, v in interval.means.items()}
            record |= {f"test/{n}": test[n][i].item() for n in scalars(test)}
            norms = {"grad": interval.grad_norms, **changes}
            for kind, values in norms.items():
                pairs = zip(names, values[i], strict=True)
                own = self._layers(i, names)
                record |= {f"{kind}/{name}/norm": float(v) for name, v in pairs if name in own}
            records.append(record)
            if self._leads:
                self._tensorboard.write(plan.runs[i].run_id, record)
        return train.reset_interval(population)

    def _layers(self, i: int, names: list[str]) -> list[str]:
        """Those of the population's layers that run i has."""
        if not self._plan.spec.model.packed:
            return names
        return layers.layer_names(packed.shapes(self._own[i].model))

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
        program = self._program("probe", population)
        seen = program(population.states, self._examples.training())
        seen, diverged = mesh.fetch((seen, population.states.diverged))
        for i, records in enumerate(self._looked):
            if diverged[i]:
                continue
            found = probe.record(
                population.states.params,
                jax.tree.map(operator.itemgetter(i), seen),
                plan.probe.layers,
            )
            records.append({"step": step} | found)
            if self._leads:
                self._tensorboard.write(plan.runs[i].run_id, records[-1])

    def _evaluate(self, split: str, population: train.Population) -> dict[str, jax.Array]:
        program = self._program(f"evaluate_{split}", population)
        return program(population, self._evaluation(split), self._scalar(SPLITS[split]))

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

    def _merit(self, step: int) -> float | None:
        """What makes a checkpoint the best: `_score` at its reading, the higher the better."""
        if not any(records and records[-1]["step"] == step for records in self._records):
            return None
        score = self._score()
        return score and (score[1] if score[0] == "test elbo" else -score[1])

    def _finish(self, population: train.Population) -> None:
        """3. Final evaluations, then the folder of each run."""
        plan = self._plan
        test = self._evaluate("test", population)
        on_train = self._evaluate("train", population)
        nll = self._nll(population) if plan.evaluation.iw_samples else None
        shown = min(plan.dataset.num_test, gallery.NUM_LATENTS)
        pictures = self._program("gallery", population)(
            population, self._examples.evaluation("test", shown), test["kl_per_dim"]
        )
        self._stop_here(population)
        with _tolerated("the checkpoint"):
            self._writer.wait()  # a kill from here on repeats no training
        # Nothing reads the optimiser's state again.
        states = population.states.replace(opt_state=())
        found = mesh.fetch((states, test, on_train, pictures))
        wall_s = (self._seconds + time.monotonic() - self._started) / len(plan.runs)
        outcome = Outcome(*found, nll, wall_s)

        def write(i: int) -> None:
            folder = self._workdir.run(plan.runs[i].run_id)
            self._write_records(i, folder)
            write_run(folder, plan, i, self._own[i], outcome, functools.partial(self._cause, i))

        if not self._leads:
            return
        # Side by side, because most of it is waiting for the disk.
        with ThreadPoolExecutor(max_workers=8) as pool:
            list(pool.map(write, range(len(plan.runs))))

    def _cause(self, i: int, state: train.TrainState) -> divergence.Provenance:
        """Why run i diverged."""
        if self._stream is None:
            examples = self._examples.local()
        else:
            seed = self._plan.runs[i].flat["seed"]
            examples = self._stream.one(seed, int(state.diverged_step))
        return divergence.diagnose(self._own[i], examples, state)

    def _nll(self, population: train.Population) -> np.ndarray:
        """−(mean bound) of each run [R], some examples at a time: it can take minutes."""
        program = self._program("iw_bounds", population)
        examples = self._evaluation("test")
        count = self._plan.dataset.num_test
        block = iw_block(self._plan)
        bounds = []
        for start in range(0, count, block):
            self._stop_here(population)
            self._note(f"nll of {self._plan.evaluation.iw_samples} samples, {start}/{count}")
            # The last block is filled up by repeating the last example.
            index = np.minimum(np.arange(start, start + block, dtype=np.int32), count - 1)
            index = mesh.put(index, mesh.everywhere(self._plan.mesh))
            part = program(population, examples, self._scalar(SPLITS["test"]), index)
            bounds.append(mesh.fetch(part)[:, : count - start])
        return -np.concatenate(bounds, axis=1).astype(np.float64).mean(axis=1)


@contextlib.contextmanager
def _tolerated(what: str) -> Iterator[None]:
    """Turns an error of the disk into a warning, but in one of several processes.

    The others would wait for its part of a checkpoint.
    """
    try:
        yield
    except OSError as error:
        if distributed.several():
            raise
        logging.warning(
            "%s: %s. Could not write %s: training goes on, and tries again at the next "
            "checkpoint. What was saved before stands.",
            error.filename or "The disk",
            error.strerror or error,
            what,
        )


def pending(plans: Iterable[PopulationPlan], workdir: Workdir) -> list[PopulationPlan]:
    """The populations of which some run has no result yet."""
    return [p for p in plans if any(workdir.result(run.run_id) is None for run in p.runs)]
