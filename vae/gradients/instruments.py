"""The table of instruments: what each reads of a run at frozen parameters.

To add one: a function from a `Look` to a `Reading`, and a row of `INSTRUMENTS`; its name in
experiments/fields.py and a word on it in configs/default.py; titles of what it reads in
experiments/report/looks.py.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vae import loss, objectives, random, schedules
from vae.data import Examples, Transform
from vae.errors import UserError
from vae.gradients import collapse, curvature, flow, jacobians, noise, noise_scale, per_example
from vae.gradients import signal as signals
from vae.layers import layer_names
from vae.loss import TERMS, Batch, batch_loss, rows
from vae.model import Params
from vae.posteriors import POINTS, POSTERIORS
from vae.spec import Spec
from vae.train import TrainState

# Of a Jacobian's or a lag's examples; and the samples behind one mean of z given x.
FEW, LAG_SAMPLES = 16, 256

# Hessian-vector products behind the ends of a spectrum: enough for two digits of the largest, where
# it stands apart.
LANCZOS = 12

# Of the costliest instruments: a gradient of each example, and dozens of Hessian-vector products.
SOME = 32


class Settings(NamedTuple):
    """How closely instruments look: static.

    Attributes:
      examples: training examples looked at. draws: of a gradient, for its noise; 4 or more.
    """

    examples: int
    draws: int


class Look(NamedTuple):
    """What an instrument looks at, of one run: `batch` has the examples, rng the noise."""

    spec: Spec
    settings: Settings
    data: Examples
    state: TrainState
    batch: Batch
    rng: jax.Array


class Reading(NamedTuple):
    """What it reads.

    Attributes:
      layers: by KIND/QUANTITY, an array [L] in the order of `layer_names`: nan where a layer has
        no such quantity. They are written as KIND/LAYER/QUANTITY, as in grad/encoder/mean/snr.
      scalars: by name.
    """

    layers: dict[str, jax.Array]
    scalars: dict[str, jax.Array]


class Instrument(NamedTuple):
    """A row of `INSTRUMENTS`.

    Attributes:
      read: Look -> Reading.
      refused: spec -> why its numbers would mean nothing; "" where they mean something.
    """

    read: Callable[[Look], Reading]
    refused: Callable[[Spec], str] = lambda spec: ""


def terms(look: Look) -> Reading:
    """Gradients by term, and the angles between them; of what is zero altogether, nothing."""
    seen = flow.flow(look.spec, look.data.transform, look.state, look.batch, look.rng)
    there = {term: jnp.any(norms > 0) for term, norms in seen.terms.items()}

    def only(values, *names):
        return jnp.where(jnp.all(jnp.stack([there[n] for n in names])), values, jnp.nan)

    layers = {f"grad/{term}": only(seen.terms[term], term) for term in TERMS}
    for a, b in flow.PAIRS:
        both = (seen.terms[a] > 0) & (seen.terms[b] > 0)
        layers[f"grad/cosine_{a}_{b}"] = jnp.where(both, seen.cosines[f"{a}_{b}"], jnp.nan)
    return Reading({"grad/whole": seen.gradient, **layers}, {})


def signal(look: Look) -> Reading:
    """Activations on the way forward and ∂ℓ/∂h on the way back; see `vae.gradients.signal`."""
    seen = signals.signal(look.spec, look.data.transform, look.state, look.batch, look.rng)
    place = {name: i for i, name in enumerate(signals.names(look.state.params))}
    names = layer_names(look.state.params)

    def spread(values):
        blank = jnp.full((), jnp.nan, values.dtype)
        return jnp.stack([values[place[n]] if n in place else blank for n in names])

    inputs = {
        f"signal/{part}_input_{name}": values[i]
        for name, values in seen["inputs"].items()
        for i, part in enumerate(signals.PARTS)
    }
    return Reading({f"signal/{n}": spread(v) for n, v in seen["layers"].items()}, inputs)


def examples(look: Look) -> Reading:
    """Norms of the gradients of single examples, and the gradient noise scale from them."""
    found = per_example.per_example(
        look.spec, look.data.transform, look.state, _some(look), look.rng
    )
    scale = noise_scale.from_examples(found, layer_names(look.state.params))
    layers = {
        "grad/example_median": jnp.median(found.norms, axis=0),
        "grad/example_largest": jnp.max(found.norms, axis=0),
    }
    scalars = {f"scale/{part}": scale.simple[i] for i, part in enumerate(noise_scale.PARTS)} | {
        "grad/example_median": jnp.median(found.whole),
        "grad/example_largest": jnp.max(found.whole),
    }
    return Reading(layers, scalars)


def of_draws(look: Look) -> Reading:
    """Signal and noise of the gradient of a batch, and where the noise comes from.

    Draws have their own batches, as many examples as are looked at, their own binarisation and
    their own samples of z. The shares are of the variance, from a nested design of as many draws.
    """
    spec, data, state = look.spec, look.data, look.state
    position = jnp.arange(look.settings.examples, dtype=jnp.int32)

    def gradient(batch_rng, data_rng, noise_rng):
        index = random.shuffled(batch_rng, position, data.raw.shape[0])
        batch = Batch(rows(data, index), index)

        def value(params):
            return batch_loss(
                spec,
                data.transform,
                params,
                state.stats,
                state.hparams,
                state.step,
                batch,
                rng=noise_rng,
                data_rng=data_rng,
            )[0]

        return jax.grad(value)(state.params)

    of_snr, of_shares = jax.random.split(look.rng)
    found = noise.moments(
        lambda rng: gradient(*jax.random.split(rng, 3)),
        jax.random.split(of_snr, look.settings.draws),
    )
    seen = noise.snr(found, noise.layers)
    shares = noise.variance_components(
        gradient,
        of_shares,
        batches=max(2, look.settings.draws // 4),
        binarisations=2,
        noises=2,
        groups=noise.layers,
    )
    layers = {
        "grad/snr": seen.corrected,
        "grad/snr_plain": seen.plain,
        "grad/noise": seen.noise,
        **{
            f"grad/share_{name}": getattr(shares, name) / shares.total
            for name in ("noise", "data", "batch")
        },
    }
    return Reading(layers, {"grad/snr_floor": seen.floor[0]})


def jacobian(look: Look) -> Reading:
    """Singular values of the decoder's and of the encoder's Jacobian."""
    shown = _inputs(look, FEW)
    decoder_rng, encoder_rng = jax.random.split(look.rng)
    spec, state = look.spec.model, look.state
    values = {
        "decoder": jacobians.decoder_values(spec, shown, state, decoder_rng),
        "encoder": jacobians.encoder_values(spec, shown, state, encoder_rng),
    }
    return Reading(
        {},
        {
            f"jacobian/{part}_{name}": value
            for part, of in values.items()
            for name, value in jacobians.conditioning(spec, of).items()
        },
    )


def hessian(look: Look) -> Reading:
    """The ends of the spectrum of the loss's Hessian, and the largest of each term's."""
    at = look.spec, look.data.transform, look.state, _some(look), look.rng
    whole = curvature.sharpness(*at, iterations=LANCZOS)
    of_terms = curvature.sharpness_by_term(*at, iterations=LANCZOS)
    rate = schedules.learning_rate(
        look.spec.optimizer.schedule, look.state.step, look.state.hparams
    )
    scalars = {
        "hessian/largest": whole.largest[0],
        "hessian/smallest": whole.smallest[0],
        "hessian/largest_times_half_rate": whole.largest[0] * rate / 2,
    }
    for term, ritz in of_terms.items():
        some = (ritz.largest[0] != 0) | (ritz.smallest[0] != 0)
        scalars[f"hessian/{term}"] = jnp.where(some, ritz.largest[0], jnp.nan)
    return Reading({}, scalars)


def of_codes(look: Look) -> Reading:
    """Collapse: rate, units in use, information, and how far the encoder lags."""
    spec, state = look.spec.model, look.state
    seen = collapse.collapse(spec, _inputs(look, look.settings.examples), state, look.rng)
    scalars = {f"collapse/{name}": v for name, v in seen.items() if v.ndim == 0}
    scalars["collapse/active_units"] = seen["active_units"][0]
    if POSTERIORS[spec.posterior].continuous:
        means = collapse.posterior_means(
            spec, _inputs(look, FEW), state, look.rng, num_samples=LAG_SAMPLES
        )
        lag = collapse.lag(means)
        scalars |= {
            "collapse/lag": lag.rms,
            "collapse/lag_slope": lag.slope,
            "collapse/effective_samples": jnp.median(means.effective_samples),
        }
    return Reading({}, scalars)


def _some(look: Look) -> Batch:
    """The first `SOME` examples."""
    return Batch(look.batch.raw[:SOME], look.batch.index[:SOME])


def _inputs(look: Look, most: int) -> Examples:
    """The first examples as a step sees them, with nothing random left to be done to them."""
    count = min(most, look.settings.examples)
    raw, index = look.batch.raw[:count], look.batch.index[:count]

    def one(raw, rng):
        return loss.draw(look.spec, look.data.transform, look.state.hparams, raw, rng).x

    return Examples(jax.vmap(one)(raw, random.example_rngs(look.rng, index)), Transform())


def _no_density(spec: Spec) -> str:
    if spec.model.posterior in (*POINTS, "vq", "categorical"):
        return f"model.posterior: {spec.model.posterior} has no density of z"
    return ""


def _discrete(spec: Spec) -> str:
    if not POSTERIORS[spec.model.posterior].continuous:
        return f"model.posterior: {spec.model.posterior} has a discrete z, without derivatives"
    return ""


def _game(spec: Spec) -> str:
    if objectives.OBJECTIVES[spec.objective.name].adversary:
        return f"objective.name: {spec.objective.name} is a game, not one loss with a curvature"
    return ""


INSTRUMENTS: dict[str, Instrument] = {
    "terms": Instrument(terms, flow.undivided),
    "signal": Instrument(signal),
    "examples": Instrument(examples, per_example.uncoupled),
    "noise": Instrument(of_draws),
    "jacobian": Instrument(jacobian, _discrete),
    "hessian": Instrument(hessian, _game),
    "collapse": Instrument(of_codes, _no_density),
}


def check(spec: Spec, names: tuple[str, ...]) -> None:
    """Passes instruments whose numbers mean something for a spec.

    Raises:
      UserError: which does not, and why.
    """
    if names and spec.model.packed:
        raise UserError(
            "probe.instruments: they look at a model of one size, and several share this one. Set "
            "probe.instruments to none, or train each size by itself."
        )
    for name in names:
        if reason := INSTRUMENTS[name].refused(spec):
            raise UserError(f"probe.instruments: {name} would tell nothing here. {_ended(reason)}")


def _ended(reason: str) -> str:
    return reason if reason.endswith(".") else f"{reason}."


def fitting(spec: Spec) -> tuple[str, ...]:
    """All instruments that a spec admits."""
    return tuple(name for name, row in INSTRUMENTS.items() if not row.refused(spec))


def check_layers(params: Params, wanted: tuple[str, ...]) -> None:
    """Passes names of layers that there are.

    Raises:
      UserError: one that does not exist; lists the layers.
    """
    names = layer_names(params)
    for name in wanted:
        if name not in names:
            raise UserError(
                f"probe.layers: there is no layer {name}. The layers are {', '.join(names)}."
            )
