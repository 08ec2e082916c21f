"""Very deep VAEs diverge; bounded scales and skipped updates keep them going (Child 2021).

A proxy on two cores for VAEs of 30 to 75 layers: ladders of L stochastic layers of 16 latents, with
a residual layer of 64 units for each on the way up, its branch scaled by 1/√L, and a layer of as
many on the way down; the embedded digits, batches of 32, Adam with β = (0.9, 0.9) as in VDVAE. At
the learning rates of 0.003, 0.01 and 0.02 the plainest of them trains, diverges at times, diverges.
What is varied:

  exp          σ² = exp(s); VDVAE has σ = exp(s) (Child 2021)
  softplus     σ = ln(1 + 2^s)/ln 2 (Hazami et al. 2022, Efficient-VDVAE: smoother gradients)
  soft clamp   log σ = 5 tanh(s/5) (Vahdat and Kautz 2020, NVAE: σ within e^±5)
  skip         updates with a gradient norm of more than 200 are left out (Child 2021: 200 to 400)
  BN           BatchNorm in all networks (Sønderby et al. 2016; NVAE)

A run whose loss or gradient is not finite is frozen there, and has the largest norm of 10^38.5, the
end of float32; of others it is the largest of any step. The skip rate is the share of steps left
out of those before divergence. Theirs have residual streams of width 384 and more on the way down
too, and train for weeks; nothing is said of the bounds here. Learning rates and lengths were
settled after first looks, so that some runs diverge and some do not: a remedy shows nowhere else.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.report import canvas, style
from experiments.studies.cases import Case, Context, Found
from experiments.studies.quantity import Quantity, of_seeds
from vae import data, train
from vae.hparams import HParams, stack
from vae.loss import batch_at
from vae.spec import ModelSpec, ObjectiveSpec, OptimizerSpec, Spec

ID = "C1"
SCALES = {"logvar": "exp", "softplus_ln2": "softplus", "soft_clamp": "soft clamp"}
RATES = (0.003, 0.01, 0.02)
SKIP = (np.inf, 200.0)
LATENTS, WIDTH, BATCH = 16, 64, 32
OVERFLOW = 38.5


def cases(budget: str) -> list[dict[str, Any]]:
    """Depth × scale × BatchNorm; at quick budget BatchNorm at the smallest depth alone."""
    depths, steps, seeds = ((10, 20), 300, 4) if budget == "quick" else ((10, 20, 40), 2000, 8)
    normed = depths[:1] if budget == "quick" else depths
    kinds = [(layers, "none") for layers in depths] + [(layers, "batch") for layers in normed]
    return [
        {"layers": layers, "norm": norm, "scale": scale, "steps": steps, "seeds": seeds}
        for layers, norm in kinds
        for scale in SCALES
    ]


def run(arguments: dict[str, Any], context: Context) -> dict[str, np.ndarray]:
    """Of [learning rate, skip, seed]: diverged, share of steps skipped, log10 of largest norm."""
    del context
    digits = data.load("digits", binarization="dynamic")
    spec = spec_of(arguments, digits)
    examples = data.Examples(jnp.asarray(digits.train), digits.transform)
    runs = stack(
        [
            HParams(seed=seed, learning_rate=rate, skip_norm=skip, b2=0.9)
            for rate in RATES
            for skip in SKIP
            for seed in range(arguments["seeds"])
        ]
    )

    def one(hparams):
        state = train.init_run(spec, hparams, jnp.asarray(digits.train_mean))

        def body(step, carry):
            state, largest = carry
            batch = batch_at(spec, examples, hparams.seed, step)
            state, metrics = train.train_step(spec, examples.transform, state, batch)
            norm = jnp.where(metrics["finite"], metrics["grad_norm"], 0)
            return state, jnp.maximum(largest, norm)

        start = (state, jnp.zeros((), jnp.float32))
        state, largest = jax.lax.fori_loop(0, arguments["steps"], body, start)
        made = jnp.where(state.diverged, state.diverged_step, arguments["steps"])
        return {
            "diverged": state.diverged,
            "skipped": state.skipped / jnp.maximum(made, 1),
            "largest": jnp.where(state.diverged, OVERFLOW, jnp.log10(largest)),
        }

    # Compiling is half of the time, and the steps are small.
    quickly = {"xla_backend_optimization_level": 0}
    if jax.__version_info__ < (0, 11):  # later versions have but the newer loops
        quickly["xla_cpu_use_fusion_emitters"] = False
    options = quickly if jax.default_backend() == "cpu" else None
    found = jax.jit(jax.vmap(one)).lower(runs).compile(options)(runs)
    shape = (len(RATES), len(SKIP), arguments["seeds"])
    return {name: np.asarray(a, np.float64).reshape(shape) for name, a in found.items()}


def spec_of(arguments: dict[str, Any], dataset: data.Dataset) -> Spec:
    """The ladder of a case."""
    layers = arguments["layers"]
    model = ModelSpec(
        dataset.example_shape,
        LATENTS * layers,
        depth=1,
        width=WIDTH,
        activation="silu",
        norm=arguments["norm"],
        residual="scaled",
        posterior="ladder",
        posterior_scale=arguments["scale"],
        prior="hierarchical",
        stochastic=(LATENTS,) * layers,
        stochastic_depth=1,
        stochastic_width=WIDTH,
    )
    objective = ObjectiveSpec(num_examples=dataset.num_train)
    return Spec(model, objective, OptimizerSpec(skip=True), batch_size=BATCH)


def by_seed(case: Case, name: str, skip: int) -> np.ndarray:
    """A mean over learning rates for each seed, of runs that skip (1) or do not (0)."""
    return case.values[name][:, skip].mean(axis=0)


def over(found: Found, name: str, skip: int, **wanted: Any) -> np.ndarray:
    """The same, and a mean over depths."""
    return np.mean([by_seed(case, name, skip) for case in found.of(**wanted)], axis=0)


def label(case: Case) -> str:
    """`10 layers, exp + BN`."""
    of = case.arguments
    return f"{of['layers']} layers, {SCALES[of['scale']]}{' + BN' * (of['norm'] == 'batch')}"


def measure(found: Found) -> list[Quantity]:
    """Of each case over the learning rates; then what each remedy takes off the exp scale."""
    rows = []
    for case in found.cases:
        for skip, how in enumerate(("", ", skip")):
            diverged = by_seed(case, "diverged", skip)
            rows.append(of_seeds(f"share diverged, {label(case)}{how}", diverged))
        rows.append(of_seeds(f"skip rate, {label(case)}", by_seed(case, "skipped", 1)))
        largest = by_seed(case, "largest", 0)
        rows.append(of_seeds(f"log10 of the largest gradient norm, {label(case)}", largest))
    return [*rows, *_remedies(found)]


def _remedies(found: Found) -> list[Quantity]:
    """Differences of the same seed, depth by depth where both are there."""
    depths = {case.arguments["layers"] for case in found.of(norm="batch")}

    def change(name, without, with_, skip=(0, 0), layers=None):
        chosen = layers or {case.arguments["layers"] for case in found.of(norm="none")}
        differences = [
            over(found, name, skip[0], layers=of, **without)
            - over(found, name, skip[1], layers=of, **with_)
            for of in sorted(chosen)
        ]
        return np.mean(differences, axis=0)

    def scale(of, norm="none"):
        return {"scale": of, "norm": norm}

    exp = scale("logvar")
    kinds = {"diverged": "share diverged", "largest": "log10 of the largest gradient norm"}
    claims = [
        ("softplus", scale("softplus_ln2"), {}, "Hazami et al. 2022, on gradient smoothing"),
        ("soft clamp", scale("soft_clamp"), {}, "Vahdat and Kautz 2020, on its scales"),
        ("exp + BN", scale("logvar", "batch"), {"layers": depths}, "Sønderby et al. 2016"),
    ]
    rows = [
        of_seeds(
            f"{what}, exp − {name}: the sign",
            change(kind, exp, other, **options),
            0,
            relation=">=",
            source=source,
        )
        for name, other, options, source in claims
        for kind, what in kinds.items()
    ]
    skipping = change("diverged", exp, exp, skip=(0, 1))
    name = "share diverged, exp − exp, skip: the sign"
    return [*rows, of_seeds(name, skipping, 0, relation=">=", source="Child 2021, on skipping")]


def figure(found: Found):
    """Shares that diverged, and the largest norms, by learning rate, for each scale and depth."""
    sheet, panels = canvas.new_figure(2, 2, 6.8, 4.6)
    panels = np.reshape(panels, (2, 2))
    deepest = max(case.arguments["layers"] for case in found.cases)
    for case in found.cases:
        of = case.arguments
        color = style.PETROFF[list(SCALES).index(of["scale"])]
        line = "--" if of["norm"] == "batch" else "-" if of["layers"] == deepest else "-."
        for column in range(2):
            for row, name in enumerate(("diverged", "largest")):
                values = case.values[name][:, column].mean(axis=1)
                places = range(len(RATES))
                panel = panels[row, column]
                panel.plot(places, values, line, marker="o", ms=3, color=color, label=label(case))
    for column, title in enumerate(("every update is made", f"skip above {SKIP[1]:g}")):
        panels[0, column].set_title(title)
        panels[0, column].set_ylim(-0.05, 1.05)
        for row in range(2):
            panels[row, column].set_xticks(range(len(RATES)), [f"{r:g}" for r in RATES])
        panels[1, column].set_xlabel("learning rate")
    panels[0, 0].set_ylabel("share diverged")
    panels[1, 0].set_ylabel("log10 of the largest norm")
    handles = panels[0, 0].get_legend_handles_labels()
    sheet.legend(*handles, loc="outside upper center", ncols=3)
    return sheet
