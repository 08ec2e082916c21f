"""Every objective with every posterior and prior that it goes with, each likelihood in its turn.

tests/vae/test_every_objective.py has chosen rows of this table and asks more of each. 180
programs are compiled here: minutes, so `-m slow` only.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.vae.test_every_objective import images, parameters_of, program, spec_of
from vae.errors import UserError
from vae.likelihoods import LIKELIHOODS
from vae.objectives import OBJECTIVES
from vae.posteriors import POSTERIORS
from vae.priors import PRIORS


def combinations(objective):
    """The valid specs of an objective."""
    # Each objective starts at another likelihood, so that together they meet all of them.
    start = list(OBJECTIVES).index(objective)
    likelihoods = itertools.islice(itertools.cycle(LIKELIHOODS), start, None)
    for posterior, prior in itertools.product(POSTERIORS, PRIORS):
        try:
            yield spec_of(objective, posterior, prior, next(likelihoods))
        except UserError:
            continue


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_valid_combination_has_a_value_and_a_gradient(objective):
    count = 0
    for spec in combinations(objective):
        params, stats = parameters_of(spec)
        one = jax.tree.map(lambda a: a[None], params)
        (loss, metrics), grads = program(spec)(one, stats, images()[None])
        said = (spec.model.posterior, spec.model.prior, spec.model.likelihood)
        assert np.isfinite(loss[0]) and np.isfinite(metrics["loss"][0]), said
        leaves = jax.tree.leaves(grads)
        assert all(np.all(np.isfinite(leaf)) for leaf in leaves), said
        assert max(float(jnp.abs(leaf).max()) for leaf in leaves) > 0, said
        count += 1
        program.cache_clear()
    assert count
