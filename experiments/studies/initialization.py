"""Back through a layer a gradient's variance gains n·Var(w)·E φ′² (Glorot 2010, He 2015).

Glorot and Bengio 2010, eq. 6 and 12; He et al. 2015, eq. 14. With n units above and m below, that
is 2n/(n + m) for Glorot's Var(w) = 2/(n + m), 1/3 for the older U(±1/√n), and 2 for He's 2/n, as
long as φ′ = 1. relu passes half of it: He's factor is then 1, Glorot's ½, and that of U(±1/√n) 1/6.

The layers are those of the library's encoder (64 numbers, L × 256 units, two numbers for each of 8
latents) and decoder (8, L × 256, 64). A random vector goes back from the head. Factors are those of
the mean over nets, from the last layer to the first, to the power 1/(L − 1).

How many nets: one net's ln‖Ju‖² is about N(−b/2, b), b = 5 Σ 1/n_l (Hanin and Nica 2020), so the
mean over N nets is off by √((e^b − 1)/N). N is the least that leaves 1.5% of a factor: 0.3% of the
mean over five depths and five seeds, whose 95% interval fits well within the tolerance of 2%. For
equal widths the law is known: each layer multiplies by (2/n)·χ²_K, K ~ Bin(n, ½) units being open,
which gives the mean and the variance of ln‖Ju‖² to all orders.

All of this supposes a gradient that was drawn apart from the weights. That of a VAE is not: the
KL's is the mean itself, and the Bernoulli's σ(a) − x moves with the activations that the same
weights made. The same factors are therefore measured under the VAE's own loss too, on digits.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from experiments.report import canvas, style
from experiments.studies.cases import Context, Found
from experiments.studies.quantity import Quantity, of_seeds
from vae import data, train
from vae.data import Examples
from vae.gradients import signal
from vae.hparams import HParams, stack
from vae.loss import batch_at
from vae.spec import ModelSpec, Spec

ID = "A6"
WIDTH, LATENTS, VALUES = 256, 8, 64
DEPTHS = (2, 5, 10, 20, 50)
SHAPES = {"encoder": (VALUES, 2 * LATENTS), "decoder": (LATENTS, VALUES)}
ERROR = 0.015  # of one seed's factor at one depth
TOLERANCE = 0.02

# n·Var(w) between layers of n units, and E φ′² where pre-activations are symmetric around 0.
VARIANCES = {"he": 2.0, "glorot": 1.0, "uniform": 1 / 3}
PASSED = {"relu": 0.5, "identity": 1.0}
# Glorot's and U(±1/√n) are made for φ′ = 1, He's for relu.
MADE_FOR = {"identity": ("glorot", "uniform"), "relu": ("he", "glorot", "uniform")}
# Of which the own loss is looked at.
LOSS_DEPTH = {"quick": 10, "full": 50}
RUNS = 8


def cases(budget: str) -> list[dict]:
    seeds = {"quick": 5, "full": 20}[budget]
    layers = [
        {"what": "layers", "part": part, "activation": activation, "depth": depth, "seeds": seeds}
        for part in SHAPES
        for activation in MADE_FOR
        for depth in DEPTHS
    ]
    of_loss = [
        {"what": "loss", "init": init, "depth": LOSS_DEPTH[budget], "seeds": seeds}
        for init in VARIANCES
    ]
    return [
        *layers,
        {"what": "widths", "seeds": seeds},
        {"what": "spread", "seeds": seeds},
        *of_loss,
    ]


def run(arguments: dict, context: Context) -> dict:
    del context
    what, seeds = arguments["what"], arguments["seeds"]
    if what == "layers":
        return _layers(arguments["part"], arguments["activation"], arguments["depth"], seeds)
    if what == "widths":
        return _widths(seeds)
    if what == "spread":
        return {"log_growth": _spread(seeds)}
    return _own_loss(arguments["init"], arguments["depth"], seeds)


# --- Under a cotangent that is drawn apart from the weights


def rate(init: str, activation: str) -> float:
    """Factor of E (∂ℓ/∂h)² per layer, back between layers of one width."""
    return VARIANCES[init] * PASSED[activation]


def nets(depth: int, width: int = WIDTH, error: float = ERROR) -> int:
    """How many nets to average over, so that a factor of depth − 1 layers is off by `error`."""
    b = 5 * (depth - 1) / width
    return math.ceil(math.expm1(b) / (error * (depth - 1)) ** 2)


def second_moments(spec: ModelSpec, outputs: int, seed: int, count: int) -> np.ndarray:
    """E (∂ℓ/∂h_pre)² of each layer [L] in each of `count` nets: float64 [count, L]."""
    rngs = jax.random.split(jax.random.key(seed), count)
    drawn = _draw(spec, outputs, rngs)
    # One program for all initialisations: what they differ in has been drawn.
    found = _propagate(dataclasses.replace(spec, init="he"), outputs, drawn, rngs)
    return np.square(np.asarray(found, np.float64))[:, :-1]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _draw(spec, outputs, rngs):
    return jax.lax.map(lambda rng: signal.random_net(spec, rng, outputs), rngs)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _propagate(spec, outputs, drawn, rngs):
    def one(args):
        (params, stats), rng = args
        x_rng, cotangent_rng = jax.random.split(jax.random.fold_in(rng, 1))
        x = jax.random.normal(x_rng, (1, *spec.example_shape))
        cotangent = jax.random.normal(cotangent_rng, (1, outputs))
        seen = signal.propagate(spec, params, stats, x, cotangent)
        return signal.measure(spec.activation, seen)["layers"]["backward_rms_pre"]

    return jax.lax.map(one, (drawn, rngs))


def _over_nets(spec: ModelSpec, outputs: int, seeds: int, count: int) -> np.ndarray:
    found = [second_moments(spec, outputs, seed, count).mean(axis=0) for seed in range(seeds)]
    return np.stack(found)


def _layers(part: str, activation: str, depth: int, seeds: int) -> dict[str, np.ndarray]:
    """{init: E (∂ℓ/∂h)² of each layer, over nets: [seeds, L]}."""
    inputs, outputs = SHAPES[part]
    spec = ModelSpec((inputs,), depth=depth, width=WIDTH, activation=activation)
    return {
        init: _over_nets(dataclasses.replace(spec, init=init), outputs, seeds, nets(depth))
        for init in MADE_FOR[activation]
    }


def _widths(seeds: int) -> dict[str, np.ndarray]:
    """Glorot's factors where widths alternate: [seeds] from narrow to wide layers, and back."""
    wide, narrow = WIDTH, WIDTH // 2
    widths = (wide, narrow, wide, narrow, wide)
    spec = ModelSpec((VALUES,), depth=5, width=widths, init="glorot", activation="identity")
    found = _over_nets(spec, 16, seeds, nets(2, narrow))
    factors = found[:, :-1] / found[:, 1:]
    return {"to_wide": factors[:, ::2].mean(axis=1), "to_narrow": factors[:, 1::2].mean(axis=1)}


def _spread(seeds: int, width: int = 64, layers: int = 16, count: int = 400) -> np.ndarray:
    """ln of the growth of ‖∂ℓ/∂h‖² over 16 He-relu layers of 64 units: [seeds, count], by net."""
    spec = ModelSpec((width,), depth=layers + 1, width=width, init="he")
    found = [second_moments(spec, 16, seed, count) for seed in range(seeds)]
    return np.log(np.stack([f[:, 0] / f[:, -1] for f in found]))


def log_normal(width: int, layers: int) -> tuple[float, float]:
    """Mean and variance of Σ ln((2/n)·χ²_K), K ~ Bin(n, ½): to first order −b/2 and b."""
    from scipy import special, stats

    k = np.arange(1, width + 1)
    weight = stats.binom.pmf(k, width, 0.5)
    weight = weight / weight.sum()
    mean = special.digamma(k / 2) + math.log(4 / width)
    variance = special.polygamma(1, k / 2)
    center = float(weight @ mean)
    return layers * center, layers * float(weight @ (variance + np.square(mean - center)))


# --- Under the VAE's own loss


def _own_loss(init: str, depth: int, seeds: int) -> dict[str, np.ndarray]:
    """E (∂ℓ/∂h_pre)² of each layer, [seeds, L] for either part, over `RUNS` runs for each seed.

    And the mean over examples of the cosine between h and ∂ℓ/∂h in its last layer, [seeds].
    """
    digits = data.load("digits")
    examples = Examples(jnp.asarray(digits.train), digits.transform)
    model = ModelSpec(digits.example_shape, LATENTS, depth=depth, width=WIDTH, init=init)
    spec = Spec(model, batch_size=32)
    runs = stack([HParams(seed=seed) for seed in range(seeds * RUNS)])
    states = train.init(spec, runs, jnp.asarray(digits.train_mean)).states
    seen = _signal(dataclasses.replace(spec, model=dataclasses.replace(model, init="he")))(
        examples.raw, states, transform=examples.transform
    )
    found = {}
    for part, (second_moment, cosine) in seen.items():
        by_seed = np.square(np.asarray(second_moment, np.float64)).reshape(seeds, RUNS, depth)
        found[part] = by_seed.mean(axis=1)
        found[f"{part}_cosine"] = np.asarray(cosine, np.float64).reshape(seeds, RUNS).mean(axis=1)
    return found


def _signal(spec: Spec):
    def one(raw, transform, state):
        batch = batch_at(spec, Examples(raw, transform), state.hparams.seed, state.step)
        seen = signal.observe(spec, transform, state, batch, jax.random.key(0))
        layers = {
            part: [f"{part}/layer_{i}" for i in range(spec.model.depth)] for part in signal.PARTS
        }
        return {
            part: (
                jnp.stack([signal.root_mean_square(seen.backward[n]["pre"]) for n in names]),
                _cosine(seen.forward[names[-1]]["post"], seen.backward[names[-1]]["post"]),
            )
            for part, names in layers.items()
        }

    @functools.partial(jax.jit, static_argnames="transform")
    def of_runs(raw, states, transform):
        return jax.lax.map(lambda state: one(raw, transform, state), states)

    return of_runs


def _cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Mean over examples of the cosine between a and b, [B, ...]."""
    a, b = (v.reshape(len(v), -1) for v in (a, b))
    lengths = jnp.linalg.norm(a, axis=1) * jnp.linalg.norm(b, axis=1)
    return jnp.mean(jnp.sum(a * b, axis=1) / lengths)


# --- Verdicts


def factor(second_moment: np.ndarray) -> np.ndarray:
    """[..., L] ↦ the factor per layer back, [...]."""
    layers = second_moment.shape[-1] - 1
    return (second_moment[..., 0] / second_moment[..., -1]) ** (1 / layers)


def _factors(found: Found, part: str, activation: str, init: str) -> dict[int, np.ndarray]:
    """{L: factors [seeds]}."""
    return {
        case.arguments["depth"]: factor(case.values[init])
        for case in found.of(what="layers", part=part, activation=activation)
    }


_SOURCES = {
    "he": "He et al. 2015, eq. 14",
    "glorot": "Glorot and Bengio 2010, eq. 12 and 16",
    "uniform": "Glorot and Bengio 2010, eq. 15",
}
_NAMES = {"he": "He", "glorot": "Glorot", "uniform": "U(±1/√n)"}


def measure(found: Found) -> list[Quantity]:
    """Factors, means over all depths; the law of one net; factors under the VAE's own loss."""
    rows = []
    for activation, inits in MADE_FOR.items():
        for init in inits:
            for part in SHAPES:
                by_depth = _factors(found, part, activation, init)
                if by_depth:
                    expected = rate(init, activation)
                    rows.append(
                        of_seeds(
                            f"{part}, {_NAMES[init]}, {activation}: factor per layer",
                            np.mean(list(by_depth.values()), axis=0),
                            round(expected, 4),
                            round(TOLERANCE * expected, 4),
                            source=_SOURCES[init],
                        )
                    )
    for case in found.of(what="widths"):
        for name, expected in (("wide", 2 / 3), ("narrow", 4 / 3)):
            rows.append(
                of_seeds(
                    f"Glorot, identity, back to a layer twice as {name}: factor",
                    case.values[f"to_{name}"],
                    round(expected, 4),
                    round(TOLERANCE * expected, 4),
                    source=_SOURCES["glorot"],
                )
            )
    for case in found.of(what="spread"):
        rows += _of_spread(case.values["log_growth"])
    for case in found.of(what="loss"):
        rows += _of_loss(case, found)
    return rows


def _of_spread(log_growth: np.ndarray) -> list[Quantity]:
    """Mean and variance of ln‖Ju‖²; a seed's are off by √(v/N) and v·√(2/N)."""
    mean, variance = log_normal(64, 16)
    count = log_growth.shape[1]
    source = "Hanin and Nica 2020, theorem 1 (first order: −0.625 and 1.25)"
    return [
        of_seeds(
            "mean of ln‖Ju‖², 16 layers of 64",
            log_growth.mean(axis=1),
            round(mean, 3),
            round(3 * math.sqrt(variance / count), 3),
            source=source,
        ),
        of_seeds(
            "variance of ln‖Ju‖², 16 layers of 64",
            log_growth.var(axis=1, ddof=1),
            round(variance, 3),
            round(3 * variance * math.sqrt(2 / count), 3),
            source=source,
        ),
    ]


def _of_loss(case, found: Found) -> list[Quantity]:
    init, rows = case.arguments["init"], []
    for part in SHAPES:
        expected = rate(init, "relu")
        apart = _factors(found, part, "relu", init).get(case.arguments["depth"])
        cosine = case.values[f"{part}_cosine"].mean()
        row = of_seeds(
            f"{part}, {_NAMES[init]}, relu, under the VAE's own loss: factor per layer",
            factor(case.values[part]),
            round(expected, 4),
            round(TOLERANCE * expected, 4),
            source=_SOURCES[init],
        )
        if row.verdict != "reproduced":
            note = (
                f"∂ℓ/∂h of the last layer has a mean cosine of {cosine:.2f} with h, where the "
                f"claim supposes a gradient that knows nothing of the weights"
            )
            if apart is not None:
                note += f"; one that does not has {apart.mean():.3f} at the same depth"
            row = dataclasses.replace(row, note=note)
        rows.append(row)
    return rows


def figure(found: Found):
    """Second moments over layers, as Glorot and Bengio's figure 7 tells them; factors by depth."""
    sheet, (layers, depths, loss) = canvas.new_figure(1, 3, 9.6, 2.9)
    colors = dict(zip(VARIANCES, style.PETROFF, strict=False))
    for case in found.of(what="layers", part="encoder", activation="relu", depth=max(DEPTHS)):
        for init in MADE_FOR["relu"]:
            values = case.values[init] / case.values[init][:, -1:]
            back = np.arange(values.shape[1])
            layers.plot(back, values[:, ::-1].T, ".", color=colors[init], markersize=2)
            layers.plot(back, rate(init, "relu") ** back, color=colors[init], label=_NAMES[init])
    layers.set(
        title="Encoder of 50 layers, relu",
        xlabel="layers back from the last",
        ylabel="E (∂ℓ/∂h)², relative",
        yscale="log",
    )
    layers.yaxis.set_major_formatter("{x:g}")
    layers.legend()
    for activation, marker in (("relu", "o"), ("identity", "s")):
        for init in MADE_FOR[activation]:
            for part, face in (("encoder", "full"), ("decoder", "none")):
                of = _factors(found, part, activation, init)
                depths.plot(
                    list(of),
                    [values.mean() for values in of.values()],
                    marker,
                    color=colors[init],
                    fillstyle=face,
                    markersize=4,
                )
            depths.axhline(
                rate(init, activation),
                color=colors[init],
                linewidth=1,
                linestyle="-" if activation == "relu" else "--",
            )
    depths.set(
        title="● ○ relu   ■ □ identity",
        xlabel="L (filled: encoder, open: decoder)",
        ylabel="factor per layer",
        xscale="log",
        yscale="log",
    )
    depths.set_xticks(DEPTHS, [str(d) for d in DEPTHS])
    depths.set_yticks([1, 1 / 2, 1 / 3, 1 / 6], ["1", "1/2", "1/3", "1/6"])
    depths.minorticks_off()
    for case in found.of(what="loss"):
        init = case.arguments["init"]
        for part, line in (("encoder", "o-"), ("decoder", "o--")):
            values = case.values[part].mean(axis=0)
            factors = values[:-1] / values[1:] / rate(init, "relu")
            loss.plot(
                np.arange(len(factors)) + 1,
                factors,
                line,
                color=colors[init],
                markersize=3,
            )
    loss.axhline(1, color=style.MUTED, linewidth=1)
    loss.set(
        title="Under the VAE's own loss, relu",
        xlabel="layer (line: encoder, dashes: decoder)",
        ylabel="factor, relative to the claim",
    )
    return sheet
