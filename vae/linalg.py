"""LAPACK one matrix at a time.

On a CPU jaxlib spreads a batch of decompositions over XLA's threads, and waits for them on one of
those threads. As many batches at once as there are threads, two on two cores, leave none to do the
work: the program hangs (seen with JAX 0.10.2 for qr, eigh, svd, cholesky and triangular solves).
Without a batch nothing waits. So a vmap over these is a loop.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap

eigh = sequential_vmap(lambda matrix: tuple(jnp.linalg.eigh(matrix)))
eigh.__doc__ = "Eigenvalues, rising, and eigenvectors of a symmetric matrix, as `jnp.linalg.eigh`."

singular_values = sequential_vmap(lambda matrix: jnp.linalg.svd(matrix, compute_uv=False))
singular_values.__doc__ = "Of a matrix, falling."


def orthogonal(rng: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Orthonormal rows or columns, as `jax.nn.initializers.orthogonal`; Saxe et al. 2014."""
    return sequential_vmap(lambda rng: jax.nn.initializers.orthogonal()(rng, shape, dtype))(rng)
