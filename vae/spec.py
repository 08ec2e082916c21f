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
      latent_dim: dimensions of z, of all its stochastic layers together; with discrete posteriors,
        the number of discrete variables.
      stochastic: dimensions of each stochastic layer, from z_1, which the decoder reads, up; empty
        where z has but one.
      stochastic_depth, stochastic_width: hidden layers of each network between two stochastic
        layers, and their units: one number, or one for each pair of neighbours, from the bottom up.
      posterior_rank: columns of the factor of the posterior `low_rank`.
      codes: values of one discrete variable: classes (`categorical`) or codebook entries (`vq`).
      code_dim: length of a codebook entry (`vq`).
      latent_skip: whether the decoder's later layers read z too: `none`, `concat`.
      prior_components: components of the priors `mixture` and `vamp`.
      flow_layers, flow_width: of a posterior or prior that is a flow, each.
      precision, remat: how the networks are computed, and not what: those of a `Spec`, which a
        training step puts here. A model by itself, as an evaluation takes it, is in float32.
      packed: numbers of latents that runs of this model have, each up to `latent_dim` and with a
        depth of its own up to `depth`, see `vae.packed`; empty: all have these.
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
    output: str = "identity"
    output_bias: str = "zero"
    latent_skip: str = "none"
    posterior: str = "gaussian"
    posterior_scale: str = "logvar"
    posterior_rank: int = 4
    codes: int = 16
    code_dim: int = 8
    prior: str = "standard"
    prior_components: int = 50
    flow_layers: int = 4
    flow_width: int = 64
    stochastic: tuple[int, ...] = ()
    stochastic_depth: int = 2
    stochastic_width: int | tuple[int, ...] = 64
    precision: str = "float32"
    remat: str = "none"
    packed: tuple[int, ...] = ()

    def __post_init__(self):
        if sum(self.latent_dims) != self.latent_dim:
            raise ValueError(f"stochastic: {self.stochastic} are not {self.latent_dim} in all.")

    @property
    def latent_dims(self) -> tuple[int, ...]:
        """Dimensions of each stochastic layer, from z_1 up."""
        return self.stochastic or (self.latent_dim,)

    @property
    def encoder_layers(self) -> int:
        """Hidden layers of the encoder, those of a ladder's higher rungs among them."""
        rungs = len(self.latent_dims) - 1 if self.posterior == "ladder" else 0
        return self.depth + rungs * self.stochastic_depth

    @property
    def stochastic_widths(self) -> tuple[int, ...]:
        """Hidden units of the networks between two stochastic layers, from the bottom up."""
        if isinstance(self.stochastic_width, int):
            return (self.stochastic_width,) * (len(self.latent_dims) - 1)
        return tuple(self.stochastic_width)

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

    @property
    def channels(self) -> int:
        """Values of one pixel: C of an image; each value of a vector is a pixel of its own."""
        return self.example_shape[-1] if len(self.example_shape) > 1 else 1

    @property
    def pixels(self) -> tuple[int, ...]:
        """Shape of an example without its channels: (H, W) of an image, (D,) of a vector."""
        return self.example_shape[:-1] if len(self.example_shape) > 1 else self.example_shape

    @property
    def num_pixels(self) -> int:
        return math.prod(self.pixels)


@dataclasses.dataclass(frozen=True)
class ObjectiveSpec:
    """What is minimised, and by which estimator of its gradient.

    Attributes:
      samples: K samples of z per example (of each group, where there are groups).
      groups: M groups of K samples, of `miwae` and `piwae`.
      kl: `analytic`, `sampled`, or `auto`: analytic where it is known in closed form.
      free_bits_groups: groups of latent dimensions that share a floor; 0: each has its own.
      num_examples: N, the size of the training set, which `tcvae` reads.
      tc_estimator, kernel: of `tcvae` and `mmd`.
      discriminator_depth, discriminator_width: of the objectives that train one.
      corruption: of the encoder's input in training: `none`, `gaussian` or `mask`.
    """

    name: str = "elbo"
    estimator: str = "reparameterization"
    beta_schedule: str = "constant"
    samples: int = 1
    groups: int = 1
    kl: str = "auto"
    free_bits_groups: int = 0
    num_examples: int = 0
    tc_estimator: str = "stratified"
    kernel: str = "imq"
    discriminator_depth: int = 3
    discriminator_width: int = 256
    corruption: str = "none"


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """The optimiser and its schedule.

    Attributes:
      plateau_window: steps whose mean loss is one reading of `plateau`.
      ema: whether an exponential moving average of the parameters is kept (and evaluated).
      encoder_steps: most updates of the encoder before each of the decoder; 1: both together.
      skip: whether steps whose gradient is larger than `skip_norm` are passed over.
      decays: False: `weight_decay` is not read, as it is 0 in all runs. The same numbers, in less
        time: each of Adam's moments is spared a pass over the parameters.
    """

    name: str = "adam"
    schedule: str = "constant"
    plateau_factor: float = 0.5
    plateau_patience: int = 5
    plateau_window: int = 100
    ema: bool = False
    skip: bool = False
    encoder_steps: int = 1
    decays: bool = True


@dataclasses.dataclass(frozen=True)
class Spec:
    """Everything static about a run.

    Attributes:
      precision: of the networks in a training step, `float32` or `bfloat16`, see `vae.nets`.
      accumulate: parts of the batch, one after the other, whose gradients are averaged.
      remat: what is computed anew on the way back: `none`, or each of the hidden `layers`.
    """

    model: ModelSpec
    objective: ObjectiveSpec = ObjectiveSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    batch_size: int = 128
    precision: str = "float32"
    accumulate: int = 1
    remat: str = "none"

    def in_training(self) -> "Spec":
        """The same, with the model computed as a training step does it."""
        model = dataclasses.replace(self.model, precision=self.precision, remat=self.remat)
        return dataclasses.replace(self, model=model)
