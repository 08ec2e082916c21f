import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.vae.building import examples, order_of, population
from vae import elbo, loss, objectives, optimizers, random, schedules, train
from vae.data import Examples, Transform
from vae.hparams import HParams
from vae.spec import ModelSpec, ObjectiveSpec, OptimizerSpec, Spec

SPEC = Spec(
    ModelSpec((6,), 2, depth=1, width=8, activation="tanh", likelihood="gaussian"),
    ObjectiveSpec(beta_schedule="linear", samples=2),
    OptimizerSpec(name="sgd", schedule="plateau", plateau_window=2, plateau_patience=2, ema=True),
    batch_size=8,
)
DATA = examples(29, 6)  # three batches of 8 an epoch; 5 examples are left out of each
RUN = HParams(
    seed=5, learning_rate=0.01, beta=0.7, beta_warmup_steps=6.0, momentum=0.5, ema_decay=0.9
)


def trained(hparams, *chunks, spec=SPEC):
    """A population of one after chunks of steps."""
    result = population(spec, [hparams])
    for num_steps in chunks:
        result = train.train_chunk(spec, "vmap", result, DATA, num_steps)
    return result


@functools.cache
def every_step(hparams_key, num_steps):
    """The population after each single step, each with the interval of that step alone."""
    result = population(SPEC, [dataclasses.replace(RUN, **dict(hparams_key))])
    states = [jax.tree.map(jnp.copy, result)]
    for _ in range(num_steps):
        result = train.train_chunk(SPEC, "vmap", train.reset_interval(result), DATA, 1)
        states.append(jax.tree.map(jnp.copy, result))
    return states


def run_of(population):
    return jax.tree.map(lambda a: a[0], population.states)


def assert_same_bits(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


class TestBatches:
    def test_those_of_an_epoch_are_its_order(self):
        for epoch in (0, 4):
            batches = [
                loss.batch_at(SPEC, DATA, jnp.uint32(0), jnp.int32(3 * epoch + i)) for i in range(3)
            ]
            index = np.concatenate([b.index for b in batches])
            np.testing.assert_array_equal(index, order_of(0, epoch, 29)[:24])
            for batch in batches:
                np.testing.assert_array_equal(batch.raw, np.asarray(DATA.raw)[batch.index])

    def test_images_keep_their_shape(self):
        data = Examples(jnp.arange(29 * 4 * 3, dtype=jnp.uint8).reshape(29, 4, 3, 1), Transform())
        batch = loss.batch_at(SPEC, data, jnp.uint32(0), jnp.int32(2))
        assert batch.raw.shape == (8, 4, 3, 1)
        np.testing.assert_array_equal(batch.raw, np.asarray(data.raw)[batch.index])

    def test_training_takes_the_order_of_each_epoch(self):
        # Data that name themselves: the batch's mean distortion at a decoder of zeros says which
        # examples it had. sgd with a rate of almost nothing leaves the decoder as it is.
        raw = jnp.float32(np.arange(29)[:, None] * np.ones(6))
        data = Examples(raw, Transform())
        pop = population(SPEC, [dataclasses.replace(RUN, init_gain=0.0, learning_rate=1e-30)])
        for step in range(7):
            pop = train.train_chunk(SPEC, "vmap", train.reset_interval(pop), data, 1)
            batch = order_of(5, step // 3, 29)[step % 3 * 8 :][:8]
            expected = 3 * np.log(2 * np.pi) + 0.5 * 6 * np.mean(batch.astype(float) ** 2)
            assert float(pop.interval.means["distortion"][0]) == pytest.approx(expected, rel=1e-5)


def test_steps_in_chunks_are_the_steps_in_one():
    # 7 + 13 stops within an epoch; 3 + 17 at its end.
    whole = trained(RUN, 20)
    assert int(whole.step) == int(whole.states.step[0]) == 20
    for chunks in ((7, 13), (3, 17), (0, 20)):
        assert_same_bits(trained(RUN, *chunks), whole)


def test_the_interval_is_the_mean_of_its_steps():
    whole, steps = trained(RUN, 12), every_step((), 12)
    assert whole.interval.count[0] == 12
    for name in train.METRICS:
        values = np.float64([s.interval.means[name][0] for s in steps[1:]])
        assert float(whole.interval.means[name][0]) == pytest.approx(values.mean(), rel=1e-5)
        assert name in ("beta", "learning_rate", "clipped", "skipped") or values.std() > 1e-3
    np.testing.assert_array_equal(whole.interval.grad_norms, steps[-1].interval.grad_norms)
    norms = np.float64(steps[-1].interval.grad_norms[0])
    assert np.linalg.norm(norms) == pytest.approx(
        float(steps[-1].interval.means["grad_norm"][0]), rel=1e-6
    )
    empty = train.reset_interval(whole)
    assert empty.interval.count[0] == 0
    assert all(v[0] == 0 for v in empty.interval.means.values())


def test_reported_values_are_those_of_evaluation():
    # Step 4, by hand: the batch and the noise from their keys, then the terms that evaluation
    # computes, one example at a time.
    before, after = every_step((), 5)[4:6]
    state = run_of(before)
    rows = []
    for i in order_of(5, 1, 29)[8:16]:
        key = jax.random.fold_in(jax.random.fold_in(random.key(jnp.uint32(5)), 4), i)
        noise = jax.random.normal(jax.random.split(key)[1], (2, 2))
        terms, _ = elbo.terms(
            SPEC.model, state.params, state.stats, state.hparams, DATA.raw[i], noise, train=False
        )
        rows.append(objectives.metrics(terms))
    means = {name: float(v[0]) for name, v in after.interval.means.items()}
    for name in ("rate", "distortion", "elbo"):
        assert means[name] == pytest.approx(np.mean([row[name] for row in rows]), rel=1e-5)
    assert means["beta"] == pytest.approx(0.7 * 4 / 6, rel=1e-6)
    expected = means["distortion"] + means["beta"] * means["rate"]
    assert means["loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
def test_mean_of_per_example_gradients(norm):
    spec = dataclasses.replace(SPEC, model=dataclasses.replace(SPEC.model, norm=norm))
    state = run_of(population(spec, [RUN]))
    index = jnp.arange(8, dtype=jnp.int32)

    @jax.jit
    def gradient(index):
        batch = loss.Batch(DATA.raw[index], index)
        batch_loss = functools.partial(loss.batch_loss, spec, Transform())
        return jax.grad(
            lambda p: batch_loss(p, state.stats, state.hparams, state.step + 6, batch)[0]
        )(state.params)

    together = gradient(index)
    each = [gradient(index[i : i + 1]) for i in range(8)]
    # Relative to the largest entry of the layer: an entry near 0 is a sum that cancels.
    error = max(
        float(np.max(np.abs(np.mean([np.float64(a) for a in singles], axis=0) - batch)))
        / max(float(np.max(np.abs(batch))), 1e-3)
        for batch, *singles in zip(
            jax.tree.leaves(together), *(jax.tree.leaves(g) for g in each), strict=True
        )
    )
    if norm == "batch":
        assert error > 1e-2  # as vae.nets says
    else:
        assert error < 2e-6


def test_an_update_is_the_clipped_gradient_times_the_rate():
    clipped = (("clip_norm", 0.5), ("momentum", 0.0))
    free = (("clip_norm", float("inf")), ("momentum", 0.0))
    for step in (0, 3):
        start, end = (run_of(s) for s in every_step(clipped, 4)[step : step + 2])
        norm = float(every_step(clipped, 4)[step + 1].interval.means["grad_norm"][0])
        assert norm > 1  # reported before clipping
        moved = jax.tree.map(lambda a, b: b - a, start.params, end.params)
        length = np.sqrt(sum(np.sum(np.square(np.float64(a))) for a in jax.tree.leaves(moved)))
        assert length == pytest.approx(0.01 * 0.5, rel=1e-4)
    # Its direction is that of the update without clipping.
    small, large = (
        jax.tree.map(lambda a, b: b - a, *(run_of(s).params for s in every_step(key, 1)))
        for key in (clipped, free)
    )
    factor = 0.5 / float(every_step(free, 1)[1].interval.means["grad_norm"][0])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, factor * b, rtol=1e-3, atol=1e-7), small, large
    )


def test_the_moving_average_follows_the_parameters():
    states = [run_of(s) for s in every_step((), 12)]
    assert_same_bits(states[0].ema, states[0].params)
    for t, (old, new) in enumerate(zip(states, states[1:], strict=False)):
        jax.tree.map(
            lambda a, p, b, t=t: np.testing.assert_allclose(
                b, optimizers.ema(a, p, jnp.float32(0.9), jnp.int32(t)), rtol=1e-5, atol=1e-7
            ),
            old.ema,
            new.params,
            new.ema,
        )
    assert_same_bits(states[-1].eval_params, states[-1].ema)


def test_a_plateau_lowers_the_reported_rate():
    # Nothing is learned at this rate, but noise may look like progress: count the halvings.
    states = every_step((("learning_rate", 1e-12), ("beta", 0.0)), 20)
    rates = np.array([s.interval.means["learning_rate"][0] for s in states[1:]]) / 1e-12
    losses = np.array([s.interval.means["loss"][0] for s in states[1:]])
    scale, best, stuck, expected = 1.0, np.inf, 0, []
    for t in range(20):
        if t % 2:
            reading = losses[t - 1 : t + 1].mean()
            stuck = 0 if reading < (1 - 1e-4) * best else stuck + 1
            best = min(best, reading)
            if stuck == 2:
                scale, stuck = scale / 2, 0
        expected.append(scale)
    np.testing.assert_allclose(rates, expected, rtol=1e-5)
    assert expected[-1] < 1


def test_hparams_make_the_schedule_of_the_step():
    for t, state in enumerate(every_step((), 12)[1:]):
        expected = schedules.linear_beta(jnp.int32(t), run_of(state).hparams)
        assert state.interval.means["beta"][0] == pytest.approx(float(expected), rel=1e-6)


def test_updates_with_a_clipped_gradient_are_counted():
    # The median norm as the threshold: some are over it, some are not.
    norms = [float(s.interval.means["grad_norm"][0]) for s in every_step((), 12)[1:]]
    clip = float(np.float32(np.median(norms)))
    states = every_step((("clip_norm", clip), ("learning_rate", 1e-12)), 12)[1:]
    over = [float(s.interval.means["grad_norm"][0]) > clip for s in states]
    assert 0 < sum(over) < 12
    assert [float(s.interval.means["clipped"][0]) for s in states] == over
    assert [int(s.states.clipped[0]) for s in states] == np.cumsum(over).tolist()
    assert all(int(s.states.skipped[0]) == 0 for s in states)


class TestSkippedSteps:
    SPEC = Spec(
        ModelSpec((6,), 2, depth=1, width=8, norm="batch", likelihood="gaussian_optimal"),
        ObjectiveSpec(),
        OptimizerSpec(name="adam", ema=True, skip=True),
        batch_size=8,
    )

    @pytest.fixture(scope="class")
    @classmethod
    def states(cls):
        """After each of nine steps, those of large examples passed over."""
        # Every seventh example is thirty times as large: of those a batch has more or fewer.
        raw = DATA.raw * jnp.where(jnp.arange(29) % 7 == 0, 30.0, 1.0)[:, None]
        data = Examples(raw, Transform())
        run = dataclasses.replace(RUN, ema_decay=0.5, skip_norm=cls.threshold(data))
        return cls.after_each_step(run, data)

    @classmethod
    def after_each_step(cls, run, data):
        pop, states = population(cls.SPEC, [run]), []
        for _ in range(9):
            states.append(jax.tree.map(jnp.copy, pop))
            pop = train.train_chunk(cls.SPEC, "vmap", train.reset_interval(pop), data, 1)
        return [*states, pop]

    @classmethod
    def threshold(cls, data):
        free = cls.after_each_step(dataclasses.replace(RUN, ema_decay=0.5), data)[1:]
        return float(np.median([s.interval.means["grad_norm"][0] for s in free]))

    def test_a_skipped_step_leaves_no_trace(self, states):
        skipped = [float(s.interval.means["skipped"][0]) for s in states[1:]]
        assert set(skipped) == {0.0, 1.0}
        kept = ("params", "stats", "opt_state", "ema")
        for before, after, was in zip(states, states[1:], skipped, strict=False):
            norm = float(after.interval.means["grad_norm"][0])
            assert was == (norm > float(after.states.hparams.skip_norm[0]))
            assert after.states.step[0] == before.states.step[0] + 1
            for name in kept:
                old, new = getattr(before.states, name), getattr(after.states, name)
                if was:
                    assert_same_bits(old, new)
                else:
                    same = jax.tree.map(np.array_equal, old, new)
                    assert not all(jax.tree.leaves(same))
        counts = [int(s.states.skipped[0]) for s in states[1:]]
        assert counts == np.cumsum(skipped).tolist()
        assert not states[-1].states.diverged[0]

    def test_without_a_threshold_nothing_is_skipped(self):
        # A bias in front of BatchNorm has no gradient but what sums of numbers of size 1 leave in
        # float32, some 1e-7, which differs between programs. An ε of 1e-8 would make steps of it.
        run = dataclasses.replace(RUN, eps=1e-2)
        pop = population(self.SPEC, [run])
        plain = dataclasses.replace(self.SPEC, optimizer=OptimizerSpec(name="adam", ema=True))
        other = population(plain, [run])
        pop = train.train_chunk(self.SPEC, "vmap", pop, DATA, 5)
        other = train.train_chunk(plain, "vmap", other, DATA, 5)
        assert pop.states.skipped[0] == 0
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
            pop.states,
            other.states,
        )


def test_the_encoder_and_its_flow_have_a_rate_of_their_own():
    spec = Spec(
        ModelSpec((6,), 2, depth=1, width=8, posterior="coupling", prior="mixture", flow_width=4),
        optimizer=OptimizerSpec(name="sgd"),
        batch_size=8,
    )
    changes = []
    for factor in (1.0, 0.25):
        start = population(spec, [HParams(learning_rate=0.01, encoder_lr_factor=factor)])
        before = jax.tree.map(jnp.copy, start.states.params)
        after = train.train_chunk(spec, "vmap", start, DATA, 1).states.params
        changes.append(jax.tree.map(lambda a, b: np.float64(b) - np.float64(a), before, after))
    for part in changes[0]:
        times = 0.25 if part in ("encoder", "posterior") else 1.0
        # The change is a difference of float32 parameters of size 1: its error is 1e-7.
        jax.tree.map(
            lambda a, b, times=times: np.testing.assert_allclose(b, times * a, atol=2e-7),
            changes[0][part],
            changes[1][part],
        )
        assert max(np.max(np.abs(a)) for a in jax.tree.leaves(changes[0][part])) > 1e-5


@pytest.mark.parametrize("part", ["encoder", "decoder", ""])
def test_a_held_part_has_no_gradient_and_the_other_its_own(part):
    names = {
        "encoder": {"encoder", "posterior"},
        "decoder": {"decoder", "likelihood", "prior"},
        "": set(),
    }[part]
    params = {
        name: jnp.float32(i)
        for i, name in enumerate(("encoder", "posterior", "decoder", "likelihood", "prior"), 1)
    }

    def total(params):
        return sum(jnp.square(v) for v in loss.hold(params, part).values())

    grads = jax.grad(total)(params)
    for name, value in params.items():
        assert float(grads[name]) == (0 if name in names else 2 * float(value))


def test_corruption_is_what_it_says():
    x, keys = jnp.full(4, 0.5), jax.random.split(jax.random.key(0), 20_000)
    numbers = HParams(corruption_level=0.3)

    def seen(kind):
        return np.float64(jax.vmap(lambda k: loss.corrupt(kind, numbers, x, k))(keys))

    np.testing.assert_array_equal(loss.corrupt("none", numbers, x, keys[0]), x)
    noise = seen("gaussian") - 0.5
    n = noise.size
    # Five standard errors: σ/√n of a mean, σ/√(2n) of a standard deviation.
    assert abs(noise.mean()) < 5 * 0.3 / np.sqrt(n)
    assert abs(noise.std() - 0.3) < 5 * 0.3 / np.sqrt(2 * n)
    masked = seen("mask")
    assert set(np.unique(masked)) == {0.0, 0.5}
    assert abs(np.mean(masked == 0) - 0.3) < 5 * np.sqrt(0.3 * 0.7 / n)


def test_the_decoder_is_asked_for_the_clean_example():
    # The encoder is deaf, so that the corruption cannot reach the loss but through the target.
    losses = {}
    for kind in ("none", "gaussian", "mask"):
        spec = dataclasses.replace(
            SPEC, objective=dataclasses.replace(SPEC.objective, corruption=kind)
        )
        deaf = dataclasses.replace(RUN, init_gain=0.0, corruption_level=0.7)
        pop = train.train_chunk(spec, "vmap", population(spec, [deaf]), DATA, 1)
        losses[kind] = float(pop.interval.means["distortion"][0])
    assert losses["none"] == losses["gaussian"] == losses["mask"]
