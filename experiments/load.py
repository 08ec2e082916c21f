"""Loads a finished run again, from its folder alone."""

import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import plan
from vae import checkpoint, data, model, train
from vae.errors import UserError
from vae.hparams import HParams, stack
from vae.spec import Spec


class LoadedRun(NamedTuple):
    """What a run was and what it learned: all that `vae.model.encode` and its like ask for."""

    spec: Spec
    hparams: HParams
    dataset: data.Dataset
    params: model.Params
    stats: model.Stats


def load_run(folder: pathlib.Path, *, best: bool = False) -> LoadedRun:
    """The run in `WORKDIR/runs/RUN_ID`: its parameters as evaluated, its data loaded anew.

    Args:
      best: the parameters of its population's best checkpoint in place of the final ones. They
        are chosen on the test set: their ELBO on it is biased.

    Raises:
      UserError: its data are missing, its parameters are of another version of the code, or there
        is no best checkpoint.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (population,) = plan.make(config, [{}], {}).populations
    spec, dataset = population.spec, population.dataset
    (hparams,) = population.hparams()
    _, *data_arguments = population.start()
    if best:
        state = _best_state(folder.parents[1], folder.name, spec, hparams, data_arguments)
        return LoadedRun(spec, hparams, dataset, state.eval_params, state.stats)
    state = jax.eval_shape(functools.partial(train.init_run, spec), hparams, *data_arguments)
    like = {"params": state.params, "stats": state.stats}
    tree = checkpoint.restore_tree(folder / "params", like)
    return LoadedRun(spec, hparams, dataset, tree["params"], tree["stats"])


def _best_state(
    workdir: pathlib.Path, run_id: str, spec: Spec, hparams: HParams, data_arguments: Sequence[Any]
) -> train.TrainState:
    """The run's part of the best checkpoint of its population."""
    populations = json.loads((workdir / "populations.json").read_text(encoding="utf-8"))
    (mine,) = (p for p in populations if run_id in p["runs"])
    count = len(mine["runs"])
    # All runs of a population have the same shapes.
    stacked = stack([hparams] * count)
    shapes = jax.eval_shape(functools.partial(train.init, spec), stacked, *data_arguments)
    like = (shapes, jax.ShapeDtypeStruct((), np.float64))
    folder = workdir / "populations" / mine["id"] / "checkpoints"
    found = checkpoint.restore(folder, like, best=True, rows=count)
    if found is None:
        raise UserError(
            f"best: {folder} has no intact checkpoint with a reading. Load the final parameters."
        )
    _, (population, _) = found
    index = mine["runs"].index(run_id)
    return jax.tree.map(lambda leaf: leaf[index], population.states)
