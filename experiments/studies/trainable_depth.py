"""tanh nets train up to a depth of about 6ξ_c, the depth scale of correlations (Schoenholz 2017).

Schoenholz et al. 2017, "Deep information propagation". With weights of variance σ_w²/n and biases
of variance σ_b², in wide nets (z, z1, z2 standard normal; u2 = √q(c·z1 + √(1 − c²)·z2)):

  q* = σ_w² E tanh²(√q* z) + σ_b²                  what E h² comes to, h before the activation
  χ = σ_w² E tanh′²(√q* z)                         factor of E (∂ℓ/∂h)² per layer, back
  c ↦ [σ_w² E tanh(u1) tanh(u2) + σ_b²]/q*         correlation of two inputs, c* where it ends
  ξ_c = −1/ln(σ_w² E tanh′(u1) tanh′(u2)) at c*    layers in which it comes nearer by e

χ = 1 is critical: below it c* = 1 and gradients vanish, above it c* < 1 and they explode, and in
both ξ_c is finite, so that no input can be told from another after a few ξ_c layers.

First the integrals (by Gauss and Hermite's quadrature), and q, χ, c and ξ_c in nets of the
library's layers, 512 wide, with inputs in pairs of correlation .9 and .1. They depart from wide
nets by terms of 1/n, and 40 nets a seed leave a noise of .5% of χ: the tolerance is 1%. For the
scale on which correlations decay it is 10%, as a tenth of the difference is left after 25 layers.

Then training: nets of 128 units classify digits, 300 steps of SGD on batches of 32, with the better
of two learning rates, because the largest that is stable falls with depth. A net counts as trained
where its accuracy on the training set is nearer to 1 than to chance, .1. Asked is (1) that the
depth up to which nets train goes with ξ_c over eight σ_w²: a rank correlation above .643, which
chance exceeds one time in twenty (Zar 1972, n = 8); (2) that L ≤ 6ξ_c tells four fifths of the nets
right, as the mean of its shares of those that train and of those that do not (chance: one half).
The constant 6 is the paper's, and hangs on the learning rate and the number of steps.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from experiments.report import canvas, style
from experiments.studies import mean_field
from experiments.studies.cases import Context, Found
from experiments.studies.quantity import Quantity, exact, of_seeds
from vae import data
from vae.gradients import signal
from vae.model import Params
from vae.spec import ModelSpec

ID = "A7"
BIAS = 0.05  # σ_b²
WEIGHTS = (1.2, 1.5, 1.76, 2.0, 2.4, 2.8, 3.4, 4.0)  # σ_w²
DEPTHS = {"quick": (10, 20, 40, 60, 80), "full": (5, 10, 15, 20, 25, 30, 40, 50, 60, 80)}
SEEDS = {"quick": 3, "full": 10}
WIDTH, BATCH, STEPS, LEARNING_RATES = 128, 32, 300, (0.003, 0.01)
CLASSES, TRAINED = 10, 0.55
CRITICAL = {0.01: 1.4242, 0.05: 1.7610, 0.1: 1.9861, 0.3: 2.5051}
# σ_w²: q*, χ, c*, ξ_c at σ_b² = .05.
ELSEWHERE = {1.3: (0.3153, 0.8802, 1.0, 7.83), 2.5: (1.0640, 1.1335, 0.4468, 11.80)}
NET_WIDTH, NET_DEPTH, NETS, NET_SEEDS = 512, 30, 40, 5
PAIRS = 8  # of inputs in each net, of either correlation
WINDOW = slice(5, 26)  # layers over which correlations are fitted


def cases(budget: str) -> list[dict]:
    nets = [{"what": "net", "weights": w, "seeds": NET_SEEDS} for w in ELSEWHERE]
    training = [
        {"what": "train", "depth": depth, "seeds": SEEDS[budget]} for depth in DEPTHS[budget]
    ]
    return nets + training


def run(arguments: dict, context: Context) -> dict:
    del context
    if arguments["what"] == "train":
        return {"accuracy": _train(arguments["depth"], arguments["seeds"])}
    return _nets(arguments["weights"], arguments["seeds"])


# --- Nets of finite width


def mean_field_net(
    spec: ModelSpec, rng: jax.Array, outputs: int, weights: jax.Array, bias: float
) -> Params:
    """Parameters with weights of variance σ_w²/n and biases of variance σ_b²; the head's is 0."""
    net_rng, bias_rng = jax.random.split(rng)
    params, _ = signal.random_net(spec, net_rng, outputs, jnp.sqrt(weights))
    drawn = math.sqrt(bias) * jax.random.normal(bias_rng, (spec.depth, spec.widths[0]))
    layers = {
        f"layer_{i}": {"dense": {**params[f"layer_{i}"]["dense"], "bias": drawn[i]}}
        for i in range(spec.depth)
    }
    return {**params, **layers}


def _spec(inputs: int, depth: int, width: int) -> ModelSpec:
    return ModelSpec((inputs,), depth=depth, width=width, activation="tanh", init="lecun")


def starts(weights: float) -> tuple[float, tuple[float, float]]:
    """(second moment of x that has q* in the first layer, correlations of near and far pairs)."""
    return (mean_field.fixed_q(weights, BIAS) - BIAS) / weights, (0.9, 0.1)


def _nets(weights: float, seeds: int) -> dict[str, np.ndarray]:
    """Of `NETS` nets for each seed: q, E (∂ℓ/∂h)², c of near and of far pairs: [seeds, L].

    The inputs have the second moment at which q is q* from the first layer on.
    """
    size, (near, far) = starts(weights)
    found = _measured(
        _spec(NET_WIDTH, NET_DEPTH, NET_WIDTH),
        jax.random.split(jax.random.key(0), seeds * NETS),
        jnp.float32(weights),
        jnp.float32(size),
        jnp.float32([near, far]),
    )
    return {
        name: np.asarray(values, np.float64).reshape(seeds, NETS, -1).mean(axis=1)
        for name, values in found.items()
    }


@functools.partial(jax.jit, static_argnums=0)
def _measured(spec, keys, weights, size, correlations):
    def pairs(rng, c):
        first, other = jax.random.normal(rng, (2, PAIRS, *spec.example_shape))
        second = c * first + jnp.sqrt(1 - c * c) * other
        return jnp.stack([first, second], axis=1) * jnp.sqrt(size)

    def cosine(h):  # [..., 2, n]
        products = jnp.sum(h[..., 0, :] * h[..., 1, :], axis=-1)
        return products / jnp.sqrt(jnp.prod(jnp.sum(jnp.square(h), axis=-1), axis=-1))

    def one(rng):
        rngs = jax.random.split(rng, 4)
        params = mean_field_net(spec, rngs[0], 16, weights, BIAS)
        x = jnp.stack([pairs(rngs[i], c) for i, c in zip((1, 2), correlations, strict=True)])
        cotangent = jax.random.normal(rngs[3], (4 * PAIRS, 16))
        seen = signal.propagate(spec, params, {}, x.reshape(4 * PAIRS, -1), cotangent)
        layers = [f"encoder/layer_{i}" for i in range(spec.depth)]
        h = jnp.stack([seen.forward[name]["pre"] for name in layers])
        back = jnp.stack([seen.backward[name]["pre"] for name in layers])
        near, far = jnp.mean(cosine(h.reshape(spec.depth, 2, PAIRS, 2, -1)), axis=2).T
        return {
            "q": jnp.mean(jnp.square(h), axis=(1, 2)),
            "gradient": jnp.mean(jnp.square(back), axis=(1, 2)),
            "near": near,
            "far": far,
        }

    return jax.lax.map(one, keys)


# --- Training


def _train(depth: int, seeds: int) -> np.ndarray:
    """Accuracy on the training set after `STEPS` steps, [seeds, σ_w²]; of the better rate."""
    digits = data.load("digits", scaling="standardize")
    x = digits.train.reshape(len(digits.train), -1).astype(np.float32)
    x = x * np.float32(digits.transform.scale) + np.float32(digits.transform.offset)
    seed, weights, rate = (
        a.ravel() for a in np.meshgrid(np.arange(seeds), WEIGHTS, LEARNING_RATES, indexing="ij")
    )
    accuracy = _trained(
        _spec(x.shape[1], depth, WIDTH),
        jax.vmap(jax.random.key)(seed.astype(np.uint32)),
        weights.astype(np.float32),
        rate.astype(np.float32),
        x,
        digits.train_labels,
    )
    return np.asarray(accuracy, np.float64).reshape(seeds, len(WEIGHTS), -1).max(axis=2)


@functools.partial(jax.jit, static_argnums=0)
def _trained(spec, keys, weights, rates, x, labels):
    def loss(params, x, labels):
        logits, _ = signal.apply_net(spec, params, {}, x, {})
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1))

    def one(rng, weights, rate):
        init_rng, order_rng = jax.random.split(rng)
        params = mean_field_net(spec, init_rng, CLASSES, weights, BIAS)
        rows = jax.random.randint(order_rng, (STEPS, BATCH), 0, len(x))

        def step(i, params):
            gradient = jax.grad(loss)(params, x[rows[i]], labels[rows[i]])
            return jax.tree.map(lambda p, g: p - rate * g, params, gradient)

        params = jax.lax.fori_loop(0, STEPS, step, params)
        logits, _ = signal.apply_net(spec, params, {}, x, {})
        return jnp.mean((jnp.argmax(logits, axis=1) == labels).astype(jnp.float32))

    return jax.vmap(one)(keys, weights, rates)


# --- Verdicts


def trained_depth(depths: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
    """Depth at which accuracy [L, ...] first falls below `TRAINED`, between two by a line: [...].

    The largest depth where it does not; 0 where it does at the smallest.
    """
    flat = accuracy.reshape(len(depths), -1)
    found = np.full(flat.shape[1], float(depths[-1]))
    for j, column in enumerate(flat.T):
        below = np.flatnonzero(column < TRAINED)
        if below.size and below[0] == 0:
            found[j] = 0.0
        elif below.size:
            i = below[0]
            share = (column[i - 1] - TRAINED) / (column[i - 1] - column[i])
            found[j] = depths[i - 1] + share * (depths[i] - depths[i - 1])
    return found.reshape(accuracy.shape[1:])


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, with mean ranks for ties; 0 where all of one are equal."""
    from scipy import stats

    ranks = [stats.rankdata(v) for v in (a, b)]
    if any(np.ptp(r) == 0 for r in ranks):
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def agreement(predicted: np.ndarray, seen: np.ndarray) -> float:
    """Mean of the shares of `seen` and of not `seen` that are predicted; nan without either."""
    if seen.all() or not seen.any():
        return math.nan
    return float((predicted[seen].mean() + (~predicted[~seen]).mean()) / 2)


def measure(found: Found) -> list[Quantity]:
    """The integrals, nets of finite width, and the map of training."""
    rows = [
        exact(
            f"critical σ_w² at σ_b² = {bias:g}",
            mean_field.critical_weights(bias),
            expected,
            1e-4,
            source="an independent program",
        )
        for bias, expected in CRITICAL.items()
    ]
    for case in found.of(what="net"):
        rows += _of_nets(case.arguments["weights"], case.values)
    training = found.of(what="train")
    if training:
        rows += _of_training(
            np.array([case.arguments["depth"] for case in training]),
            np.stack([case.values["accuracy"] for case in training]),
        )
    return rows


def decay(near: np.ndarray, far: np.ndarray) -> np.ndarray:
    """ξ of near − far ~ e^{−l/ξ} over the layers of `WINDOW`, [..., L] ↦ [...]."""
    gap = np.log((near - far)[..., WINDOW])
    layers = np.arange(gap.shape[-1])
    centred = layers - layers.mean()
    return -(centred @ centred) / (gap @ centred)


def _of_nets(weights: float, values: dict[str, np.ndarray]) -> list[Quantity]:
    q, chi_, c, scale = ELSEWHERE[weights]
    at = f"σ_w² = {weights:g}"
    computed = (
        mean_field.fixed_q(weights, BIAS),
        mean_field.chi(weights, BIAS),
        mean_field.fixed_c(weights, BIAS),
    )
    rows = [
        exact(f"{name}, {at}", value, expected, 1e-4, source="an independent program")
        for name, value, expected in zip(("q*", "χ", "c*"), computed, (q, chi_, c), strict=True)
    ]
    wide_scale = mean_field.depth_scale(weights, BIAS)
    rows.append(exact(f"ξ_c, {at}", wide_scale, scale, 0.01, source="an independent program"))
    near, far = (
        mean_field.curve(weights, BIAS, starts(weights)[0], start, NET_DEPTH)
        for start in starts(weights)[1]
    )
    gradient = np.log(values["gradient"][:, WINDOW])
    layers = np.arange(gradient.shape[1])
    centred = layers - layers.mean()
    factor = np.exp(-(gradient @ centred) / (centred @ centred))
    source = "Schoenholz et al. 2017"
    expected_scale = round(float(decay(near, far)), 2)
    return [
        *rows,
        of_seeds(
            f"nets, {at}: E h²",
            values["q"][:, WINDOW].mean(axis=1),
            round(computed[0], 4),
            round(0.01 * computed[0], 4),
            source=source,
        ),
        of_seeds(
            f"nets, {at}: factor of E (∂ℓ/∂h)² per layer",
            factor,
            round(computed[1], 4),
            round(0.01 * computed[1], 4),
            source=f"{source}; an independent program: "
            + {1.3: "0.875 ± 0.005", 2.5: "1.134 ± 0.006"}[weights],
        ),
        of_seeds(
            f"nets, {at}: c after {NET_DEPTH} layers",
            (values["near"][:, -1] + values["far"][:, -1]) / 2,
            round(float(near[-1] + far[-1]) / 2, 3),
            0.02,
            source=f"{source}, from c = .9 and .1",
        ),
        of_seeds(
            f"nets, {at}: scale of c's decay over layers {WINDOW.start} to {WINDOW.stop - 1}",
            decay(values["near"], values["far"]),
            expected_scale,
            round(0.1 * expected_scale, 2),
            source=f"{source}, over the same layers; ξ_c = {wide_scale:.2f} in the end",
        ),
    ]


def _of_training(depths: np.ndarray, accuracy: np.ndarray) -> list[Quantity]:
    """accuracy: [L, seeds, σ_w²]."""
    scales = np.array([mean_field.depth_scale(w, BIAS) for w in WEIGHTS])
    reached = trained_depth(depths, accuracy)
    predicted = depths[:, None] <= 6 * scales[None]
    inside = reached < depths[-1]
    with np.errstate(invalid="ignore"):
        multiple = np.where(inside, reached / scales[None], np.nan)
    source = "Schoenholz et al. 2017, figure 5"
    return [
        of_seeds(
            "depth up to which nets train: rank correlation with ξ_c",
            [rank_correlation(row, scales) for row in reached],
            0.643,
            relation=">=",
            source=source,
        ),
        of_seeds(
            "nets that L ≤ 6ξ_c tells right: mean share of both kinds",
            [agreement(predicted, accuracy[:, s] >= TRAINED) for s in range(accuracy.shape[1])],
            0.8,
            relation=">=",
            source=source,
        ),
        of_seeds(
            f"depth up to which nets train, in ξ_c, median where it is below {depths[-1]}",
            np.nanmedian(multiple, axis=1) if inside.any(axis=1).all() else [math.nan],
            source=f"{source}: about 6",
        ),
    ]


def figure(found: Found):
    """Correlations and gradients over layers; the map of figure 5 of the paper, with 6ξ_c."""
    sheet, (layers, gradients, chart) = canvas.new_figure(1, 3, 9.8, 2.9, ratios=[1, 1, 1.35])
    for case, color in zip(found.of(what="net"), style.PETROFF, strict=False):
        weights = case.arguments["weights"]
        depth = np.arange(NET_DEPTH)
        for name, start in zip(("near", "far"), starts(weights)[1], strict=True):
            layers.plot(depth, case.values[name].mean(axis=0), "o", color=color, markersize=2.5)
            layers.plot(
                depth,
                mean_field.curve(weights, BIAS, starts(weights)[0], start, NET_DEPTH),
                color=color,
                linewidth=0.9,
                label=f"σ_w² = {weights:g}" if name == "near" else None,
            )
        relative = case.values["gradient"] / case.values["gradient"][:, -1:]
        gradients.plot(depth, relative.mean(axis=0), "o", color=color, markersize=2.5)
        back = depth[::-1]
        gradients.plot(depth, mean_field.chi(weights, BIAS) ** back, color=color, linewidth=0.9)
    layers.set(xlabel="layer", ylabel="correlation of two inputs", title="Correlation")
    layers.legend()
    gradients.set(xlabel="layer", ylabel="E (∂ℓ/∂h)², relative", yscale="log", title="Gradient")
    gradients.yaxis.set_major_formatter("{x:g}")
    training = found.of(what="train")
    if training:
        depths = [case.arguments["depth"] for case in training]
        accuracy = np.stack([case.values["accuracy"].mean(axis=0) for case in training])
        mesh = chart.pcolormesh(
            np.arange(len(WEIGHTS) + 1),
            np.arange(len(depths) + 1),
            accuracy,
            cmap="inferno",
            vmin=0,
            vmax=1,
        )
        dense = np.linspace(WEIGHTS[0], WEIGHTS[-1], 60)
        limit = np.array([6 * mean_field.depth_scale(w, BIAS) for w in dense])
        middle = np.arange(len(WEIGHTS)) + 0.5
        height = np.interp(limit, depths, np.arange(len(depths)) + 0.5, right=len(depths))
        chart.plot(np.interp(dense, WEIGHTS, middle), height, "w--", linewidth=1.4, label="6ξ_c")
        chart.set_xticks(middle, [f"{w:g}" for w in WEIGHTS])
        chart.set_yticks(np.arange(len(depths)) + 0.5, depths)
        chart.grid(visible=False)
        chart.legend(labelcolor="white", loc="upper right")
        sheet.colorbar(mesh, ax=chart, label="accuracy")
    chart.set(xlabel="σ_w²", ylabel="layers L", title=f"After {STEPS} steps")
    return sheet
