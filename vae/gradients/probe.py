"""The table of instruments, and how a population in training is looked at with some of them.

An instrument looks at one run: its state, a fixed set of training examples (the same at every
look, so that curves show the run and not the draw) and a key. It changes nothing.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vae import packing, random
from vae.data import Examples
from vae.errors import UserError
from vae.gradients import flow
from vae.layers import layer_names
from vae.loss import TERMS, Batch, rows
from vae.spec import Spec
from vae.train import TrainState


class Settings(NamedTuple):
    """How closely instruments look: static.

    Attributes:
      examples: training examples looked at. draws: of a gradient, for its noise.
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


def _terms(look: Look) -> Reading:
    """Gradients by term, and the angles between them; see `vae.gradients.flow`."""
    seen = flow.flow(look.spec, look.data.transform, look.state, look.batch, look.rng)
    layers = {f"grad/{term}": seen.terms[term] for term in TERMS}
    layers |= {f"grad/cosine_{pair}": values for pair, values in seen.cosines.items()}
    return Reading({"grad/whole": seen.gradient, **layers}, {})


INSTRUMENTS: dict[str, Instrument] = {
    "terms": Instrument(_terms, flow.undivided),
}


def check(spec: Spec, names: tuple[str, ...]) -> None:
    """Passes instruments whose numbers mean something for a spec.

    Raises:
      UserError: which does not, and why.
    """
    for name in names:
        if reason := INSTRUMENTS[name].refused(spec):
            raise UserError(f"probe.instruments: {name} would tell nothing here. {reason}.")


def fitting(spec: Spec) -> tuple[str, ...]:
    """All instruments that a spec admits."""
    return tuple(name for name, row in INSTRUMENTS.items() if not row.refused(spec))


def read_run(
    spec: Spec, names: tuple[str, ...], settings: Settings, data: Examples, state: TrainState
) -> Reading:
    """What the instruments read of one run."""
    rng = random.stream(state.hparams.seed, random.PROBE)
    order_rng, rng = jax.random.split(rng)
    position = jnp.arange(settings.examples, dtype=jnp.int32)
    index = random.shuffled(order_rng, position, data.raw.shape[0])
    batch = Batch(rows(data, index), index)
    layers, scalars = {}, {}
    for number, name in enumerate(INSTRUMENTS):
        if name in names:
            own = jax.random.fold_in(rng, number)
            seen = INSTRUMENTS[name].read(Look(spec, settings, data, state, batch, own))
            layers |= seen.layers
            scalars |= seen.scalars
    return Reading(layers, scalars)


def _read(
    spec: Spec,
    pack: str,
    names: tuple[str, ...],
    settings: Settings,
    states: TrainState,
    data: Examples,
) -> Reading:
    return packing.over_runs(
        lambda state: read_run(spec, names, settings, data, state), pack, states
    )


read = jax.jit(_read, static_argnames=("spec", "pack", "names", "settings"))
read.__doc__ = """What the instruments read of each run of a population: `Reading`, leaves [R, ...].

Args:
  names: of `INSTRUMENTS`. states: [R, ...]. data: the training examples.
"""


def record(params: Any, reading: Reading, wanted: tuple[str, ...] = ()) -> dict[str, float]:
    """The reading of one run under the names in which it is written, without what is no number.

    Args:
      params: of the run, for the names of its layers. wanted: the layers to keep; (): all.
    """
    found = {name: float(value) for name, value in reading.scalars.items()}
    for key, values in reading.layers.items():
        kind, quantity = key.split("/")
        for layer, value in zip(layer_names(params), values, strict=True):
            if not wanted or layer in wanted:
                found[f"{kind}/{layer}/{quantity}"] = float(value)
    return {name: value for name, value in found.items() if value == value}


def check_layers(params: Any, wanted: tuple[str, ...]) -> None:
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
