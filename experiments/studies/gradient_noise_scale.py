"""The gradient noise scale B_simple grows as the loss falls in training (McCandlish et al. 2018).

Of batches of B examples the gradient has the mean G and the covariance Σ/B; B_simple = tr Σ/|G|²
(section 2.2) is the batch size whose noise is as large as its signal. VAEs on the embedded digits,
binarised anew for each gradient, are looked at from before their first step to their last. Encoder
and decoder have noise scales of their own; which is larger, the paper does not ask.

At every look B_simple is estimated twice (`vae.gradients.noise_scale`): from gradients of two batch
sizes, as in the paper's appendix A.1, and from gradients of single examples. The two must agree:
both are of unbiased estimates of |G|² and tr Σ. Examples are drawn from the training set with
replacement, so that G is the gradient of the whole of it, which training descends.

Each estimate is a ratio of means over replicates, batches of their own, which also tell its
standard error. Of the ratio of the two ± 0.1 is asked, which no one who chooses a batch size by
powers of two would notice; and that no look tells them apart, by Welch's test of their logarithms:
the smallest p, times the number of tests, is below 0.01 in at most 1% of all studies.

What differs: 8 × 8 digits and small networks for the paper's SVHN. The paper's appendix C has noise
scales that fall with the temperature of training, which is in proportion to the learning rate: so
the same is trained at a constant rate and at one that falls to a tenth along half a cosine.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.report import canvas, style
from experiments.studies.cases import Arguments, Case, Context, Found
from experiments.studies.quantity import Quantity, exact, of_seeds
from vae import data, random, train
from vae.gradients import noise_scale
from vae.gradients.per_example import per_example
from vae.hparams import HParams, stack
from vae.layers import layer_names, layer_norms
from vae.loss import Batch, batch_loss, rows
from vae.spec import ModelSpec, OptimizerSpec, Spec

ID = "A12"
WAYS = ("two batch sizes", "single examples")
PARTS = noise_scale.PARTS[:2]
# Examples in the small batches, and in the big one that they make together; as many one by one.
SMALL, BIG = 32, 1024
# Of learning rates.
SCHEDULES = ("constant", "cosine")
_PAPER = "McCandlish et al. 2018"


def cases(budget: str) -> list[Arguments]:
    """Populations, and how often a noise scale is estimated at each look."""
    seeds, replicates = {"quick": (5, 16), "full": (20, 32)}[budget]
    sizes = {"steps": 3000, "seeds": seeds, "replicates": replicates}
    return [{"schedule": schedule} | sizes for schedule in SCHEDULES]


def looks(steps: int) -> np.ndarray:
    """0, 10, 30, 100, 300, ... up to `steps`."""
    numbers = np.multiply.outer(10 ** np.arange(1, 9), (1, 3)).ravel()
    return np.array([0, *numbers[numbers <= steps]])


def run(arguments: Arguments, context: Context) -> dict[str, np.ndarray]:
    """`squared_gradient` and `trace` [looks, seeds, replicates, 2 ways, 2 parts].

    Also `step` [looks], and [looks, seeds] of `loss`, nats, and of `difference`: the largest of any
    layer and replicate between the norms of the batch gradient and of the mean of its examples'.
    """
    del context
    digits = data.load("digits", binarization="dynamic")
    spec = Spec(
        ModelSpec(digits.example_shape, latent_dim=8, depth=2, width=64),
        optimizer=OptimizerSpec(schedule=arguments["schedule"]),
        batch_size=64,
    )
    rate = {"lr_decay_steps": arguments["steps"], "lr_decay_rate": 0.1}
    hparams = stack([HParams(seed=seed, **rate) for seed in range(arguments["seeds"])])
    population = train.init(spec, hparams, digits.train_mean)
    examples = data.Examples(digits.train, digits.transform)
    look = jax.jit(functools.partial(_look, spec, arguments["replicates"]))
    steps, found = looks(arguments["steps"]), []
    for number in np.diff(steps, prepend=0):
        population = train.train_chunk(spec, "vmap", population, examples, np.int32(number))
        found.append(jax.tree.map(np.asarray, look(examples, population.states)))
    return {"step": steps} | {name: np.stack([of[name] for of in found]) for name in found[0]}


def _look(
    spec: Spec, replicates: int, examples: data.Examples, states: train.TrainState
) -> dict[str, jax.Array]:
    def of_run(state):
        rng = jax.random.fold_in(random.stream(state.hparams.seed, random.PROBE), state.step)
        rngs = jax.random.split(rng, replicates)
        found = jax.lax.map(functools.partial(_replicate, spec, examples, state), rngs)
        whole = {
            "loss": jnp.mean(found.pop("loss")),
            "difference": jnp.max(found.pop("difference")),
        }
        return found | whole

    return jax.lax.map(of_run, states)


def _replicate(
    spec: Spec, examples: data.Examples, state: train.TrainState, rng: jax.Array
) -> dict[str, jax.Array]:
    """Both estimates, each of examples and noise of its own."""
    chunk_rng, single_rng = jax.random.split(rng)

    def loss_of(batch, rng):
        def loss(params):
            args = params, state.stats, state.hparams, state.step, batch
            return batch_loss(spec, examples.transform, *args, rng=rng)[0]

        return jax.value_and_grad(loss)(state.params)

    batch, rng = _drawn(examples, chunk_rng)
    chunks = jax.tree.map(lambda a: a.reshape(1, BIG // SMALL, SMALL, *a.shape[1:]), batch)
    by_sizes = noise_scale.from_chunks(lambda chunk: loss_of(chunk, rng)[1], chunks, SMALL)
    batch, rng = _drawn(examples, single_rng)
    each = per_example(spec, examples.transform, state, batch, rng, chunk=64)
    by_examples = noise_scale.from_examples(each, layer_names(state.params))
    loss, of_batch = loss_of(batch, rng)
    ways = jax.tree.map(lambda *a: jnp.stack(a)[:, : len(PARTS)], by_sizes, by_examples)
    difference = jnp.abs(each.mean_norms / layer_norms(of_batch) - 1)
    return {
        "squared_gradient": ways.squared_gradient,
        "trace": ways.trace,
        "loss": loss,
        "difference": jnp.max(difference),
    }


def _drawn(examples: data.Examples, rng: jax.Array) -> tuple[Batch, jax.Array]:
    """`BIG` examples with replacement, and the key of their noise.

    They are numbered by their place in the batch, by which each has noise of its own.
    """
    index_rng, rng = jax.random.split(rng)
    index = jax.random.randint(index_rng, (BIG,), 0, len(examples.raw))
    return Batch(rows(examples, index), jnp.arange(BIG, dtype=jnp.int32)), rng


def estimates(values: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """ln B_simple and its standard error, [looks, seeds, 2 ways, 2 parts].

    Of the ratio of two means, S and |G|², the logarithm deviates by S_r/S − |G|²_r/|G|² in each
    replicate r, to the first order. nan where |G|² comes out below 0.
    """
    squared, trace = (np.float64(values[name]) for name in ("squared_gradient", "trace"))
    means = trace.mean(axis=2), squared.mean(axis=2)
    with np.errstate(invalid="ignore"):
        logs = np.log(means[0]) - np.log(means[1])
    deviations = trace / means[0][:, :, None] - squared / means[1][:, :, None]
    return logs, deviations.std(axis=2, ddof=1) / np.sqrt(trace.shape[2])


def pooled(values: dict[str, np.ndarray]) -> np.ndarray:
    """B_simple by both ways together, [looks, seeds, 2 parts]; inf where |G|² comes out below 0."""
    names = ("squared_gradient", "trace")
    squared, trace = (np.mean(np.float64(values[name]), axis=(2, 3)) for name in names)
    return np.divide(trace, squared, out=np.full_like(trace, np.inf), where=squared > 0)


def p_values(values: dict[str, np.ndarray]) -> np.ndarray:
    """Of Welch tests of whether the two ways have the same ln B_simple, [looks, seeds, 2 parts]."""
    from scipy import stats

    logs, errors = estimates(values)
    squares = np.square(errors)
    t = (logs[:, :, 0] - logs[:, :, 1]) / np.sqrt(squares.sum(axis=2))
    degrees = values["trace"].shape[2] - 1
    df = degrees * np.square(squares.sum(axis=2)) / np.square(squares).sum(axis=2)
    return 2 * stats.t.sf(np.abs(t), df)


def smallest_p(p: np.ndarray) -> float:
    """The smallest of all times their number: below α in at most α of all cases (Bonferroni)."""
    return float(p.min() * p.size)


def measure(found: Found) -> list[Quantity]:
    """Growth at each schedule; agreement of the two ways at all looks; the two parts."""
    rows = [row for case in found.cases for row in _growth(case)]
    each = [estimates(case.values)[0] for case in found.cases]
    for place, part in enumerate(PARTS):
        ratios = [np.mean(logs[:, :, 0, place] - logs[:, :, 1, place], axis=0) for logs in each]
        rows.append(
            of_seeds(
                f"{part}, B_simple by two batch sizes over that by single examples",
                np.exp(np.mean(ratios, axis=0)),
                1,
                0.1,
                source=f"{_PAPER}, appendix A.1: both unbiased; geometric mean of all looks",
            )
        )
    return [
        *rows,
        exact(
            "test of the two ways at each look: smallest p times tests",
            smallest_p(np.concatenate([p_values(case.values) for case in found.cases])),
            0.01,
            relation=">=",
            source="1% of such tests fail by chance",
        ),
        exact(
            "mean of single gradients against the batch gradient, relative, the largest",
            max(case.values["difference"].max() for case in found.cases),
            1e-5,
            relation="<=",
            source="one sum in two orders, of 1024 float32 numbers",
        ),
    ]


def _growth(case: Case) -> list[Quantity]:
    """From the first look to the last, from a tenth of the training on, and with the loss."""
    from scipy import stats

    values, step = case.values, case.values["step"]
    scales = pooled(values)
    squares, traces = (values[n].mean(axis=(2, 3)) for n in ("squared_gradient", "trace"))
    tenth, rate = int(np.argmin(np.abs(step - step[-1] / 10))), case.arguments["schedule"]
    rows = []
    for place, part in enumerate(PARTS):
        of, label = scales[:, :, place], f"{part}, {rate} rate"
        grown = [np.mean(a[-1, :, place] / a[tenth, :, place]) for a in (squares, traces)]
        pairs = zip(of.T, values["loss"].T, strict=True)
        rows += [
            of_seeds(f"{label}: B_simple before training, examples", of[0]),
            of_seeds(f"{label}: B_simple after {step[-1]} steps, examples", of[-1]),
            of_seeds(
                f"{label}: log10 of B_simple, after training − before",
                np.log10(of[-1] / of[0]),
                0,
                relation=">=",
                source=_PAPER,
            ),
            of_seeds(
                f"{label}: log10 of B_simple, after training − after {step[tenth]} steps",
                np.log10(of[-1] / of[tenth]),
                0,
                relation=">=",
                source=_PAPER,
                note=f"|G|² is multiplied by {grown[0]:.2g} in these steps, tr Σ by {grown[1]:.2g}",
            ),
            of_seeds(
                f"{label}: rank correlation of B_simple with the loss, over the looks",
                [stats.spearmanr(b, loss)[0] for b, loss in pairs],
                0,
                relation="<=",
                source=f"{_PAPER}: the noise scale increases as the loss decreases",
            ),
        ]
    ratios = scales[-1, :, 0] / scales[-1, :, 1]
    return [
        *rows,
        of_seeds(f"{rate} rate: B_simple, encoder over decoder, after {step[-1]} steps", ratios),
    ]


def figure(found: Found):
    """B_simple over training, as in the paper's figures, and by one way over that by the other."""
    sheet, (*over_steps, ways) = canvas.new_figure(1, 1 + len(SCHEDULES), 7.4, 3.0)
    for panel, case in zip(over_steps, found.cases, strict=True):
        step, scales = case.values["step"], pooled(case.values)
        logs, errors = estimates(case.values)
        # 0 has no place on a logarithmic axis: it is put where 1 is, and labelled.
        shown = np.maximum(step, 1)
        for place, part in enumerate(PARTS):
            color = style.PETROFF[place]
            panel.plot(shown, scales[:, :, place], "-o", color=color, ms=3, lw=0.8)
            middle, half = (a[..., place].reshape(-1, 2).T for a in (logs, 1.96 * errors))
            sizes = np.exp(middle)
            below, above = sizes - np.exp(middle - half), np.exp(middle + half) - sizes
            bars = [np.stack(ends) for ends in zip(below, above, strict=True)]
            label = part if panel is over_steps[0] else None
            ways.errorbar(*sizes[::-1], *bars, "o", color=color, ms=2, lw=0.8, label=label)
        panel.set_title(f"{case.arguments['schedule']} learning rate")
        panel.set_xscale("log")
        panel.set_xticks(shown, [f"{n:g}" if f"{n}"[0] != "3" else "" for n in step])
        panel.xaxis.set_minor_formatter("")
        panel.set_xlabel("steps")
    ways.set_xscale("log")
    for panel in (*over_steps, ways):
        panel.set_yscale("log")
    ends = ways.get_xlim()
    ways.plot(ends, ends, "-", color=style.MUTED, lw=0.8, zorder=0)
    for axis in (*(panel.yaxis for panel in over_steps), ways.xaxis, ways.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    limits = np.array([panel.get_ylim() for panel in over_steps])
    for panel in over_steps:
        panel.set_ylim(limits[:, 0].min(), limits[:, 1].max())
    over_steps[0].set_ylabel("B_simple, examples")
    ways.set_title("B_simple, both ways")
    ways.set_xlabel(f"by {WAYS[1]}")
    ways.set_ylabel(f"by {WAYS[0]}")
    sheet.legend(loc="outside lower center", ncols=2)
    return sheet
