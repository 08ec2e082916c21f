"""Loads a finished run again, from its folder alone."""

import functools
import json
import pathlib
from typing import NamedTuple

import jax

from experiments import plan
from vae import checkpoint, data, model, train
from vae.hparams import HParams
from vae.spec import Spec


class LoadedRun(NamedTuple):
    """What a run was and what it learned: all that `vae.model.encode` and its like ask for."""

    spec: Spec
    hparams: HParams
    dataset: data.Dataset
    params: model.Params
    stats: model.Stats


def load_run(folder: pathlib.Path) -> LoadedRun:
    """The run in `WORKDIR/runs/RUN_ID`: its parameters as evaluated, its data loaded anew.

    Raises:
      UserError: its data are missing, or its parameters are of another version of the code.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (population,) = plan.make(config, [{}], {}).populations
    spec, dataset = population.spec, population.dataset
    (hparams,) = population.hparams()
    _, *data_arguments = population.start()
    state = jax.eval_shape(functools.partial(train.init_run, spec), hparams, *data_arguments)
    like = {"params": state.params, "stats": state.stats}
    tree = checkpoint.restore_tree(folder / "params", like)
    return LoadedRun(spec, hparams, dataset, tree["params"], tree["stats"])
