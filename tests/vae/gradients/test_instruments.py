"""The table of instruments, on runs of many kinds: numbers, or a reason why there are none."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.report import looks
from tests.vae import building
from tests.vae.building import COMPILE_FAST
from tests.vae.test_every_objective import HPARAMS, SHAPE, spec_of
from vae.data import Examples, Transform
from vae.errors import UserError
from vae.gradients import instruments, probe
from vae.gradients.instruments import INSTRUMENTS, Settings
from vae.layers import layer_names
from vae.spec import ModelSpec, Spec

SETTINGS = Settings(examples=6, draws=8)
READ = jax.jit(
    probe.read.__wrapped__,
    static_argnames=("spec", "pack", "names", "settings"),
    compiler_options=COMPILE_FAST,
)


def data(binarization="none", count=29):
    rng = np.random.default_rng(3)
    raw = rng.integers(0, 256, (count, *SHAPE)).astype(np.uint8)
    return Examples(jnp.asarray(raw), Transform(1 / 255, 0.0, binarization))


def look(spec, names=None, runs=(HPARAMS,), pack="vmap", examples=None):
    """(population, reading) of the instruments that a spec admits."""
    names = instruments.fitting(spec) if names is None else names
    population = building.population(spec, list(runs))
    examples = data() if examples is None else examples
    return population, READ(spec, pack, names, SETTINGS, population.states, examples)


# Of each kind of posterior, coupling and game one.
@pytest.mark.sampled
@pytest.mark.parametrize(
    ("case", "refused"),
    [
        (("elbo", "gaussian"), ()),
        (("iwae", "full", "mixture", "gaussian_pixel"), ()),
        (("tcvae", "gaussian"), ("examples",)),
        (("factor", "gaussian"), ("examples", "hessian")),
        (("elbo", "categorical", "standard", "gaussian_shared"), ("jacobian", "collapse")),
        (("autoencoder", "point", "standard", "gaussian"), ("collapse",)),
        (("vq", "vq", "standard", "gaussian"), ("jacobian", "collapse")),
    ],
)
def test_every_instrument_reads_numbers_or_is_refused(case, refused):
    spec = spec_of(*case)
    assert set(INSTRUMENTS) - set(instruments.fitting(spec)) == set(refused)
    for name in refused:
        with pytest.raises(UserError, match=f"probe.instruments: {name} would tell nothing here"):
            instruments.check(spec, (name,))
    population, reading = look(spec, runs=[HPARAMS.replace(free_bits=0.0)])
    one = functools.partial(jax.tree.map, operator.itemgetter(0))
    found = probe.record(population.states.params, one(reading))
    kinds = {"terms": "grad/", "signal": "signal/", "noise": "grad/", "examples": "scale/"}
    kinds |= {"jacobian": "jacobian/", "hessian": "hessian/", "collapse": "collapse/"}
    for name in instruments.fitting(spec):
        assert any(key.startswith(kinds[name]) for key in found), name
    # A number that is none is left out; infinite may be a noise scale or a condition alone.
    infinite = [key for key, value in found.items() if np.isinf(value)]
    assert all(key.startswith("scale/") for key in infinite), infinite
    layers = layer_names(population.states.params)
    assert {f"grad/{layer}/whole" for layer in layers} <= set(found)


def test_all_that_is_read_has_a_title_in_the_report():
    _, reading = look(spec_of("tcvae"))
    _, more = look(spec_of("elbo"))
    assert set(reading.layers) | set(more.layers) <= set(looks.OF_LAYERS)
    assert set(reading.scalars) | set(more.scalars) <= set(looks.OF_MODEL)


@pytest.mark.thorough
def test_a_run_is_seen_as_it_is_alone_and_packed_either_way():
    spec = spec_of("elbo")
    runs = [HPARAMS.replace(seed=s, beta=b, free_bits=0.0) for s, b in ((0, 0.5), (7, 2.0))]
    names = ("terms", "signal", "examples", "noise", "collapse")
    _, together = look(spec, names, runs)
    _, in_turn = look(spec, names, runs, pack="map")
    for i, run in enumerate(runs):
        _, alone = look(spec, names, [run])
        for packed in (together, in_turn):
            for one, other in zip(jax.tree.leaves(packed), jax.tree.leaves(alone), strict=True):
                # Sums in another order; what is a difference of sums loses a digit more.
                np.testing.assert_allclose(one[i], other[0], rtol=2e-3, atol=2e-4)


def test_the_same_is_seen_again_and_another_seed_sees_other_examples():
    spec = spec_of("elbo")
    _, first = look(spec, ("terms",))
    _, again = look(spec, ("terms",))
    np.testing.assert_array_equal(first.layers["grad/whole"], again.layers["grad/whole"])
    _, other = look(spec, ("terms",), [HPARAMS.replace(seed=5)])
    assert not np.allclose(first.layers["grad/whole"], other.layers["grad/whole"])


@pytest.mark.thorough
def test_shares_of_the_noise_sum_to_one_and_know_of_no_binarisation_where_there_is_none():
    spec = spec_of("elbo")
    _, reading = look(spec, ("noise",))
    shares = [reading.layers[f"grad/share_{name}"] for name in ("noise", "data", "batch")]
    np.testing.assert_allclose(sum(shares), 1, rtol=1e-4)
    # No number of the step depends on the key of the binarisation: its mean square is that of the
    # noise within, and the share a difference of equals only by chance; the gradient's is exact.
    _, dynamic = look(spec, ("noise",), examples=data("dynamic"))
    assert not np.allclose(dynamic.layers["grad/noise"], reading.layers["grad/noise"])


def test_the_noise_scale_is_that_of_the_examples():
    """Of one example repeated, without noise in z, there is no noise between examples."""
    spec = spec_of("autoencoder", "point", "standard", "gaussian")
    same = data()
    same = Examples(jnp.repeat(same.raw[:1], len(same.raw), axis=0), same.transform)
    run = HPARAMS.replace(free_bits=0.0)
    _, reading = look(spec, ("examples",), [run], examples=same)
    assert abs(float(reading.scalars["scale/all"][0])) < 1e-3
    median, largest = (reading.scalars[f"grad/example_{n}"][0] for n in ("median", "largest"))
    assert float(median) == pytest.approx(float(largest), rel=1e-5)


def test_the_edge_of_stability_counts_the_learning_rate_of_the_step():
    spec = spec_of("elbo")
    _, slow = look(spec, ("hessian",), [HPARAMS.replace(learning_rate=1e-3)])
    _, fast = look(spec, ("hessian",), [HPARAMS.replace(learning_rate=4e-3)])
    key = "hessian/largest_times_half_rate"
    assert float(fast.scalars[key][0]) == pytest.approx(4 * float(slow.scalars[key][0]), rel=1e-4)
    expected = float(slow.scalars["hessian/largest"][0]) * 1e-3 / 2
    assert float(slow.scalars[key][0]) == pytest.approx(expected, rel=1e-5)


def test_batchnorm_has_no_gradients_of_examples():
    spec = Spec(ModelSpec(SHAPE, 2, depth=1, width=4, norm="batch"), batch_size=8)
    with pytest.raises(UserError, match=r"examples would tell nothing here. model.norm: batch"):
        instruments.check(spec, ("terms", "examples"))


def test_layers_that_do_not_exist_are_named_with_those_that_do():
    params = building.population(spec_of("elbo"), [HPARAMS]).states.params
    instruments.check_layers(params, ("encoder/layer_0",))
    with pytest.raises(UserError, match="no layer encoder/layer_9. The layers are encoder/layer_0"):
        instruments.check_layers(params, ("encoder/layer_9",))


def test_chosen_layers_alone_are_recorded():
    population, reading = look(spec_of("elbo"), ("terms",))
    one = jax.tree.map(operator.itemgetter(0), reading)
    found = probe.record(population.states.params, one, ("decoder/output",))
    assert found and all("/decoder/output/" in key for key in found)
