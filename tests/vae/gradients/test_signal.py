"""Activations and ∂ℓ/∂h: against gradients by hand, parameters' gradients, and known rates."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.vae import building
from vae import loss, random
from vae.gradients import signal
from vae.hparams import HParams
from vae.loss import Lens, batch_at, batch_loss
from vae.nets import ACTIVATIONS
from vae.spec import ModelSpec, ObjectiveSpec, Spec

BATCH = 4
RNG = jax.random.key(7)
MLP = ModelSpec((6,), latent_dim=2, width=5, depth=2, activation="tanh")
CONV = ModelSpec((5, 5, 1), latent_dim=2, net="conv", width=3, depth=2, activation="tanh")
WITH = functools.partial(ModelSpec, (6,), 2, width=5, depth=2)

SPECS = {
    "mlp": Spec(MLP),
    "conv": Spec(CONV),
    "samples": Spec(WITH(likelihood="gaussian_pixel"), ObjectiveSpec(samples=3)),
    "batch norm": Spec(WITH(norm="batch", residual="plain"), ObjectiveSpec(samples=2)),
    "layer norm": Spec(WITH(norm="layer", residual="scaled", activation="gelu")),
    "conv, batch norm": Spec(
        ModelSpec((5, 5, 1), 2, net="conv", width=3, depth=2, norm="batch"),
        ObjectiveSpec("iwae", samples=2),
    ),
    "dreg": Spec(MLP, ObjectiveSpec("iwae", samples=3, estimator="dreg")),
    "stl": Spec(WITH(posterior="low_rank"), ObjectiveSpec(samples=2, estimator="stl")),
    "tcvae": Spec(MLP, ObjectiveSpec("tcvae", num_examples=10)),
    "autoencoder": Spec(
        WITH(posterior="point"), ObjectiveSpec("autoencoder", corruption="gaussian")
    ),
    "vaegan": Spec(MLP, ObjectiveSpec("vaegan")),
}


def run_of(spec, seed=0, **hparams):
    """(examples, the state of a run at parameters that are not those of the start, its batch)."""
    examples = building.examples(10, *spec.model.example_shape)
    hparams = HParams(seed=seed, corruption_level=0.3, **hparams)
    pop = building.population(spec, [hparams])
    state = jax.tree.map(lambda a: a[0], pop.states)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda a: a + jnp.float32(0.3) * _normal(rng, a.shape), state.params)
    state = state.replace(params=params)
    return examples, state, batch_at(spec, examples, state.hparams.seed, state.step)


def _normal(rng, shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def sized(name):
    spec = SPECS[name]
    return Spec(spec.model, spec.objective, batch_size=BATCH)


# --- ∂ℓ/∂h


def by_hand(params, x, noise, added):
    """(ℓ, h at each place) of one x under the model MLP; `added`: {place: what is added there}."""
    seen = {}

    def at(place, h):
        seen[place] = h + added.get(place, jnp.zeros_like(h))
        return seen[place]

    def dense(layer, h):
        return h @ layer["kernel"] + layer["bias"]

    def trunk(part, h):
        for i in range(2):
            h = at(f"{part}/layer_{i} pre", dense(params[part][f"layer_{i}"]["dense"], h))
            h = at(f"{part}/layer_{i} post", jnp.tanh(h))
        return h

    h = trunk("encoder", at("encoder", x))
    mean = at("encoder/mean post", dense(params["encoder"]["mean"], h))
    logvar = at("encoder/scale post", dense(params["encoder"]["scale"], h))
    z = at("decoder", mean + jnp.exp(logvar / 2) * noise)
    logits = at("decoder/output post", dense(params["decoder"]["output"], trunk("decoder", z)))
    log_px = jnp.sum(x * jax.nn.log_sigmoid(logits) + (1 - x) * jax.nn.log_sigmoid(-logits))
    return jnp.sum(jnp.square(mean) + jnp.exp(logvar) - 1 - logvar) / 2 - log_px, seen


def test_two_layers_by_hand():
    spec = sized("mlp")
    examples, state, batch = run_of(spec)

    @jax.jit
    def both(state, batch):
        def one(raw, rng):
            drawn = loss.draw(spec, examples.transform, state.hparams, raw, rng)
            args = (state.params, drawn.x, drawn.noise[0])
            zeros = jax.tree.map(jnp.zeros_like, by_hand(*args, {})[1])
            return jax.grad(by_hand, argnums=3, has_aux=True)(*args, zeros)

        expected = jax.vmap(one)(batch.raw, random.example_rngs(RNG, batch.index))
        return expected, signal.observe(spec, examples.transform, state, batch, RNG)

    (backward, forward), found = both(state, batch)
    places = [(name, place) for name, of in found.forward.items() for place in of]
    assert {" ".join(place) for place in places} | found.inputs.keys() == forward.keys()
    assert len(places) == 2 * 4 + 3
    # Float32, tens of sums of numbers of order 1.
    for name, place in places:
        for of, expected in ((found.forward, forward), (found.backward, backward)):
            expected = expected[f"{name} {place}"]
            seen = of[name][place].reshape(expected.shape)
            np.testing.assert_allclose(seen, expected, rtol=1e-4, atol=1e-5)
    for part, seen in found.inputs.items():
        np.testing.assert_allclose(
            seen.reshape(backward[part].shape), backward[part], rtol=1e-4, atol=1e-5
        )


@pytest.mark.sampled
@pytest.mark.parametrize("name", SPECS)
def test_biases_get_the_sum_of_what_comes_back(name):
    """∂(mean loss)/∂b = 1/B Σ ∂ℓ/∂h_pre over examples, samples and places: in every objective."""
    spec = sized(name)
    examples, state, batch = run_of(spec)

    @jax.jit
    def both(state, batch):
        def mean_loss(params):
            return batch_loss(
                spec,
                examples.transform,
                params,
                state.stats,
                state.hparams,
                state.step,
                batch,
                rng=RNG,
            )[0]

        seen = signal.observe(spec, examples.transform, state, batch, RNG)
        return jax.grad(mean_loss)(state.params), seen

    gradients, seen = both(state, batch)
    assert sorted(seen.forward) == sorted(signal.names(state.params))
    checked = 0
    for full_name, backward in seen.backward.items():
        part, layer = full_name.split("/")
        if spec.objective.name == "vaegan" and part == "decoder":
            continue  # whose parameters are for samples of the prior too
        tree = gradients[part][layer]
        # A normalisation's own bias is the last thing before `pre`, if there is one.
        for leaf in ("norm", "layer", "batch", "dense", "conv"):
            tree = tree.get(leaf, tree)
        expected = tree["bias"]
        arriving = backward.get("pre", backward["post"])
        total = jnp.sum(arriving.reshape(-1, expected.size), axis=0) / BATCH
        size = float(jnp.max(jnp.abs(expected)))
        np.testing.assert_allclose(total, expected, rtol=1e-4, atol=1e-5 * max(size, 1e-3))
        checked += size > 0
    assert checked >= 4  # a layer and a head of each part, unless it is a discriminator's game


def test_zeros_on_the_layers_change_no_loss():
    spec = sized("mlp")
    examples, state, batch = run_of(spec)

    def value(taps):
        args = (state.params, state.stats, state.hparams, state.step, batch)
        lens = Lens(taps=taps)
        return batch_loss(spec, examples.transform, *args, rng=RNG, lens=lens)[0]

    taps, _ = signal._forward(spec, examples.transform, state, batch, RNG)
    zeros = jax.tree.map(jnp.zeros_like, taps)
    # h + 0 is h; XLA may fuse, and so round, the two differently.
    np.testing.assert_allclose(jax.jit(value)(zeros), jax.jit(value)(None), rtol=1e-6)


@pytest.mark.thorough
def test_runs_side_by_side_are_as_alone():
    spec = sized("dreg")
    examples = building.examples(10, 6)
    states = building.population(spec, [HParams(seed=s, init_gain=g) for s, g in ((0, 1), (3, 2))])

    def one(state):
        batch = batch_at(spec, examples, state.hparams.seed, state.step)
        return signal.signal(spec, examples.transform, state, batch, RNG)

    together = jax.jit(jax.vmap(one))(states.states)
    assert together["layers"]["dead"].shape == (2, 7) and together["inputs"][
        "backward_rms"
    ].shape == (2, 2)
    for r in range(2):
        alone = jax.jit(one)(jax.tree.map(lambda a, r=r: a[r], states.states))
        # Float32, other orders of summation.
        jax.tree.map(
            lambda a, t, r=r: np.testing.assert_allclose(a, t[r], rtol=2e-5, atol=1e-6),
            alone,
            together,
        )


# --- What is made of it


def seen_of(pre, backward=None):
    """One layer, and one input, as `Seen`; activations as relu makes them."""
    pre = jnp.asarray(pre, jnp.float32)
    back = pre if backward is None else jnp.asarray(backward, jnp.float32)
    places = {"encoder/layer_0": {"pre": back, "post": back}}
    forward = {"encoder/layer_0": {"pre": pre, "post": jax.nn.relu(pre)}}
    return signal.Seen(forward, places, {"encoder": back})


def one_layer(activation, pre, backward=None):
    found = signal.measure(activation, seen_of(pre, backward))["layers"]
    return {name: float(value[0]) for name, value in found.items()}


def test_moments():
    pre = np.random.default_rng(0).normal(1.0, 2.0, (5, 3, 4)).astype(np.float32)
    found = one_layer("relu", pre, 3 * pre)
    exact = pre.astype(np.float64)
    assert found["forward_rms_pre"] == pytest.approx(np.sqrt(np.mean(exact**2)), rel=1e-6)
    assert found["forward_std_pre"] == pytest.approx(np.std(exact), rel=1e-6)
    post = np.maximum(exact, 0)
    assert found["forward_rms_post"] == pytest.approx(np.sqrt(np.mean(post**2)), rel=1e-6)
    assert found["forward_std_post"] == pytest.approx(np.std(post), rel=1e-6)
    assert found["backward_rms_pre"] == pytest.approx(3 * found["forward_rms_pre"], rel=1e-6)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_what_float32_cannot_square_is_seen(size):
    """Squares of 1e-30 are 0 in float32, and of 1e30 infinite."""
    values = np.float32(size) * np.array([[1, -2], [2, 4]], np.float32)
    assert float(signal.root_mean_square(jnp.asarray(values))) == pytest.approx(2.5 * size)
    # The cosine of (1, −2) and (2, 4).
    assert float(signal.correlation(jnp.asarray(values))) == pytest.approx(-0.6, abs=1e-6)


def test_no_signal_is_zero():
    assert float(signal.root_mean_square(jnp.zeros((3, 2)))) == 0
    assert math.isnan(float(signal.correlation(jnp.zeros((3, 2)))))


def test_dead_units_are_shut_for_every_example():
    #       unit 0: never open; unit 1: once; unit 2: always
    pre = [[-1, -1, 1], [-2, -3, 2], [-0.5, 0.5, 3], [-1, -1, 1]]
    relu = one_layer("relu", pre)
    assert relu["dead"] == pytest.approx(1 / 3) and relu["saturated"] == 0
    assert one_layer("leaky_relu", pre)["dead"] == 0
    # The same as the channels of one example, at four places.
    assert one_layer("relu", np.reshape(pre, (1, 2, 2, 3)))["dead"] == pytest.approx(1 / 3)


def test_saturation_is_a_tenth_of_the_largest_slope():
    edge = math.atanh(math.sqrt(0.9))  # where 1 − tanh² = 0.1
    around = [[edge - 0.01, edge + 0.01, -edge + 0.01, -edge - 0.01]]
    assert one_layer("tanh", around)["saturated"] == 0.5
    assert one_layer("sigmoid", 2 * np.array(around))["saturated"] == 0.5
    assert one_layer("identity", around)["saturated"] == 0
    far = one_layer("tanh", [[50.0, 0.0]])
    assert far["saturated"] == 0.5 and far["dead"] == 0.5


def test_every_activation_has_its_slope():
    assert signal.SLOPES.keys() == ACTIVATIONS.keys()
    u = jnp.linspace(-200, 200, 400001)
    for name, slope in signal.SLOPES.items():
        found = np.abs(signal.slopes(name, u))
        assert found.max() == pytest.approx(slope.largest, abs=1e-4)
        # What saturates is flat far out on one side at least, and on its way there is in between.
        between = np.mean((found > 0.011) & (found < signal.SATURATED * slope.largest))
        assert (between > 0) == slope.saturates


def test_correlation_is_the_mean_over_pairs():
    g = np.random.default_rng(1).normal(size=(6, 2, 3)) + 0.5
    g[2] = 0
    kept = np.delete(g, 2, axis=0).reshape(5, -1)
    units = kept / np.linalg.norm(kept, axis=1, keepdims=True)
    cosines = [units[i] @ units[j] for i in range(5) for j in range(i)]
    found = float(signal.correlation(jnp.asarray(g, jnp.float32)))
    assert found == pytest.approx(np.mean(cosines), abs=1e-6)


# --- Vanishing, healthy, exploding


@functools.cache
def moments_of(spec, batch):
    """A program: parameters and a key of each net ↦ E (∂ℓ/∂h)² over nets, [L]."""

    def one(args):
        (params, stats), rng = args
        rngs = jax.random.split(rng)
        x = jax.random.normal(rngs[0], (batch, *spec.example_shape))
        cotangent = jax.random.normal(rngs[1], (batch, 4))
        seen = signal.propagate(spec, params, stats, x, cotangent)
        return signal.measure(spec.activation, seen)["layers"]["backward_rms_pre"]

    return jax.jit(lambda *args: jnp.mean(jnp.square(jax.lax.map(one, args)), axis=0))


def rates(spec, batch, nets):
    """Factor of E (∂ℓ/∂h)² from each layer to the one before, over nets: [L − 1]."""
    rngs = jax.random.split(RNG, nets)
    params = jax.jit(lambda rngs: jax.lax.map(lambda r: signal.random_net(spec, r, 4), rngs))(rngs)
    program = moments_of(dataclasses.replace(spec, init="he"), batch)
    found = np.asarray(program(params, rngs), np.float64)[:-1]
    return found[:-1] / found[1:]


WIDTH, DEPTH, NETS = 64, 5, 300


@pytest.mark.sampled
@pytest.mark.parametrize(
    "init, activation, rate",
    [
        ("he", "relu", 1.0),
        ("uniform", "relu", 1 / 6),
        ("glorot", "relu", 0.5),
        ("he", "identity", 2.0),
        ("uniform", "identity", 1 / 3),
        ("glorot", "identity", 1.0),
    ],
)
def test_known_initialisations(init, activation, rate):
    """n·Var(w)·E φ′²: Glorot and Bengio 2010, eq. 6; He et al. 2015, eq. 14."""
    spec = ModelSpec((WIDTH,), depth=DEPTH, width=WIDTH, init=init, activation=activation)
    factor = np.prod(rates(spec, 1, NETS)) ** (1 / (DEPTH - 1))
    # ‖Ju‖² of one net is about log-normal, b = 5(L − 1)/n with relu and less without.
    b = 5 * (DEPTH - 1) / WIDTH
    error = math.sqrt(math.expm1(b) / NETS) / (DEPTH - 1)
    assert factor == pytest.approx(rate, rel=4 * error)


def test_glorot_counts_both_sides():
    """From m units back to n: Var(w)·m = 2m/(n + m)."""
    spec = ModelSpec((WIDTH,), depth=2, width=(64, 32), init="glorot", activation="identity")
    (factor,) = rates(spec, 1, NETS)
    assert factor == pytest.approx(2 * 32 / (64 + 32), rel=4 * math.sqrt(math.expm1(5 / 32) / NETS))


@pytest.mark.sampled
@pytest.mark.parametrize("norm, rate", [("batch", 1.788), ("layer", 1.0)])
def test_batch_norm_explodes_and_layer_norm_does_not(norm, rate):
    """Yang et al. 2019: 1.788 a layer with batches of 8."""
    spec = ModelSpec((256,), depth=10, width=256, norm=norm, init="he")
    nets = 24
    # At the ends neither the activations nor the gradients are yet what they come to.
    found = rates(spec, 8, nets)[3:-1]
    b = 5 * len(found) / 256
    error = math.sqrt(math.expm1(b) / nets) / len(found)
    # Beside the noise: terms of 1/n, which no limit of wide nets has.
    assert np.prod(found) ** (1 / len(found)) == pytest.approx(rate, rel=4 * error + 5 / 256)


def test_a_vae_that_vanishes_is_told_from_one_that_does_not():
    """The same in an encoder and a decoder, under the VAE's own loss.

    The rates are of a cotangent that does not hang on the activations. That of the KL does, which
    is the mean itself, and that of a Bernoulli. So the heads are made small: what is left is ½ − x
    at the output, and, as the encoder's are the smallest, what comes back of it at the mean.
    """
    examples = building.examples(16, 64)
    depth, runs = 3, 8

    def states(**options):
        spec = Spec(ModelSpec((64,), 64, depth=depth, width=64, **options), batch_size=16)
        states = building.population(spec, [HParams(seed=s) for s in range(runs)]).states
        small = {"mean": 1e-6, "scale": 1e-6, "output": 1e-3}
        params = jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf * small.get(path[1].key, 1.0), states.params
        )
        return spec, states.replace(params=params)

    def program(spec):
        def one(state):
            batch = batch_at(spec, examples, state.hparams.seed, state.step)
            found = signal.signal(spec, examples.transform, state, batch, RNG)
            return found["layers"]["backward_rms_pre"]

        return jax.jit(jax.vmap(one))

    def factors(program, states):
        found = np.mean(np.square(program(states)), axis=0)
        found = dict(zip(signal.names(states.params), found, strict=True))
        ends = [
            (found[f"{part}/layer_0"], found[f"{part}/layer_{depth - 1}"]) for part in signal.PARTS
        ]
        return [(first / last) ** (1 / (depth - 1)) for first, last in ends]

    spec, healthy = states(init="he")
    of_spec = program(spec)
    # b = 5·2/64 of one net; of eight nets that is 7% a layer.
    assert factors(of_spec, healthy) == pytest.approx([1, 1], rel=0.2)
    _, vanishing = states(init="uniform")
    assert factors(of_spec, vanishing) == pytest.approx([1 / 6, 1 / 6], rel=0.2)
    spec, exploding = states(init="he", norm="batch")
    assert min(factors(program(spec), exploding)) > 1.25
