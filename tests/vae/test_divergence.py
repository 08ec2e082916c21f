"""The cause of a divergence: damage put into a known layer, or number, is found there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.vae import building
from vae import divergence, layers, objectives, train
from vae.hparams import HParams
from vae.spec import ModelSpec, ObjectiveSpec, OptimizerSpec, Spec

BATCH = 4

MODELS = {
    "plain": ModelSpec((6,), latent_dim=2, width=5, depth=2, activation="tanh"),
    "coupled": ModelSpec(
        (6,),
        latent_dim=2,
        width=5,
        depth=2,
        norm="batch",
        residual="zero_init",
        likelihood="gaussian_pixel",
    ),
    "conv": ModelSpec(
        (5, 5, 1),
        latent_dim=2,
        net="conv",
        width=3,
        depth=2,
        norm="layer",
        likelihood="gaussian_shared",
    ),
    "flow": ModelSpec(
        (6,), 2, width=5, depth=1, posterior="coupling", prior="mixture", flow_layers=3
    ),
    "low rank": ModelSpec((6,), 2, width=5, depth=1, posterior="low_rank", posterior_rank=1),
    "layers": ModelSpec(
        (6,),
        3,
        width=5,
        depth=1,
        posterior="hierarchical",
        prior="hierarchical",
        stochastic=(1, 1, 1),
        stochastic_depth=1,
        stochastic_width=4,
    ),
    "ladder": ModelSpec(
        (6,),
        3,
        width=5,
        depth=1,
        norm="batch",
        posterior="ladder",
        prior="hierarchical",
        stochastic=(1, 1, 1),
        stochastic_depth=1,
        stochastic_width=4,
    ),
    "pseudo-inputs": ModelSpec((6,), 2, width=5, depth=1, prior="vamp", prior_components=3),
    "categories": ModelSpec((6,), 2, width=5, depth=1, posterior="categorical", codes=3),
    "codebook": ModelSpec((6,), 2, width=5, depth=1, posterior="vq", codes=3, code_dim=2),
    "point": ModelSpec((6,), 2, width=5, depth=1, posterior="point"),
}
OBJECTIVES = {
    "codebook": ObjectiveSpec("vq"),
    "point": ObjectiveSpec("autoencoder", corruption="gaussian"),
}


def spec_of(name):
    objective = OBJECTIVES.get(name, ObjectiveSpec(samples=2))
    return Spec(MODELS[name], objective=objective, batch_size=BATCH)


def diverged_state(spec, params, stats, step=3, **hparams):
    """One run, as training leaves it that could not make step `step` with these parameters."""
    state = building.hand_made(spec.model, params, stats, **hparams).states
    state = jax.tree.map(lambda a: a[0], state)
    return state.replace(diverged=jnp.ones((), bool), diverged_step=jnp.int32(step))


def diagnose(name, change, **hparams):
    spec = spec_of(name)
    params, stats = building.parameters(spec.model)
    changed = change(jax.tree.map(np.array, params))
    examples = building.examples(10, *spec.model.example_shape)
    return divergence.diagnose(spec, examples, diverged_state(spec, changed, stats, **hparams))


# What a layer's matrix is called, where it is not a kernel.
LEAVES = {"posterior": "weight", "prior/mixture": "means", "prior/pseudo_inputs": "inputs"}


def poison(layer, value, leaf=None):
    """Sets every leaf of one name, in one layer, to a value."""
    part, name = layer.split("/")
    stochastic = name.startswith("z_")
    leaf = leaf or ("kernel" if stochastic else LEAVES.get(layer, LEAVES.get(part, "kernel")))

    def change(params):
        paths = jax.tree_util.tree_leaves_with_path(params[part][name])
        chosen = [array for path, array in paths if path[-1].key == leaf]
        assert chosen
        for array in chosen:
            array[...] = value
        return params

    return change


def layers_of(name):
    params, _ = building.parameters(MODELS[name])
    return [n for n in layers.layer_names(params) if not n.startswith("likelihood")]


@pytest.mark.sampled
@pytest.mark.parametrize("value", [np.nan, np.inf], ids=["nan", "inf"])
@pytest.mark.parametrize(
    "name, layer", [(name, layer) for name in MODELS for layer in layers_of(name)]
)
def test_the_layer_with_bad_parameters_is_named(name, layer, value):
    cause = diagnose(name, poison(layer, value))
    term = "distortion" if layer.startswith("decoder") else "rate"
    assert cause == divergence.Provenance(3, term, layer)


@pytest.mark.parametrize(
    "name, layer, leaf, value, term",
    [
        # Finite outputs that overflow in the term: mean² of 1e30, exp(logvar) of 100.
        ("plain", "encoder/mean", "bias", 1e30, "rate"),
        ("plain", "encoder/scale", "bias", 100.0, "rate"),
        # The square of a factor, and what tells one of four values from the others.
        ("low rank", "encoder/factor", "bias", 1e30, "rate"),
        ("categories", "encoder/logits", "bias", [3e38, -3e38, 0.0, 0.0, 0.0, 0.0], "rate"),
        # (x − output)² of 1e30.
        ("coupled", "decoder/output", "bias", 1e30, "distortion"),
    ],
)
def test_a_term_that_overflows_names_the_layer_that_feeds_it(name, layer, leaf, value, term):
    assert diagnose(name, poison(layer, value, leaf)) == (3, term, layer)


def test_a_discriminator_is_named():
    spec = Spec(MODELS["plain"], ObjectiveSpec("factor"), batch_size=BATCH)
    params, stats = building.parameters(spec.model)
    adversary = objectives.init_adversary(spec, jax.random.key(0))
    adversary["layer_0"]["dense"]["kernel"] *= jnp.nan
    state = diverged_state(spec, {**params, "discriminator": adversary}, stats)
    cause = divergence.diagnose(spec, building.examples(10, 6), state)
    assert cause == (3, "loss", "discriminator/output")


def test_what_the_encoder_sees_is_corrupted_again():
    # Only with the noise of the step is an input beyond float32.
    spec = spec_of("point")
    params, stats = building.parameters(spec.model)
    state = diverged_state(spec, params, stats, corruption_level=3e38)
    cause = divergence.diagnose(spec, building.examples(10, 6), state)
    assert cause == (3, "rate", "encoder/layer_0")


def test_a_shared_variance_that_underflows_is_named():
    def change(params):
        params["likelihood"]["logvar"] = np.float32(-100)  # 1/σ² = e^100 > float32
        return params

    assert diagnose("conv", change) == (3, "distortion", "likelihood/logvar")


def test_a_loss_that_overflows_though_its_terms_are_finite():
    # β·R with β at the edge of float32 and R > 10 nats.
    cause = diagnose("plain", poison("encoder/mean", 9.0, "bias"), beta=3e38)
    assert (cause.step, cause.term) == (3, "loss")


def test_a_gradient_that_overflows_though_the_loss_is_finite():
    # σ = 1e-17: the loss is about (error/σ)² ~ 1e35, a gradient about error/σ² ~ 1e34, its square
    # beyond 3e38. The reconstruction's head is where back-propagation begins.
    model = ModelSpec((6,), latent_dim=2, width=5, depth=1, likelihood="gaussian")
    spec = Spec(model, batch_size=BATCH)
    params, stats = building.parameters(model)
    examples = building.examples(10, 6)
    cause = divergence.diagnose(
        spec, examples, diverged_state(spec, params, stats, step=7, sigma=1e-17)
    )
    assert cause == (7, "gradient", "decoder/output")


def test_a_run_that_has_not_diverged_is_refused():
    spec = spec_of("plain")
    params, stats = building.parameters(spec.model)
    with pytest.raises(ValueError, match="not diverged"):
        divergence.diagnose(spec, building.examples(10, 6), diverged_state(spec, params, stats, -1))


TRAINED = Spec(
    ModelSpec((6,), latent_dim=2, width=5, depth=1, likelihood="gaussian"),
    optimizer=OptimizerSpec("sgd"),
    batch_size=BATCH,
)


def states_after_training(examples):
    """A run that cannot learn (learning rate 10) and a tame one, after 30 steps."""
    runs = [HParams(seed=0, learning_rate=10.0), HParams(seed=0, learning_rate=1e-3)]
    chunk = jax.jit(
        train.train_chunk.__wrapped__,
        static_argnames=("spec", "pack"),
        compiler_options=building.COMPILE_FAST,
    )
    population = chunk(TRAINED, "vmap", building.population(TRAINED, runs), examples, jnp.int32(30))
    return [jax.tree.map(lambda a, i=i: a[i], population.states) for i in range(len(runs))]


def test_an_exploding_run_names_the_head_that_explodes():
    examples = building.examples(10, 6)
    bad, good = states_after_training(examples)
    assert bad.diverged and not good.diverged
    # The scale head: its exponential is the steepest part of the loss.
    cause = divergence.diagnose(TRAINED, examples, bad)
    assert cause == (int(bad.diverged_step), "rate", "encoder/scale")
    assert cause.step < 30


def test_the_batch_of_that_step_is_replayed_and_no_other():
    # Damage in the data, in the second of the two batches that the first epoch has.
    index = building.order_of(0, 0, 10)[BATCH]
    examples = building.examples(10, 6)
    examples = examples.replace(raw=examples.raw.at[index].set(jnp.nan))
    _, state = states_after_training(examples)
    assert divergence.diagnose(TRAINED, examples, state) == (1, "rate", "encoder/layer_0")
    # In the batch before, nothing is found until the end.
    before = state.replace(diverged_step=state.diverged_step - 1)
    assert divergence.diagnose(TRAINED, examples, before).term == "gradient"
