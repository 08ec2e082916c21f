"""What is static about a run: shapes, names and counts.

Two runs with equal specs share one compiled program; everything that may differ between runs of
one population is a number in `vae.hparams.HParams` instead.
"""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """The networks and densities of a VAE; see configs/default.py for the meaning of each name.

    Attributes:
      example_shape: shape of one example: (D,) for a vector, (H, W, C) for an image.
      width: units (mlp) or channels (conv) of every hidden layer, or one number per layer in the
        encoder's order; the decoder mirrors it.
    """

    example_shape: tuple[int, ...]
    latent_dim: int = 8
    net: str = "mlp"
    depth: int = 2
    width: int | tuple[int, ...] = 128
    activation: str = "relu"
    norm: str = "none"
    init: str = "glorot"
    residual: str = "none"
    likelihood: str = "bernoulli"
    posterior_scale: str = "logvar"
    output_bias: str = "zero"

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of each of the encoder's `depth` hidden layers, input side first."""
        if isinstance(self.width, int):
            return (self.width,) * self.depth
        return tuple(self.width)

    @property
    def num_values(self) -> int:
        """Number of values D in one example, the dimension of the likelihood."""
        return math.prod(self.example_shape)


@dataclasses.dataclass(frozen=True)
class ObjectiveSpec:
    """What is minimised: the objective's name, its β schedule, and K, the samples of z."""

    name: str = "elbo"
    beta_schedule: str = "constant"
    samples: int = 1


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """The optimiser and its schedule.

    Attributes:
      plateau_window: steps whose mean loss is one reading of `plateau`.
      ema: whether an exponential moving average of the parameters is kept (and evaluated).
    """

    name: str = "adam"
    schedule: str = "constant"
    plateau_factor: float = 0.5
    plateau_patience: int = 5
    plateau_window: int = 100
    ema: bool = False


@dataclasses.dataclass(frozen=True)
class Spec:
    """Everything static about a run."""

    model: ModelSpec
    objective: ObjectiveSpec = ObjectiveSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    batch_size: int = 128
