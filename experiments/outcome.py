"""What a run leaves in its folder at its end: its parameters, pictures, and row of results.csv."""

import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.plan import PopulationPlan
from vae import checkpoint, data, gallery, packed, train, writers
from vae.divergence import Provenance
from vae.spec import Spec


class Outcome(NamedTuple):
    """What a population ends with: host arrays [R, ...].

    Attributes:
      states: without that of the optimiser, which nothing reads again.
      test, on_train: of `vae.evaluate.evaluate`, on the two splits. pictures: of `vae.gallery`.
      nll: [R], or None.
      wall_s: seconds that each run took.
    """

    states: train.TrainState
    test: Mapping[str, np.ndarray]
    on_train: Mapping[str, np.ndarray]
    pictures: Mapping[str, np.ndarray]
    nll: np.ndarray | None
    wall_s: float


def write_run(
    folder: pathlib.Path,
    plan: PopulationPlan,
    i: int,
    own: Spec,
    outcome: Outcome,
    cause: Callable[[train.TrainState], Provenance],
) -> None:
    """Writes all that run i leaves but the files that grew in training; `result.json` last.

    Args:
      own: the run's own spec, of which the population's may be a larger one.
      cause: the state of a diverged run -> why it did.
    """
    run = plan.runs[i]
    state, kl = jax.tree.map(lambda a: a[i], (outcome.states, outcome.test["kl_per_dim"]))
    pictures = {name: array[i] for name, array in outcome.pictures.items()}
    if plan.spec.model.packed:
        shapes, latents = packed.shapes(own.model), own.model.latent_dim
        state = state.replace(
            params=packed.cropped(state.params, shapes),
            ema=None if state.ema is None else packed.cropped(state.ema, shapes),
        )
        kl = kl[:latents]
        pictures |= {name: pictures[name][:latents] for name in ("traversals", "traversal_dims")}
    writers.write_json(folder / "config.json", run.config)
    write_gallery(folder, plan.dataset, pictures, kl)
    checkpoint.save_tree(folder / "params", {"params": state.eval_params, "stats": state.stats})
    row: dict[str, Any] = {"run_id": run.run_id, "status": "ok", **run.overrides}
    row |= {"seed": run.flat["seed"], "steps": plan.num_steps}
    row["data/fingerprint"] = plan.dataset.protocol["fingerprint"][:16]
    row |= {"steps_clipped": int(state.clipped)} if run.flat["optimizer.clip_norm"] else {}
    row |= {"steps_skipped": int(state.skipped)} if plan.spec.optimizer.skip else {}
    if state.diverged:  # its cause in place of numbers
        row |= {"status": "diverged", "steps": int(state.diverged_step)}
        row |= {f"diverged/{name}": value for name, value in cause(state)._asdict().items()}
    else:
        row |= _numbers(plan, i, outcome)
    writers.write_json(folder / "result.json", row | {"wall_s": round(outcome.wall_s, 3)})


def _numbers(plan: PopulationPlan, i: int, outcome: Outcome) -> dict[str, float]:
    test, on_train = outcome.test, outcome.on_train
    names = scalars(test)
    found = {f"test/{name}": test[name][i].item() for name in names}
    if outcome.nll is not None:
        found |= {"test/nll": outcome.nll[i].item()}
        found |= {"test/nll_samples": plan.evaluation.iw_samples}
    found |= {f"train_eval/{name}": on_train[name][i].item() for name in names}
    return found | {"gap/elbo": found["train_eval/elbo"] - found["test/elbo"]}


_SCALARS = ("elbo", "rate", "distortion", "active_units", "bpd")


def scalars(test: Mapping[str, Any]) -> list[str]:
    """The numbers of an evaluation: `_SCALARS`, then those of each stochastic layer."""
    of_layers = [name for name in test if re.search(r"_z\d+$", name)]
    return [*(name for name in _SCALARS if name in test), *of_layers]


def write_gallery(
    folder: pathlib.Path,
    dataset: data.Dataset,
    pictures: Mapping[str, np.ndarray],
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
