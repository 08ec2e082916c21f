"""Where gradients vanish in a VAE as depth grows, and which remedies help (seed S0; Glorot 2010).

Two parts. First, the faults of the write-up's loss (configs/seeds/s0_vanishing.py): the same nets
are trained by the code as printed, by its text, and corrected, and each layer's gradient is split
by the term that it comes from (`vae.gradients.flow`).

Second, depth. At initialisation, encoder and decoder of {1, 2, 5, 10, 20, 50} layers of 64 units
around 2 latents, under the corrected loss |x − x̂|² + KL on 16 images of MNIST: all combinations of
activation, initialisation, normalisation and residual connection, each × depth × 5 seeds. What is
read is g_l, the root mean square over units and examples of ∂loss/∂h_l, h_l the output of layer l;
and decades = log10(g_1/g_L), negative where the gradient vanishes on its way to the first layer.
Layers are the library's; they are scanned, so that one program serves all depths. float64, because
float32 ends at 1e-38.

Through L − 1 layers of weights of variance c/n a ReLU net changes E g² by (c/2)^(L−1) (He et al.
2015, section 2.2): c = 2 of He, 1 of Glorot with n units in and out, 1/3 of `uniform`. One net of
width n has ln g² near N(−b/2, b), b = 5(L − 1)/n (Hanin and Nica 2020), which takes b/(4 ln 10)
decades off.

Remedies are ranked from the write-up's net (relu, Glorot, neither norm nor residual) at depth 50,
one change at a time, by how much closer to 0 the decades come, in pairs of the same seed and the
mean of encoder and decoder. The intervals are simultaneous, at 95% for all remedies together
(Bonferroni). What of it holds through training is looked at on depth 20, for 200 steps.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from experiments.report import canvas, style
from experiments.studies import scanned_nets
from experiments.studies.cases import Arguments, Context, Found
from experiments.studies.quantity import Quantity, by_seed, difference, of_seeds
from experiments.studies.scanned_nets import DEPTHS, INITS, LATENTS, PARTS, SEEDS, WIDTH
from vae import data, printed, train
from vae.hparams import HParams, stack
from vae.layers import layer_names
from vae.spec import ModelSpec, OptimizerSpec, Spec

ID = "S0"
CONFIGS = {
    "quick": "configs/seeds/s0_vanishing_quick.py",
    "full": "configs/seeds/s0_vanishing.py",
}
ACTIVATIONS = ("relu", "tanh", "sigmoid")
NORMS = ("none", "layer", "batch")
RESIDUALS = ("none", "plain", "scaled", "zero_init")
BASE = {"activation": "relu", "norm": "none", "residual": "none"}
LEVELS = {"activation": ACTIVATIONS, "init": INITS, "norm": NORMS, "residual": RESIDUALS}
LOOKS = (1, 10, 50, 200)
TRAINED = (
    BASE | {"init": "glorot"},
    BASE | {"init": "he"},
    BASE | {"init": "glorot", "norm": "batch"},
    BASE | {"init": "glorot", "residual": "plain"},
)


def cases(budget: str) -> list[Arguments]:
    """A case for each structure at the start; then those that train; then the printed "KL"."""
    start = [
        {"part": "start", "activation": a, "norm": n, "residual": r}
        for a in ACTIVATIONS
        for n in NORMS
        for r in RESIDUALS
    ]
    return [*start, *({"part": "training"} | own for own in TRAINED), {"part": "printed KL"}]


def run(arguments: Arguments, context: Context) -> dict[str, np.ndarray]:
    """See each part's function."""
    own = {name: value for name, value in arguments.items() if name != "part"}
    if arguments["part"] == "printed KL":
        return cosines()
    images = images_of(context)
    return (
        scanned_nets.at_start(images, **own)
        if arguments["part"] == "start"
        else trained(images, **own)
    )


def images_of(context: Context) -> data.Dataset:
    return data.load(
        "tfds:mnist",
        dir=context.data_dir,
        train_split="test[:8000]",
        test_split="test[8000:]",
        binarization="none",
    )


def decades(found: Found, depth: int, init: str = "glorot", **own: str) -> dict[str, np.ndarray]:
    """log10(g_1/g_L) of each part, [seeds]; of the base but for `own`."""
    [case] = found.of(part="start", **(BASE | own))
    at = INITS.index(init), DEPTHS.index(depth)
    logs = {part: case.values[part][at] for part in PARTS}
    with np.errstate(invalid="ignore"):  # inf − inf, of a loss that is not finite
        return {part: log[:, 0] - log[:, depth - 1] for part, log in logs.items()}


def remedies(found: Found, depth: int = 50) -> dict[str, np.ndarray]:
    """How many decades nearer to 0 one change to the base brings the gradient, [seeds]."""

    def away(**own):
        return sum(np.abs(values) for values in decades(found, depth, **own).values()) / len(PARTS)

    before = away()
    start = BASE | {"init": "glorot"}
    return {
        f"{factor} {level}": before - away(**{factor: level})
        for factor, levels in LEVELS.items()
        for level in levels
        if level != start[factor]
    }


def at_once(values: np.ndarray, how_many: int) -> tuple[float, float]:
    """The interval of a mean, of as many at 95% together; Bonferroni, Student's t."""
    from scipy import stats

    n = len(values)
    half = stats.t.ppf(1 - 0.025 / how_many, n - 1) * values.std(ddof=1) / math.sqrt(n)
    return values.mean() - half, values.mean() + half


# Through training.


def trained(images: data.Dataset, **own: str) -> dict[str, np.ndarray]:
    """Gradient norms of each layer at steps `LOOKS`, [looks, seeds, layers]; the loss [seeds]."""
    model = ModelSpec(
        images.example_shape,
        LATENTS,
        depth=20,
        width=WIDTH,
        likelihood="gaussian",
        output="sigmoid",
        **own,
    )
    spec = Spec(model, optimizer=OptimizerSpec("adam"), batch_size=32)
    runs = stack([HParams(sigma=math.sqrt(0.5), seed=seed) for seed in range(3)])
    population = train.init(spec, runs, images.train_mean)
    examples = data.Examples(jnp.asarray(images.train), images.transform)
    norms = []
    for before, now in zip((0, *LOOKS), LOOKS, strict=False):
        steps = jnp.int32(now - before)
        population = train.train_chunk(spec, "vmap", population, examples, steps)
        norms.append(np.asarray(population.interval.grad_norms))
    names = layer_names(population.states.params)
    keep = {
        part: [i for i, n in enumerate(names) if n.startswith(f"{part}/layer")] for part in PARTS
    }
    norms = np.stack(norms)
    found = {part: norms[..., index] for part, index in keep.items()}
    return found | {"loss": np.asarray(population.interval.means["distortion"])}


# The printed "KL".


def cosines() -> dict[str, np.ndarray]:
    """cos of the gradients in m of the printed "KL" and of KL(N(m, I)||N(0, I)); [seeds]."""

    def one(seed, size):
        m = size * jax.random.normal(jax.random.key(seed), (4096, LATENTS))
        printed_gradient = jax.vmap(
            jax.grad(lambda m: printed.log_softmax_difference(m, printed.squashed(m)))
        )(m)
        dots = jnp.sum(printed_gradient * m, axis=1)
        norms = jnp.linalg.norm(m, axis=1) * jnp.linalg.norm(printed_gradient, axis=1)
        return jnp.mean(dots / norms)

    seeds = jnp.arange(SEEDS, dtype=jnp.uint32)
    return {f"{s:g}": jax.vmap(lambda seed, s=s: one(seed, s))(seeds) for s in (0.1, 1.0, 10.0)}


# What is told.


def _faults(found: Found) -> list[Quantity]:
    own = {
        "as printed": {"objective__name": "log_softmax"},
        "in words": {"objective__name": "elbo", "objective__beta": 2.0},
        "corrected": {"objective__name": "elbo", "objective__beta": 1.0},
    }
    rows = []
    for name, values in own.items():
        active = by_seed(found.results, "test/active_units", **values)
        rate = by_seed(found.results, "test/rate", **values)
        theory = "Lucas et al. 2019: λ ≤ βσ² collapses; 5.1 against "
        if name == "in words":
            rows.append(
                of_seeds("rate in words, nats", rate.values(), 0, 0.01, source=theory + "784")
            )
        if name == "corrected":
            rows.append(
                of_seeds("active units corrected", active.values(), 2, 0, source=theory + "½")
            )
        if name == "as printed":
            rows.append(of_seeds("active units as printed", active.values()))
    first = by_seed(found.results, "test/distortion", objective__name="log_softmax")
    words = by_seed(found.results, "test/distortion", **own["in words"])
    lost = difference(words, first)
    rows.append(of_seeds("distortion in words − as printed, nats, both of σ² = 392", lost))
    [case] = found.of(part="printed KL")
    rows += [
        of_seeds(
            f"cosine of the printed KL's gradient with a KL's, m ~ N(0, {float(size):g}² I)",
            values,
            0,
            0.1,
            source="the write-up's reader: it has nothing to do with a KL",
            note=""
            if abs(values.mean()) < 0.1
            else "near zero it is 15/16 of the KL's gradient less its mean over latents; the other "
            "way round it is minus that (vae/printed.py)",
        )
        for size, values in case.values.items()
    ]
    return rows


def measure(found: Found) -> list[Quantity]:
    """The faults; decades at depth 50 against theory; the remedies, ranked."""
    rows = _faults(found)
    steps = max(DEPTHS) - 1
    below = 5 * steps / WIDTH / (4 * math.log(10))
    # Three standard errors of the mean over the seeds, for one net's √b/(2 ln 10).
    tolerance = 3 * math.sqrt(5 * steps / WIDTH / SEEDS) / (2 * math.log(10))
    for init, factor in (("glorot", 1 / 2), ("he", 1.0), ("uniform", 1 / 6)):
        for part, values in decades(found, 50, init).items():
            expected = steps / 2 * math.log10(factor) - below
            rows.append(
                of_seeds(
                    f"decades over 50 layers of the {part}: relu, {init}",
                    values,
                    round(expected, 2),
                    round(tolerance, 2),
                    source="He et al. 2015, section 2.2; Hanin and Nica 2020",
                )
            )
    gains = remedies(found)
    ranked = sorted(gains, key=lambda name: _place(gains[name]), reverse=True)
    for place, name in enumerate(ranked, 1):
        rows.append(
            of_seeds(
                f"remedy {place}: {name}, decades regained of the {_lost(found):.1f} lost",
                gains[name],
                0,
                relation=">=",
                source="the write-up: structure, activation and initialisation are remedies",
                interval=at_once(gains[name], len(gains)),
                note=f"simultaneous interval of {len(gains)}"
                if np.isfinite(gains[name]).all()
                else "the loss is not finite: e to the log-variance that comes out of 50 layers",
            )
        )
    for case in found.of(part="training"):
        name = ", ".join(str(v) for k, v in case.arguments.items() if k != "part" and v != "none")
        norms = case.values["encoder"]
        with np.errstate(invalid="ignore", divide="ignore"):  # of runs that diverged at once
            change = np.log10(norms[-1][:, 0] / norms[-1][:, -1])
        rows.append(of_seeds(f"decades of 20 layers after {LOOKS[-1]} steps: {name}", change))
        rows.append(of_seeds(f"training distortion of them: {name}, nats", case.values["loss"]))
    return rows


def _place(values: np.ndarray) -> float:
    """By which remedies are ranked; the last where there is no number."""
    return float(np.nan_to_num(values.mean(), nan=-np.inf))


def _lost(found: Found) -> float:
    return float(np.mean([np.abs(v).mean() for v in decades(found, 50).values()]))


def figure(found: Found):
    """g over layers, as Glorot and Bengio 2010, figure 7; decades over depth; the remedies."""
    sheet, panels = canvas.new_figure(2, 2, 7.2, 5.6)
    layers, depths, ranked, terms = panels
    shown = {
        "relu, Glorot": {},
        "He": {"init": "he"},
        "uniform": {"init": "uniform"},
        "sigmoid": {"activation": "sigmoid"},
        "tanh": {"activation": "tanh"},
        "LayerNorm": {"norm": "layer"},
        "BatchNorm": {"norm": "batch"},
        "residual": {"residual": "plain"},
        "residual/√L": {"residual": "scaled"},
    }
    for (name, own), color in zip(shown.items(), style.category_colors(len(shown)), strict=True):
        structure = {k: v for k, v in own.items() if k != "init"}
        [case] = found.of(part="start", **(BASE | structure))
        init = INITS.index(own.get("init", "glorot"))
        sizes = case.values["encoder"][init, DEPTHS.index(50)].mean(axis=0)
        layers.plot(range(1, 51), sizes, color=color, label=name)
        mean = [decades(found, d, **own)["encoder"].mean() for d in DEPTHS]
        depths.plot(DEPTHS, mean, "o-", color=color, markersize=3)
    layers.set_xlabel("layer of the encoder, of 50")
    layers.set_ylabel("log₁₀ g, at the start")
    layers.set_ylim(bottom=-25)
    depths.set_xscale("log")
    depths.set_xticks(DEPTHS, [str(d) for d in DEPTHS])
    depths.set_xlabel("layers of the encoder")
    depths.set_ylabel("decades, first to last layer")
    depths.set_ylim(bottom=-25)
    sheet.legend(*layers.get_legend_handles_labels(), loc="outside upper center", ncols=5)
    gains = remedies(found)
    names = sorted(gains, key=lambda name: _place(gains[name]))
    for y, name in enumerate(names):
        low, high = at_once(gains[name], len(gains))
        ranked.plot([low, high], [y, y], color=style.ACCENT)
        ranked.plot(gains[name].mean(), y, "o", color=style.ACCENT, markersize=3)
    ranked.axvline(0, color=style.RULE)
    ranked.set_yticks(range(len(names)), names, fontsize=6.5)
    ranked.set_xlabel("decades regained at depth 50")
    _draw_terms(terms, found)
    return sheet


def _draw_terms(panel, found: Found) -> None:
    """Gradient of the first encoder layer by term, over training, of the three losses."""
    rows = (
        ("as printed", {"objective.name": "log_softmax"}, "penalty"),
        ("in words", {"objective.name": "elbo", "objective.beta": 2.0}, "rate"),
        ("corrected", {"objective.name": "elbo", "objective.beta": 1.0}, "rate"),
    )
    for (name, own, other), color in zip(rows, style.category_colors(3), strict=True):
        runs = [r for r in found.results.runs if all(r.setting(k) == v for k, v in own.items())]
        for term, line in (("distortion", "-"), (other, "--")):
            step, values = _looks(runs, f"grad/encoder/layer_0/{term}")
            log = np.log10(np.maximum(values, 1e-12))
            panel.plot(step, log, line, color=color, label=f"{name}: {term}")
    panel.set_xlabel("step")
    panel.set_ylabel("log₁₀ gradient of encoder/layer_0")
    panel.legend(fontsize=6, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)


def _looks(runs, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps at which there was a look, and the mean over runs there."""
    looks = [run.looks for run in runs if key in run.looks.curves]
    if not looks:
        return np.zeros(0), np.zeros(0)
    return looks[0].step, np.mean([of.curves[key] for of in looks], axis=0)
