"""Aggressive training of a lagging encoder averts posterior collapse (He et al. 2019).

Early in training the means of the model's posterior p(z|x) spread over x, those of the encoder's
q(z|x) do not: its points lie on the axis of the model's means, the encoder lags, and the decoder
learns to do without z. With many updates of the encoder before each of the decoder the points go to
the diagonal, and z is used.

Data: sequences of 10 tokens of 16, p(x_t|x_{t−1}, s) ∝ exp(A[x_{t−1}, x_t] + s B[x_{t−1}, x_t]),
A and B of independent N(0, 1), s from four narrow Gaussians: a Markov chain that depends on a
number. Model: embedding and GRU of 32 units to q(z|x), z a scalar; p(x_t|x_{<t}, z) by a GRU of 32
units that reads z at each step; weights start in ± .1; SGD at ½, gradients clipped to a norm of 5.
Theirs: sequences from an LSTM, LSTMs, and text.

Basic training updates both at once. Aggressive training (algorithm 1): up to 100 updates of the
encoder before each of the decoder, until the mean loss of 15 no longer falls; and this until the
mutual information of x and z, estimated each epoch, no longer grows. An epoch is of 256 updates of
the decoder: of far fewer, the information may fall by noise alone and end the phase early. E[z|x]
under the model is a sum over a grid of z, and so is log p(x).

Asked, of each of 5 seeds, on held-out sequences. After an epoch of basic training the model's means
vary (by more than the variance of active units, .01), the encoder's do not, and the slope of the
encoder's on the model's is at most ½; in the aggressive phase it is at least ½, nearer to the
diagonal than to the axis. At the end the basic run is (.01, .01)-collapsed, the aggressive one is
not, and it has .1 nats more of rate and of mutual information. Data, widths, learning rate and the
length of an epoch were settled after first looks, so that the basic run collapses: what is asked is
what aggressive training does about it.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.report import canvas, style
from experiments.studies.cases import Context, Found
from experiments.studies.quantity import Quantity, of_seeds
from vae import distributions, optimizers, penalties, random
from vae.aggressive import WINDOW
from vae.evaluate import ACTIVE_UNIT_VARIANCE
from vae.gradients import collapse

ID = "A13"
SEEDS = 5
TOKENS, LENGTH, EMBEDDING, HIDDEN = 16, 10, 16, 32
EXAMPLES, HELD_OUT, BATCH = 8192, 256, 32
RATE, CLIP, ENCODER_STEPS = 0.5, 5.0, 100
# Epochs after which the runs are looked at; the last is the end.
LOOKS = {"quick": (0, 1, 2, 3, 4), "full": (0, 1, 2, 4, 8, 16)}
GRID = np.linspace(-6, 6, 97)
_PAPER = "He et al. 2019"


def cases(budget: str) -> list[dict[str, Any]]:
    looks = list(LOOKS[budget])
    return [{"aggressive": aggressive, "looks": looks} for aggressive in (0, 1)]


def run(arguments: dict[str, Any], context: Context) -> dict[str, Any]:
    """All seeds in one program: what `look` sees, and which were `active`, [looks, seeds, ...]."""
    del context
    seeds = jnp.arange(SEEDS, dtype=jnp.uint32)
    train, held_out, params = jax.jit(jax.vmap(_start))(seeds)
    active = jnp.full(SEEDS, bool(arguments["aggressive"]))
    information, seen = jnp.zeros(SEEDS), []
    for number in range(arguments["looks"][-1] + 1):
        if number:
            # Where no run is in the phase any more, nobody has to wait for its loop.
            aggressive, of = bool(active.any()), (params, train, held_out, seeds)
            params, active, information = _epoch(
                aggressive, *of, jnp.asarray(number), active, information
            )
        if number in arguments["looks"]:
            seen.append(look(params, held_out) | {"active": active})
    return jax.tree.map(lambda *of: np.stack(of), *seen)


def _start(seed):
    rng = random.stream(seed, random.INIT)
    x = sequences(jax.random.fold_in(rng, 0), EXAMPLES + HELD_OUT)
    return x[:EXAMPLES], x[EXAMPLES:], init(jax.random.fold_in(rng, 1))


def sequences(rng: jax.Array, count: int) -> jax.Array:
    """`count` sequences of the Markov chain, int32 [count, LENGTH]."""
    a_rng, b_rng, rng = jax.random.split(rng, 3)
    a, b = (jax.random.normal(key, (TOKENS, TOKENS)) for key in (a_rng, b_rng))

    def one(rng):
        which_rng, noise_rng, first_rng, rng = jax.random.split(rng, 4)
        which = jax.random.choice(which_rng, jnp.asarray([-2.0, -2 / 3, 2 / 3, 2.0]))
        s = which + 0.1 * jax.random.normal(noise_rng)

        def step(token, rng):
            token = jax.random.categorical(rng, a[token] + s * b[token])
            return token, token

        first = jax.random.randint(first_rng, (), 0, TOKENS)
        return jax.lax.scan(step, first, jax.random.split(rng, LENGTH))[1]

    return jax.vmap(one)(jax.random.split(rng, count))


def init(rng: jax.Array) -> dict[str, Any]:
    """Parameters of the encoder and the decoder; weights in ± .1, biases 0."""
    rngs = iter(jax.random.split(rng, 8))

    def weights(*shape):
        return jax.random.uniform(next(rngs), shape, jnp.float32, -0.1, 0.1)

    def part(tokens, inputs, outputs):
        return {
            "embedding": weights(tokens, EMBEDDING),
            "input": weights(EMBEDDING + inputs, 3 * HIDDEN),
            "state": weights(HIDDEN, 3 * HIDDEN),
            "bias": jnp.zeros(3 * HIDDEN),
            "head": weights(HIDDEN, outputs),
            "head_bias": jnp.zeros(outputs),
        }

    # The decoder's first input is a token of its own.
    return {"encoder": part(TOKENS, 0, 2), "decoder": part(TOKENS + 1, 1, TOKENS)}


def _gru(part: dict[str, jax.Array], tokens: jax.Array, extra: jax.Array) -> jax.Array:
    """The states [T, HIDDEN] over tokens [T], `extra` [n] being in each input; Cho et al. 2014."""
    weights = part["input"]
    added = part["bias"] + extra @ weights[EMBEDDING:]
    inputs = (part["embedding"] @ weights[:EMBEDDING])[tokens] + added[None]

    def step(state, given):
        held = state @ part["state"]
        gates = jax.nn.sigmoid(given[: 2 * HIDDEN] + held[: 2 * HIDDEN])
        reset, update = gates[:HIDDEN], gates[HIDDEN:]
        new = jnp.tanh(given[2 * HIDDEN :] + reset * held[2 * HIDDEN :])
        state = (1 - update) * new + update * state
        return state, state

    return jax.lax.scan(step, jnp.zeros(HIDDEN), inputs)[1]


def encode(params: dict[str, Any], x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and log-variance of q(z|x), scalars, of a sequence [T]."""
    part = params["encoder"]
    mean, logvar = _gru(part, x, jnp.zeros(0))[-1] @ part["head"] + part["head_bias"]
    return mean, logvar


def log_px(params: dict[str, Any], x: jax.Array, z: jax.Array) -> jax.Array:
    """log p(x|z), nats, of a sequence [T] and a scalar z."""
    part = params["decoder"]
    before = jnp.concatenate([jnp.full(1, TOKENS, x.dtype), x[:-1]])
    logits = _gru(part, before, z[None]) @ part["head"] + part["head_bias"][None]
    return jnp.sum(jnp.take_along_axis(jax.nn.log_softmax(logits), x[:, None], axis=1))


def _draw(params, x, rng):
    """A sample of each q(z|x) of x [N, T], with means and log-variances; [N] each."""
    mean, logvar = jax.vmap(lambda x: encode(params, x))(x)
    return mean + jnp.exp(0.5 * logvar) * jax.random.normal(rng, mean.shape), mean, logvar


def _loss(params, x, rng):
    """The negative ELBO of a batch, nats per sequence."""
    z, mean, logvar = _draw(params, x, rng)
    distortion = -jax.vmap(lambda x, z: log_px(params, x, z))(x, z)
    return jnp.mean(distortion + distributions.kl_standard_normal(mean, logvar))


def _gradient(params, train, rng):
    """(loss, gradient) of a random batch."""
    index_rng, rng = jax.random.split(rng)
    x = train[jax.random.randint(index_rng, (BATCH,), 0, len(train))]
    return jax.value_and_grad(_loss)(params, x, rng)


def _move(params, gradient, *parts):
    """A step of SGD of these parts, the gradient of them together being clipped."""
    squares = (jnp.sum(jnp.square(g)) for n in parts for g in jax.tree.leaves(gradient[n]))
    rate = RATE * optimizers.clip_factor(jnp.sqrt(sum(squares)), jnp.asarray(CLIP))
    moved = {n: jax.tree.map(lambda p, g: p - rate * g, params[n], gradient[n]) for n in parts}
    return params | moved


def _catch_up(params, train, rng, active):
    """The encoder's own updates, none where not `active`."""

    def body(carry):
        params, number, total, previous, _ = carry
        loss, gradient = _gradient(params, train, jax.random.fold_in(rng, number))
        number, total = number + 1, total + loss
        full = number % WINDOW == 0
        go = ~full | (total / WINDOW < previous)
        previous = jnp.where(full, total / WINDOW, previous)
        return _move(params, gradient, "encoder"), number, jnp.where(full, 0, total), previous, go

    start = params, jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.asarray(jnp.inf), active
    return jax.lax.while_loop(lambda c: c[-1] & (c[1] < ENCODER_STEPS), body, start)[0]


@functools.partial(jax.jit, static_argnums=0)
def _epoch(aggressive, params, train, held_out, seeds, number, active, information):
    """An epoch of all runs; whether each goes on aggressively, and its mutual information."""

    def one(params, train, held_out, seed, active, information):
        def step(params, rng):
            own_rng, rng = jax.random.split(rng)
            if aggressive:
                params = _catch_up(params, train, own_rng, active)
            _, gradient = _gradient(params, train, rng)
            both = _move(params, gradient, "encoder", "decoder")
            if not aggressive:
                return both, None
            decoder = _move(params, gradient, "decoder")
            return jax.tree.map(lambda d, b: jnp.where(active, d, b), decoder, both), None

        rngs = jax.random.split(random.stream(seed, number), EXAMPLES // BATCH)
        params, _ = jax.lax.scan(step, params, rngs)
        new = _information(params, held_out, random.stream(seed, random.ENCODER))
        return params, active & (new > information), new

    return jax.vmap(one)(params, train, held_out, seeds, active, information)


def _information(params, x, rng):
    z, mean, logvar = (a[:, None] for a in _draw(params, x, rng))
    return jnp.mean(penalties.information_gains(z, mean, logvar))


@jax.jit
def look(params: dict[str, Any], held_out: jax.Array) -> dict[str, jax.Array]:
    """Of runs [S] and their sequences [S, N, T].

    Returns:
      encoder, model: E[z|x] under q(z|x) and p(z|x), [S, N]; kl: KL(q(z|x) || p(z)), [S, N], nats;
      information: of x and z, nll: −log p(x), means over sequences, [S], nats.
    """
    grid = jnp.asarray(GRID, jnp.float32)
    log_pz = -0.5 * jnp.square(grid) - 0.5 * math.log(2 * math.pi)

    def one(params, x):
        def posterior(x):
            log_joint = jax.vmap(lambda z: log_px(params, x, z))(grid) + log_pz
            log_p = jax.nn.logsumexp(log_joint) + math.log(GRID[1] - GRID[0])
            return jax.nn.softmax(log_joint) @ grid, log_p

        model, log_p = jax.lax.map(posterior, x, batch_size=32)
        rng = random.stream(jnp.uint32(0), random.EVALUATE)
        _, mean, logvar = _draw(params, x, rng)
        return {
            "encoder": mean,
            "model": model,
            "kl": distributions.kl_standard_normal(mean, logvar),
            "information": _information(params, x, rng),
            "nll": -jnp.mean(log_p),
        }

    return jax.vmap(one)(params, held_out)


def slopes(encoder: np.ndarray, model: np.ndarray) -> np.ndarray:
    """Of the regression of the encoder's means on the model's, over the last axis."""
    encoder, model = (a - a.mean(axis=-1, keepdims=True) for a in (encoder, model))
    return (encoder * model).sum(axis=-1) / np.square(model).sum(axis=-1)


def _of(found: Found, aggressive: int) -> dict[str, np.ndarray]:
    (case,) = found.of(aggressive=aggressive)
    return case.values | {"slope": slopes(case.values["encoder"], case.values["model"])}


def _is_collapsed(kl: np.ndarray) -> np.ndarray:
    return np.array(
        [collapse.collapsed(of[:, None], epsilon=0.01, delta=0.01)[0] for of in jnp.asarray(kl)]
    )


def measure(found: Found) -> list[Quantity]:
    """The lag early on, and rate, information and collapse at the end."""
    basic, aggressive, active = _of(found, 0), _of(found, 1), ACTIVE_UNIT_VARIANCE
    variance = {name: basic[name][1].var(axis=-1) for name in ("model", "encoder")}
    # Looks at which the run was still trained aggressively, but for the one before training.
    phase = aggressive["active"] & (np.arange(len(aggressive["active"])) > 0)[:, None]
    slope = np.where(phase, aggressive["slope"], np.nan)
    ended = {name: (b[-1], a[-1]) for name, b, a in _pairs(basic, aggressive)}
    rows = [
        _asked("variance of the model's means, basic, 1 epoch", variance["model"], ">=", active),
        _asked(
            "variance of the encoder's means, basic, 1 epoch", variance["encoder"], "<=", active
        ),
        _asked("slope of the encoder's means, basic, 1 epoch", basic["slope"][1], "<=", 0.5),
        _asked("slope of the encoder's means, aggressive phase", np.nanmean(slope, 0), ">=", 0.5),
        _asked("collapsed at the end, basic", _is_collapsed(basic["kl"][-1]), ">=", 1),
        _asked("collapsed at the end, aggressive", _is_collapsed(aggressive["kl"][-1]), "<=", 0),
    ]
    still = aggressive["active"][-1]
    rows.append(of_seeds("still in the aggressive phase at the end (1) or not (0)", still))
    for name, (of_basic, of_aggressive) in ended.items():
        rows += [
            of_seeds(f"{name} at the end, basic, nats", of_basic),
            of_seeds(f"{name} at the end, aggressive, nats", of_aggressive),
        ]
        if name != "nll":
            more = of_aggressive - of_basic
            rows.append(_asked(f"{name}, aggressive − basic, nats", more, ">=", 0.1))
    return rows


def _pairs(basic, aggressive):
    yield "rate", basic["kl"].mean(-1), aggressive["kl"].mean(-1)
    for name, key in (("mutual information", "information"), ("nll", "nll")):
        yield name, basic[key], aggressive[key]


def _asked(name: str, values: np.ndarray, relation: str, expected: float) -> Quantity:
    return of_seeds(name, values, expected, relation=relation, source=_PAPER)


def figure(found: Found):
    """The space of posterior means over training, as in their figures 2 and 3; seed 0."""
    looks = found.cases[0].arguments["looks"][1:]
    sheet, panels = canvas.new_figure(2, len(looks), 1.6 * len(looks), 3.5)
    for row, name in enumerate(("basic", "aggressive")):
        of = _of(found, row)
        for column, epoch in enumerate(looks):
            panel = panels[row * len(looks) + column]
            ends = np.array([-2.5, 2.5])
            panel.plot(ends, ends, color=style.MUTED, lw=0.8, ls="--")
            x, y = of["model"][column + 1, 0], of["encoder"][column + 1, 0]
            panel.plot(x, y, ".", color=style.PETROFF[row], ms=2)
            panel.set_xlim(*ends)
            panel.set_ylim(*ends)
            panel.set_aspect("equal")
            if row == 0:
                panel.set_title(f"epoch {epoch}")
            else:
                panel.set_xlabel("E[z|x], model")
            if column == 0:
                panel.set_ylabel(f"{name}\nE[z|x], encoder")
    return sheet
