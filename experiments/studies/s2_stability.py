"""Which of initialisation, learning rate, BatchNorm and plateau schedule let a VAE train (seed S2).

Two parts. First, the faults of the write-up's listing (configs/seeds/s2_stability.py): the same net
as printed and corrected, each layer's gradient split by the term that it comes from.

Second, a phase diagram of the corrected loss: initialisation × learning rate over five decades ×
{no norm, BatchNorm} × {constant rate, reduced on a plateau}, 3 seeds each, 200 steps with Adam on
8,000 images of MNIST. A run is

  diverged   where a step was not finite, or its last loss is above the first
  converged  where it came to the target: 90% of the way from the first loss of the write-up's own
             setting (Glorot, 1e-3, neither norm nor schedule) to its last
  slow       elsewhere

Losses are means over 10 steps; the plateau schedule halves the rate where one of them is no better
than the best before (with a patience of three it had nothing to do in 200 steps). Predictors are
read of the first step: the gradient's norm, log10 of its first layer's over its last layer's, and
the largest ratio of update to parameters of any layer. How well one tells diverged runs from
others, or slow runs from converged ones, is the chance that it ranks a pair of them rightly (the
area under the ROC curve): ½ says nothing, 1 tells them apart.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from experiments.report import canvas, style
from experiments.studies.cases import Arguments, Context, Found
from experiments.studies.quantity import Quantity, by_seed, difference, exact, of_seeds
from vae import data, train
from vae.hparams import HParams, stack
from vae.layers import layer_names, layer_norms
from vae.spec import ModelSpec, ObjectiveSpec, OptimizerSpec, Spec

ID = "S2"
CONFIGS = {
    "quick": "configs/seeds/s2_stability_quick.py",
    "full": "configs/seeds/s2_stability.py",
}
INITS = ("glorot", "he", "lecun", "uniform")
RATES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
SEEDS, STEPS, EVERY = 3, 200, 10
PHASES = ("converged", "slow", "diverged")
PREDICTORS = ("update ratio", "gradient norm", "first over last layer")


def cases(budget: str) -> list[Arguments]:
    return [
        {"norm": norm, "schedule": schedule}
        for norm in ("none", "batch")
        for schedule in ("constant", "plateau")
    ]


def run(arguments: Arguments, context: Context) -> dict[str, np.ndarray]:
    """`loss` [inits, rates, seeds, readings]; `finite`, the last learning `rate`, predictors."""
    images = data.load(
        "tfds:mnist",
        dir=context.data_dir,
        train_split="test[:8000]",
        test_split="test[8000:]",
        binarization="none",
    )
    specs = [spec_of(images, init, **arguments) for init in INITS]
    runs = stack(
        [
            HParams(sigma=math.sqrt(0.5), learning_rate=rate, seed=seed)
            for rate in RATES
            for seed in range(SEEDS)
        ]
    )
    started = [train.init(spec, runs, images.train_mean) for spec in specs]
    # Once drawn, the parameters forget by whom: one program trains all.
    states, interval = jax.tree.map(
        lambda *a: jnp.concatenate(a), *[(p.states, p.interval) for p in started]
    )
    population = started[0].replace(states=states, interval=interval)
    examples = data.Examples(jnp.asarray(images.train), images.transform)
    names = layer_names(population.states.params)
    start = jax.tree.map(np.asarray, population.states.params)
    population = train.train_chunk(specs[0], "vmap", population, examples, jnp.int32(1))
    gradient = np.asarray(population.interval.grad_norms)
    ratio = np.asarray(update_ratios(start, population.states.params))
    losses = []
    for _ in range(STEPS // EVERY):
        population = train.reset_interval(population)
        population = train.train_chunk(specs[0], "vmap", population, examples, jnp.int32(EVERY))
        losses.append(np.asarray(population.interval.means["loss"]))
    shape = (len(INITS), len(RATES), SEEDS)
    first, last = names.index("encoder/layer_0"), names.index("decoder/output")
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "loss": np.stack(losses, axis=1).reshape(*shape, -1),
            "finite": ~np.asarray(population.states.diverged).reshape(shape),
            "rate": np.asarray(population.interval.means["learning_rate"]).reshape(shape),
            "update ratio": ratio.max(axis=1).reshape(shape),
            "gradient norm": np.linalg.norm(gradient, axis=1).reshape(shape),
            "first over last layer": np.log10(gradient[:, first] / gradient[:, last]).reshape(
                shape
            ),
        }


@jax.jit
@jax.vmap
def update_ratios(before, after):
    """|update|/|parameters| of each layer; biases, which start at 0, with their kernels."""
    moved = jax.tree.map(jnp.subtract, after, before)
    return layer_norms(moved) / layer_norms(before)


def spec_of(images: data.Dataset, init: str, norm: str, schedule: str) -> Spec:
    """The write-up's net under the corrected loss."""
    model = ModelSpec(
        images.example_shape,
        32,
        depth=2,
        width=(128, 64),
        init=init,
        norm=norm,
        likelihood="gaussian",
    )
    optimizer = OptimizerSpec("adam", schedule, plateau_patience=1, plateau_window=EVERY)
    return Spec(model, ObjectiveSpec(num_examples=images.num_train), optimizer, batch_size=128)


def target_of(found: Found) -> float:
    """The loss to come to, see the docstring."""
    [case] = found.of(norm="none", schedule="constant")
    own = case.values["loss"][INITS.index("glorot"), RATES.index(1e-3)]
    first, last = own[:, 0].mean(), own[:, -1].mean()
    return float(first + 0.9 * (last - first))


def phases(values: dict[str, np.ndarray], target: float) -> np.ndarray:
    """The number of each run's phase in `PHASES`, [inits, rates, seeds]."""
    loss = values["loss"]
    bad = ~values["finite"] | ~(loss[..., -1] <= loss[..., 0])
    came = np.nan_to_num(loss, nan=np.inf).min(axis=-1) <= target
    return np.where(bad, 2, np.where(came, 0, 1))


def steps_to(values: dict[str, np.ndarray], target: float) -> np.ndarray:
    """Steps until the target, [inits, rates, seeds]; nan where it did not come there."""
    came = np.nan_to_num(values["loss"], nan=np.inf) <= target
    first = (came.argmax(axis=-1) + 1.0) * EVERY
    return np.where(came.any(axis=-1) & (phases(values, target) == 0), first, np.nan)


def area(values: np.ndarray, positive: np.ndarray) -> float:
    """The chance that a positive has the larger value, ties being half; nan without either."""
    yes, no = values[positive], values[~positive]
    if not yes.size or not no.size:
        return math.nan
    return float(np.mean((yes[:, None] > no[None]) + 0.5 * (yes[:, None] == no[None])))


def _name(arguments: Arguments) -> str:
    norm = {"none": "no norm", "batch": "BatchNorm"}[arguments["norm"]]
    return f"{norm}, {arguments['schedule']}"


def _faults(found: Found) -> list[Quantity]:
    printed = {"objective__name": "tied"}
    corrected = {"objective__name": "elbo"}
    error = by_seed(found.results, "test/distortion", **printed)
    # D = |x − x̂|²/(2·392) + ½·784·ln(2π·392), of σ = √392.
    constant = 392 * math.log(2 * math.pi * 392)
    squared = {seed: 784 * (value - constant) for seed, value in error.items()}
    own = {
        seed: value - 392 * math.log(math.pi)
        for seed, value in by_seed(found.results, "test/distortion", **corrected).items()
    }
    runs = [run for run in found.results.runs if run.setting("objective.name") == "tied"]
    return [
        of_seeds("squared error as printed", squared.values()),
        of_seeds("squared error corrected", own.values()),
        of_seeds(
            "squared error, corrected − as printed: the printed KL buys nothing and costs nothing",
            difference(own, squared),
            0,
            relation=">=",
            source="vae/printed.py: it is an autoencoder",
        ),
        of_seeds(
            "what stands for the KL as printed, at the end, nats",
            [last(run, "train/penalty") for run in runs],
            0.5,
            relation="<=",
            source="vae/printed.py: BatchNorm makes it free; ½ nat of 32 latents is next to none",
        ),
        of_seeds(
            "active units corrected",
            by_seed(found.results, "test/active_units", **corrected).values(),
            23,
            4,
            source="components of variance above βσ² = ½, Lucas et al. 2019; few epochs",
        ),
    ]


def last(run, key: str) -> float:
    """The last value of a curve that is a number."""
    curve = run.curves.get(key, np.zeros(0))
    there = curve[np.isfinite(curve)]
    return float(there[-1]) if there.size else math.nan


def measure(found: Found) -> list[Quantity]:
    """The faults; how many runs are in each phase; what predicts it; and steps to the target."""
    rows, target = _faults(found), target_of(found)
    of = {_name(case.arguments): phases(case.values, target) for case in found.cases}
    for name, phase in of.items():
        for number, what in enumerate(PHASES):
            share = (phase == number).mean(axis=(0, 1))
            rows.append(of_seeds(f"share {what}: {name}", share))
    for schedule in ("constant", "plateau"):
        wide = [(of[f"{n}, {schedule}"] == 0).mean(axis=(0, 1)) for n in ("BatchNorm", "no norm")]
        rows.append(
            of_seeds(
                f"share converged, BatchNorm − no norm: {schedule}",
                wide[0] - wide[1],
                0,
                relation=">=",
                source="Ioffe and Szegedy 2015, section 3.3: higher learning rates",
            )
        )
    rows += _reduced(found)
    phase = np.stack(list(of.values()))
    for name in PREDICTORS:
        seen = np.stack([case.values[name] for case in found.cases])
        tells = [area(seen[..., s], phase[..., s] == 2) for s in range(SEEDS)]
        asked = (0.9, 0.0, ">=", "the write-up: too high a rate diverges")
        asked = asked if name == "update ratio" else ()
        rows.append(of_seeds(f"{name} at the start tells diverged", tells, *asked))
        trained = [phase[..., s] != 2 for s in range(SEEDS)]
        slow = [
            area(-seen[..., s][trained[s]], (phase[..., s] == 1)[trained[s]]) for s in range(SEEDS)
        ]
        rows.append(of_seeds(f"{name}, if small, tells slow from converged", slow))
    rows.append(exact("target, nats", target))
    for case in found.cases:
        steps = steps_to(case.values, target)[INITS.index("glorot"), RATES.index(1e-3)]
        if np.isfinite(steps).any():
            rows.append(of_seeds(f"steps to it, Glorot, 1e-3: {_name(case.arguments)}", steps))
    return rows


def _reduced(found: Found) -> list[Quantity]:
    """Where the plateau schedule has reduced the rate by the end, and what it gained there."""
    rows = []
    for norm in ("none", "batch"):
        [constant] = found.of(norm=norm, schedule="constant")
        [plateau] = found.of(norm=norm, schedule="plateau")
        finite = constant.values["finite"] & plateau.values["finite"]
        less = finite & (plateau.values["rate"] < 0.75 * constant.values["rate"])
        name = _name(plateau.arguments)
        rows.append(of_seeds(f"share reduced: {name}", less.mean(axis=(0, 1))))
        gain = constant.values["loss"][..., -1] - plateau.values["loss"][..., -1]
        gains = [gain[..., s][less[..., s]].mean() for s in range(SEEDS) if less[..., s].any()]
        if gains:
            rows.append(
                of_seeds(
                    f"last loss of these, constant − {name}, nats: the sign",
                    gains,
                    0,
                    relation=">=",
                    source="the write-up: a plateau asks for a smaller rate",
                )
            )
    return rows


def figure(found: Found):
    """The phase diagram: of each setting the seeds' phases; and what the first update foretells."""
    sheet, panels = canvas.new_figure(2, 3, 7.2, 4.6)
    target = target_of(found)
    colors = (style.PETROFF[0], style.PETROFF[1], style.PETROFF[2])
    for panel, case in zip((panels[0], panels[1], panels[3], panels[4]), found.cases, strict=True):
        phase = phases(case.values, target)
        for i, j, s in np.ndindex(phase.shape):
            panel.plot(
                math.log10(RATES[j]) + 0.22 * (s - 1),
                i,
                "s",
                color=colors[phase[i, j, s]],
                markersize=5,
            )
        panel.set_yticks(range(len(INITS)), INITS)
        panel.set_xlabel("log₁₀ learning rate")
        panel.set_title(_name(case.arguments))
    told, terms = panels[2], panels[5]
    for number, what in enumerate(PHASES):
        x, y = [], []
        for case in found.cases:
            chosen = phases(case.values, target) == number
            x += list(case.values["update ratio"][chosen])
            # A run that stood still has no losses any more: their mean is 0.
            at_end = np.where(case.values["finite"], case.values["loss"][..., -1], np.inf)
            y += list(at_end[chosen])
        y = np.log10(np.minimum(y, 1e6))
        told.plot(np.log10(np.maximum(x, 1e-12)), y, ".", color=colors[number], label=what)
    told.set_xlabel("log₁₀ first update / parameter")
    told.set_ylabel("log₁₀ last loss, nats, 6 at most")
    told.legend()
    for name, key, color in (
        ("printed: error", "distortion", colors[0]),
        ("printed: “KL”", "penalty", colors[2]),
    ):
        for layer, line in (("encoder/mean", "-"), ("encoder/layer_0", "--")):
            step, values = looks(found, "tied", f"grad/{layer}/{key}")
            log = np.log10(np.maximum(values, 1e-12))
            terms.plot(step, log, line, color=color, label=f"{name}, {layer}")
    terms.set_xlabel("step")
    terms.set_ylabel("log₁₀ gradient")
    terms.legend(fontsize=5.5)
    return sheet


def looks(found: Found, objective: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps at which there was a look, and the mean over the objective's runs."""
    runs = [r for r in found.results.runs if r.setting("objective.name") == objective]
    seen = [run.looks for run in runs if key in run.looks.curves]
    if not seen:
        return np.zeros(0), np.zeros(0)
    return seen[0].step, np.mean([of.curves[key] for of in seen], axis=0)
