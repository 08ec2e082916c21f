"""Looks at a population in training with some of the instruments.

They see a fixed set of training examples and fixed noise, the same at every look, so that curves
show the run and not the draw. They change nothing.
"""

import jax
import jax.numpy as jnp

from vae import packing, random
from vae.data import Examples
from vae.gradients.instruments import INSTRUMENTS, Look, Reading, Settings
from vae.layers import layer_names
from vae.loss import Batch, rows
from vae.model import Params
from vae.packing import Packing
from vae.spec import Spec
from vae.train import TrainState


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
    pack: str | Packing,
    names: tuple[str, ...],
    settings: Settings,
    states: TrainState,
    data: Examples,
) -> Reading:
    return packing.over_runs(
        lambda data, state: read_run(spec, names, settings, data, state), pack, data, states
    )


read = jax.jit(_read, static_argnames=("spec", "pack", "names", "settings"))
read.__doc__ = """What the instruments read of each run of a population: `Reading`, leaves [R, ...].

Args:
  names: of `INSTRUMENTS`. states: [R, ...]. data: the training examples.
"""


def record(params: Params, reading: Reading, wanted: tuple[str, ...] = ()) -> dict[str, float]:
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
