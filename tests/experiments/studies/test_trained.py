"""Runs that a study trained, loaded again."""

import jax
import numpy as np
import pytest

from experiments.report.results import read_results
from experiments.studies import trained
from experiments.studies.cases import Context
from tests.experiments import launch
from vae import random
from vae.gradients import collapse


def test_the_loaded_run_is_the_one_that_was_evaluated(tmp_path):
    flags = ("--config=configs/default.py", "--config.train.epochs=null", "--config.train.steps=3")
    launch.run(tmp_path, *flags, "--sweep=seed=0,1", "--sweep=model.sigma=0.5")
    context = Context(tmp_path, read_results(tmp_path), None)
    found = trained.load(context, seed=1, model__sigma=0.25**0.5)
    assert int(found.state.hparams.seed) == 1 and float(found.state.hparams.sigma) == 0.5
    rng = random.stream(found.state.hparams.seed, random.EVALUATE)

    @jax.jit
    def rate(examples, state):
        return collapse.collapse(found.spec.model, examples, state, rng)["rate"]

    # The KL has a closed form: the same number, in another order of summation.
    expected = {run.seed: run.number("test/rate") for run in context.results.runs}
    assert expected[0] != pytest.approx(expected[1], rel=1e-3)
    np.testing.assert_allclose(rate(found.examples("test"), found.state), expected[1], rtol=1e-5)
    assert len(found.examples("train", 5).raw) == 5
    assert trained.load(context, seed=2) is None
    assert trained.load(context, seed=1, objective__name="iwae") is None
