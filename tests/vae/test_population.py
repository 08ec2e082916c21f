import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.vae.building import examples, order_of, population
from vae import loss, random, train
from vae.data import Examples
from vae.hparams import HParams, stack
from vae.spec import ModelSpec, ObjectiveSpec, OptimizerSpec, Spec

DATA = examples(29, 6)
STEPS = 12

# Between them the specs read every number of HParams.
ADAM = Spec(
    ModelSpec((6,), 2, depth=1, width=8, activation="tanh", likelihood="gaussian"),
    ObjectiveSpec(beta_schedule="cyclical"),
    OptimizerSpec(name="adamw", schedule="cosine", ema=True),
    batch_size=8,
)
SGD = Spec(
    ModelSpec((6,), 2, depth=1, width=8, residual="scaled", likelihood="gaussian_shared"),
    ObjectiveSpec(beta_schedule="linear", samples=2),
    OptimizerSpec(name="sgd"),
    batch_size=8,
)
ADAM_RUN = HParams(
    beta=0.8,
    beta_cycles=2.0,
    total_steps=12.0,
    free_bits=0.05,
    sigma=0.8,
    learning_rate=0.02,
    eps=1e-4,
    weight_decay=0.01,
    clip_norm=5.0,
    lr_decay_steps=10.0,
    lr_warmup_steps=3.0,
    ema_decay=0.8,
)
SGD_RUN = HParams(learning_rate=3e-3, momentum=0.8, beta_warmup_steps=8.0)


def small(objective, model=(), optimizer=()):
    """A spec of one layer of 8 units, trained by SGD unless the optimiser says otherwise."""
    shape = {"depth": 1, "width": 8, "activation": "tanh", "likelihood": "gaussian"}
    return Spec(
        ModelSpec((6,), 2, **{**shape, **dict(model)}),
        ObjectiveSpec(**objective),
        OptimizerSpec(**{"name": "sgd", **dict(optimizer)}),
        batch_size=8,
    )


BOUND = small({"name": "ciwae", "estimator": "dreg", "samples": 3})
RENYI = small({"name": "renyi", "samples": 3})
CAPACITY = small({"name": "capacity"}, {"likelihood": "student"})
COVARIANCE = small({"name": "dip_ii"}, optimizer={"skip": True})
MOMENTS = small(
    {"name": "mmd", "kernel": "rbf", "corruption": "gaussian"}, {"posterior_scale": "floored"}
)
CODES = small({"name": "vq"}, {"posterior": "vq", "codes": 5, "code_dim": 3})
CATEGORIES = small({}, {"posterior": "categorical", "codes": 3})
GAME = small(
    {"name": "factor", "discriminator_depth": 1, "discriminator_width": 8},
    optimizer={"name": "adam"},
)

# Three values of each; they make runs that end at different parameters.
SWEEPS = {
    (ADAM, ADAM_RUN): {
        "seed": (0, 7, 2**32 - 1),
        "beta": (0.0, 0.8, 4.0),
        "beta_cycles": (1.0, 2.0, 3.0),
        "beta_ramp": (0.25, 0.5, 1.0),
        "free_bits": (0.0, 0.3, 2.0),
        "total_steps": (8.0, 12.0, 20.0),
        "sigma": (0.3, 0.8, 2.0),
        "init_gain": (0.5, 1.0, 1.5),
        "learning_rate": (1e-4, 3e-3, 2e-2),
        "b1": (0.0, 0.5, 0.9),
        "b2": (0.9, 0.99, 0.999),
        "eps": (1e-6, 1e-3, 1.0),
        "weight_decay": (0.0, 0.1, 1.0),
        "clip_norm": (0.1, 2.0, float("inf")),
        "lr_warmup_steps": (0.0, 5.0, 50.0),
        "lr_decay_steps": (5.0, 10.0, 100.0),
        "lr_decay_rate": (0.0, 0.1, 0.9),
        "ema_decay": (0.0, 0.2, 0.9),
    },
    (SGD, SGD_RUN): {"momentum": (0.0, 0.5, 0.9), "beta_warmup_steps": (0.0, 5.0, 50.0)},
    (BOUND, SGD_RUN): {"ciwae_beta": (0.0, 0.3, 1.0), "dreg_alpha": (0.0, 0.5, 1.0)},
    (RENYI, SGD_RUN): {"renyi_alpha": (0.0, 0.5, 2.0)},
    (CAPACITY, SGD_RUN.replace(capacity=2.0, capacity_steps=5.0)): {
        "capacity": (0.0, 0.5, 2.0),
        "capacity_steps": (0.0, 5.0, 50.0),
        "student_df": (2.5, 5.0, 50.0),
    },
    (COVARIANCE, SGD_RUN): {
        "penalty": (0.0, 1.0, 10.0),
        "penalty_diagonal": (0.0, 1.0, 10.0),
        "skip_norm": (3.0, 6.0, float("inf")),
    },
    (MOMENTS, SGD_RUN.replace(penalty=3.0)): {
        "bandwidth": (0.3, 1.0, 3.0),
        "corruption_level": (0.0, 0.3, 1.0),
        "rate_floor": (0.05, 0.3, 1.0),
    },
    (CODES, SGD_RUN): {"commitment": (0.0, 0.25, 1.0), "codebook_decay": (0.0, 0.5, 0.99)},
    (CATEGORIES, SGD_RUN.replace(temperature_steps=5.0)): {
        "temperature": (0.7, 1.0, 2.0),
        "temperature_min": (0.2, 0.5, 0.9),
        "temperature_steps": (2.0, 5.0, 50.0),
    },
    (GAME, HParams(learning_rate=0.02, eps=1e-3)): {
        "encoder_lr_factor": (0.0, 0.5, 2.0),
        "discriminator_lr_factor": (0.0, 0.5, 2.0),
        "discriminator_b1": (0.0, 0.5, 0.9),
    },
}
FIELDS = [(spec, base, name) for (spec, base), fields in SWEEPS.items() for name in fields]


def trained(spec, runs, num_steps=STEPS, pack="vmap"):
    result = population(spec, list(runs))
    return train.train_chunk(spec, pack, result, DATA, num_steps)


@functools.cache
def solo(spec, run):
    return trained(spec, [run])


def run_of(population, i):
    return jax.tree.map(lambda a: a[i], (population.states, population.interval))


def assert_close(a, b):
    """Equal but for the order of sums: some roundings of 6e-8 in each of a dozen steps.

    Adam divides by the root of its second moment: an entry with a gradient of rounding size moves
    by a step all the same. `eps` is large enough here that it does not.
    """
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), a, b)


def assert_same_bits(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_every_number_is_swept():
    names = [name for _, _, name in FIELDS]
    packed = ["latents", "layers"]  # tests/vae/test_packed.py
    assert sorted(names + packed) == sorted(field.name for field in dataclasses.fields(HParams))


@pytest.mark.sampled
@pytest.mark.parametrize(("spec", "base", "field"), FIELDS, ids=[name for *_, name in FIELDS])
def test_a_run_in_a_population_is_the_run_alone(spec, base, field):
    runs = [dataclasses.replace(base, **{field: value}) for value in SWEEPS[spec, base][field]]
    together = trained(spec, runs)
    assert not np.any(together.states.diverged)
    for i, run in enumerate(runs):
        assert_close(run_of(together, i), run_of(solo(spec, run), 0))
    # The three differ, by more than the tolerance: the number arrives.
    for i, j in ((0, 1), (1, 2), (0, 2)):
        apart = [
            np.max(np.abs(leaf[i] - leaf[j]))
            for leaf in jax.tree.leaves(together.states.eval_params)
        ]
        assert max(apart) > 1e-4


THREE = [dataclasses.replace(ADAM_RUN, seed=s, beta=b) for s, b in ((0, 0.5), (1, 1.0), (2, 2.0))]


def test_permuting_the_runs_permutes_the_results():
    # The same program: each run's sums are in the same order wherever it stands.
    straight, shuffled = trained(ADAM, THREE), trained(ADAM, [THREE[i] for i in (2, 0, 1)])
    for i, j in enumerate((2, 0, 1)):
        assert_same_bits(run_of(shuffled, i), run_of(straight, j))


def test_both_packings_give_the_same():
    vmapped, mapped = trained(ADAM, THREE), trained(ADAM, THREE, pack="map")
    assert_close((vmapped.states, vmapped.interval), (mapped.states, mapped.interval))
    assert mapped.step == STEPS


def test_the_initial_state_does_not_depend_on_the_population():
    together = population(ADAM, THREE)
    for i, run in enumerate(THREE):
        alone = population(ADAM, [run])
        assert_close(run_of(together, i), run_of(alone, 0))


def test_noise_and_order_do_not_depend_on_the_population():
    # Bitwise, for these are integers' work: 3 seeds in a vmap, and one by one.
    seeds = jnp.uint32([0, 1, 2**32 - 1])

    def draws(seed):
        rngs = random.example_rngs(random.stream(seed, 3), jnp.arange(4))
        batch = loss.batch_at(SGD, DATA, seed, jnp.int32(2))
        return batch.index, jax.vmap(lambda k: jax.random.bits(k, (5,)))(rngs)

    together = jax.vmap(draws)(seeds)
    for i, seed in enumerate(seeds):
        assert_same_bits(jax.tree.map(lambda a, i=i: a[i], together), draws(seed))
    # An example's draw does not depend on its batch either.
    alone = random.example_rngs(random.stream(seeds[0], 3), jnp.array([2]))
    np.testing.assert_array_equal(jax.random.bits(alone[0], (5,)), together[1][0, 2])


def test_a_group_is_traced_once():
    trained(ADAM, THREE)
    others = population(ADAM, [dataclasses.replace(r, seed=9, beta=3.0) for r in THREE])
    with jax.no_tracing():
        others = train.train_chunk(ADAM, "vmap", others, DATA, 5)
        train.train_chunk(ADAM, "vmap", others, DATA, 8)
    with pytest.raises(RuntimeError, match="re-tracing"), jax.no_tracing():
        train.train_chunk(dataclasses.replace(ADAM, batch_size=4), "vmap", others, DATA, 8)


def test_stack_has_one_type_a_leaf():
    runs = stack([HParams(seed=2**32 - 1), HParams(beta=2.0)])
    for field in dataclasses.fields(HParams):
        leaf = getattr(runs, field.name)
        assert leaf.shape == (2,)
        assert leaf.dtype == (jnp.uint32 if field.name == "seed" else jnp.float32)
    assert runs.seed.tolist() == [2**32 - 1, 0] and runs.beta.tolist() == [1.0, 2.0]


class TestDivergence:
    """One run of sixteen gets a learning rate that throws it out of float32."""

    BAD = 5
    RUNS = tuple(
        dataclasses.replace(SGD_RUN, seed=i % 4, momentum=0.2 * (i // 4)) for i in range(16)
    )

    @pytest.fixture(scope="class")
    @classmethod
    def sick(cls):
        """The population, after each step."""
        runs = list(cls.RUNS)
        runs[cls.BAD] = dataclasses.replace(runs[cls.BAD], learning_rate=1e6)
        result, states = population(SGD, runs), []
        for _ in range(STEPS):
            states.append(jax.tree.map(jnp.copy, result))
            result = train.train_chunk(SGD, "vmap", result, DATA, 1)
        return [*states, result]

    def test_the_run_freezes_at_its_last_good_state(self, sick):
        end = run_of(sick[-1], self.BAD)[0]
        step = int(end.diverged_step)
        assert end.diverged and 0 < step < STEPS - 2
        assert end.step == STEPS
        before = run_of(sick[step], self.BAD)[0]
        assert not before.diverged and before.diverged_step == -1
        for state in (end, before):
            assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves(state.params))
        assert_same_bits(end.params, before.params)
        assert_same_bits(end.stats, before.stats)

    def test_its_means_are_those_of_its_finite_steps(self, sick):
        state, interval = run_of(sick[-1], self.BAD)
        assert interval.count == state.diverged_step
        assert all(np.isfinite(v) for v in interval.means.values())
        assert np.all(np.isfinite(interval.grad_norms))

    def test_the_step_that_diverged_is_the_first_bad_one(self, sick):
        state, _ = run_of(sick[-1], self.BAD)
        step = int(state.diverged_step)
        batch = loss.batch_at(SGD, DATA, state.hparams.seed, jnp.int32(step))

        @jax.jit
        def loss_and_gradient(state):
            def value_of(params):
                return loss.batch_loss(
                    SGD, DATA.transform, params, state.stats, state.hparams, jnp.int32(step), batch
                )[0]

            return jax.value_and_grad(value_of)(state.params)

        value, grads = loss_and_gradient(state)
        norm = np.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))
        assert not (np.isfinite(value) and np.isfinite(norm))

    def test_a_frozen_run_stays_frozen_when_batches_are_good_again(self):
        # One example is not a number: a run meets it once an epoch, or not at all.
        bad = Examples(DATA.raw.at[4].set(jnp.nan), DATA.transform)
        result, states = population(SGD, list(self.RUNS)), []
        for _ in range(STEPS):
            states.append(jax.tree.map(jnp.copy, result))
            result = train.train_chunk(SGD, "vmap", result, bad, 1)
        meetings = {
            seed: [
                step
                for step in range(STEPS)
                if 4 in order_of(seed, step // 3, 29)[step % 3 * 8 :][:8]
            ]
            for seed in range(4)
        }
        for i, run in enumerate(self.RUNS):
            end, interval = run_of(result, i)
            first = meetings[run.seed][0]
            assert first < STEPS - 1 and end.diverged_step == interval.count == first
            assert_same_bits(end.params, run_of(states[first], i)[0].params)

    def test_the_others_are_what_they_would_have_been(self, sick):
        healthy = trained(SGD, self.RUNS)
        assert not np.any(healthy.states.diverged)
        for i in range(16):
            if i != self.BAD:
                assert_same_bits(run_of(sick[-1], i), run_of(healthy, i))


@pytest.mark.sampled
@pytest.mark.parametrize("pack", ["vmap", "map"])
@pytest.mark.parametrize("name", ["adam", "codes", "game", "parts"])
def test_a_chunk_trains_in_the_memory_of_the_population_that_it_is_given(name, pack):
    """Every leaf is donated: the compiled program writes each where it has read it."""
    parts = dataclasses.replace(ADAM, accumulate=2, remat="layers", precision="bfloat16")
    spec, run = {
        "adam": (ADAM, ADAM_RUN),
        "codes": (CODES, SGD_RUN),
        "game": (GAME, HParams()),
        "parts": (parts, ADAM_RUN),
    }[name]
    before = population(spec, [run, dataclasses.replace(run, seed=1)])
    program = train.train_chunk.lower(spec, pack, before, DATA, jnp.int32(1)).compile()
    leaves = jax.tree.leaves(before)
    (header,) = [line for line in program.as_text().splitlines() if "input_output_alias" in line]
    pairs = re.findall(r"\{(\d+)\}: \((\d+), \{\}, (?:may|must)-alias\)", header)
    # JAX may leave out arguments that a program does not read: results are counted.
    assert sorted(int(output) for output, _ in pairs) == list(range(len(leaves)))
    assert len({argument for _, argument in pairs}) == len(leaves)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    assert program.memory_analysis().alias_size_in_bytes == size
