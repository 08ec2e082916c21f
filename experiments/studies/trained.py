"""The runs that a study trained, loaded again for what it measures of them itself."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.load import load_run
from experiments.studies.cases import Context
from vae.data import Dataset, Examples
from vae.hparams import stack
from vae.spec import Spec
from vae.train import TrainState


class Trained(NamedTuple):
    """A run at the end of its training: `state` has the parameters that are evaluated."""

    spec: Spec
    dataset: Dataset
    state: TrainState

    def examples(self, split: str, limit: int | None = None) -> Examples:
        """Those of a split that every evaluation sees, at most `limit` from the start."""
        raw, transform = self.dataset.evaluation(split, limit)
        return Examples(jnp.asarray(raw), transform)


def load(context: Context, **values: float) -> Trained | None:
    """The run with these values of fields, `__` for dots; None where it diverged or is missing."""
    wanted = {name.replace("__", "."): value for name, value in values.items()}
    for run in context.results.runs if context.results else ():
        here = {name: run.setting(name) for name in wanted}
        if run.status == "ok" and all(_same(here[n], value) for n, value in wanted.items()):
            return _of(load_run(run.directory))
    return None


def _same(value: float | str | None, wanted: float | str) -> bool:
    # A number may have gone through JSON, or have been written as a root of another.
    numbers = isinstance(value, int | float) and isinstance(wanted, int | float)
    return math.isclose(value, wanted, rel_tol=1e-9) if numbers else value == wanted


def _of(run) -> Trained:
    zero = jnp.zeros((), jnp.int32)
    state = TrainState(
        step=zero,
        params=run.params,
        stats=run.stats,
        opt_state=(),
        ema=None,
        hparams=jax.tree.map(lambda a: jnp.asarray(a[0]), stack([run.hparams])),
        clipped=zero,
        skipped=zero,
        aggressive=None,
        diverged=jnp.zeros((), bool),
        diverged_step=zero - 1,
    )
    return Trained(run.spec, run.dataset, state)
