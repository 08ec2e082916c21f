"""What a posterior is: q(z|x) of one example, and the functions that a family of them has:
what the encoder's heads mean, how z is drawn, and log q(z|x).

The gradient of log q(z|x) is taken in one of three ways, `mode`:

  total  through z and through the parameters of q, together: plain reparameterisation
  path   through z alone, the parameters held: Roeder et al. 2017
  score  through the parameters alone, z held
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from vae.spec import ModelSpec

MODES = ("total", "path", "score")

Heads = dict[str, jax.Array]


class Posterior(NamedTuple):
    """q(z|x) of one example.

    Attributes:
      mean: E[z], of flows that of what flows; [latent_size]. Of a hierarchy E[z_1] alone, and of a
        ladder what x says of each layer.
      logvar: log of the variances, before correlations or flows; [d], or None where there are none.
      rest: what else a family needs.
    """

    mean: jax.Array
    logvar: jax.Array | None = None
    rest: dict[str, jax.Array] = {}


class Family(NamedTuple):
    """A row of `POSTERIORS`.

    Attributes:
      heads: spec -> the encoder's heads and their sizes.
        Those of a ladder's higher rungs are called NAME_2, NAME_3, ..., see `vae.nets.Encoder`.
      posterior: (spec, heads, stats, hparams) -> Posterior; stats are those of this family.
      noise: (rng, shape) -> standard noise, of shape [K, noise_size].
      noise_size: spec -> numbers of noise in one draw.
      draw: (spec, params, posterior, noise, hparams, train) -> (z, what log_q needs of the draw);
        params are those of this family, or, where it has `nets`, a `vae.hierarchy.Nets` of them.
      log_q: (spec, params, posterior, z, noise, drawn, mode) -> log q(z|x), nats; where it has
        `nets`, that of each dimension given the layers that it hangs on, [d].
      modes: the modes of `log_q`.
      kl: (spec, posterior) -> KL of each latent dimension to the standard prior, [d], nats; or
        None. Its terms are those of the chain rule where dimensions are correlated.
      log_standard: (spec, z) -> log-density of the standard prior, of the same kind as q.
      draw_standard: (spec, rng, stats) -> z of the standard prior.
      init: (spec, rng) -> (parameters, running statistics) of its own, both may be empty.
      update: (spec, posterior, stats, hparams) -> new running statistics; collectives over `batch`.
      latent_size: spec -> numbers in z.
      location: (spec, params, posterior) -> the z that stands for q, [latent_size].
      continuous: whether z has a density (and, say, could be interpolated).
      nets: of several stochastic layers, the part of the parameters that the networks between them
        are in: `posterior`, or `prior`, of which q is then made too; else "".
      read: (spec, z) -> the part of z that the decoder reads.
    """

    heads: Callable[[ModelSpec], dict[str, int]]
    posterior: Callable[..., Posterior]
    draw: Callable[..., tuple[jax.Array, Any]]
    log_q: Callable[..., jax.Array]
    log_standard: Callable[[ModelSpec, jax.Array], jax.Array]
    draw_standard: Callable[..., jax.Array]
    kl: Callable[[ModelSpec, Posterior], jax.Array] | None = None
    modes: tuple[str, ...] = MODES
    noise: Callable[..., jax.Array] = jax.random.normal
    noise_size: Callable[[ModelSpec], int] = lambda spec: spec.latent_dim
    init: Callable[..., tuple[dict[str, Any], dict[str, Any]]] = lambda spec, rng: ({}, {})
    update: Callable[..., dict[str, Any]] | None = None
    latent_size: Callable[[ModelSpec], int] = lambda spec: spec.latent_dim
    location: Callable[..., jax.Array] = lambda spec, params, posterior: posterior.mean
    continuous: bool = True
    nets: str = ""
    read: Callable[[ModelSpec, jax.Array], jax.Array] = lambda spec, z: z
