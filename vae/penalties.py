"""Penalties that couple the examples of a batch: total correlation, MMD, covariances, capacity.

Every function but `information_gains`, which no loss has, acts on ONE example inside
`vmap(..., axis_name="batch")` and reaches the others by collectives over that axis. What is said of
each is said of the *mean over examples* of its return: it is the penalty of the batch. Gradients
flow through the collectives, so that the mean of per-example gradients is the gradient of the
penalty; the gradient of one example is of no use alone, and two half batches are not one batch.

Sums over pairs of examples run over the latent dimensions in a scan whose steps are computed
anew on the way back: three to six batch × batch matrices are alive at a time, whatever the number
of dimensions. With all dimensions at once, a batch of 1024 and d = 10 took eight times the memory
and, on a CPU, five times as long.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vae import distributions
from vae.distributions import LOG_2PI

# Distances in units of σ are cut here, so that their squares and derivatives stay finite in
# float32. A density of exp(−1e30/2) has no part in any sum to which another one adds.
_FAR = 1e15


def _positions() -> jax.Array:
    """Of the examples of the batch, counted from this one, cyclically: [B], 0 is its own."""
    batch_size = jax.lax.axis_size("batch")
    return (jnp.arange(batch_size, dtype=jnp.int32) - jax.lax.axis_index("batch")) % batch_size


class AggregateLogDensities(NamedTuple):
    """Log-densities of one z under the aggregate q(z) = 1/N Σ_n q(z|x_n), in nats; scalars.

    Attributes:
      log_qz: log q(z).
      log_qz_product: Σ_j log q(z_j), under the product of its marginals.
    """

    log_qz: jax.Array
    log_qz_product: jax.Array


class RateTerms(NamedTuple):
    """log q(z|x) − log p(z) of one example as three terms, in nats; Chen et al. 2018, eq. 2.

    Attributes:
      mutual_information: log q(z|x) − log q(z); its mean estimates I_q(x; z).
      total_correlation: log q(z) − Σ_j log q(z_j).
      dimension_kl: Σ_j log q(z_j) − log p(z), for a prior that is a product over dimensions. With
        `total_correlation` it is the KL(q(z) || p(z)) of any prior.
    """

    mutual_information: jax.Array
    total_correlation: jax.Array
    dimension_kl: jax.Array


def _weighted(num_examples: int, batch_size: int) -> jax.Array:
    return jnp.full(batch_size, -math.log(num_examples * batch_size))


def _stratified(num_examples: int, batch_size: int) -> jax.Array:
    if batch_size < 2:
        raise ValueError("Stratified sampling needs a batch of at least 2 examples.")
    others = batch_size - 1
    # Which example is to be the special one may depend on anything but the examples themselves.
    position = _positions()
    own, special = -math.log(num_examples), math.log((num_examples - others) / num_examples)
    return jnp.where(position == 0, own, jnp.where(position == 1, special, 0.0) - math.log(others))


# (N, B) ↦ log-weights [B] of the examples of the batch in the aggregate, as seen by one of them.
ESTIMATORS: dict[str, Callable[[int, int], jax.Array]] = {
    "weighted": _weighted,
    "stratified": _stratified,
}


def aggregate_log_densities(
    z: jax.Array, mean: jax.Array, logvar: jax.Array, num_examples: int, estimator: str
) -> AggregateLogDensities:
    """Estimates log q(z) and Σ_j log q(z_j) from a batch of B out of N examples.

    Chen et al. 2018, section 3.1 and appendix C. Couples the batch. With weights w_m,

        log q(z) ≈ log Σ_m w_m q(z|x_m),   log q(z_j) ≈ log Σ_m w_m q(z_j|x_m).

    `weighted`: w_m = 1/(N·B). Its density is too small: with the whole data set as the batch by
    the factor N, which is log N nats in log q(z) and d·log N in the sum of the marginals. Where N
    is large most of it is a constant, without a gradient, but the *value* of a total correlation
    from it can be wrong by (d − 1)·log N nats and more.

    `stratified`: with M = B − 1, w = 1/N for the example z was drawn from, (N − M)/(N·M) for one
    other (here the next one in the batch, cyclically) and 1/M for the other M − 1. The weights of
    the others sum to 1 − 1/N. In a batch drawn without replacement each of them is uniform over
    the other N − 1 examples, so that E Σ_m w_m q(z|x_m) = 1/N q(z|x_own) + (1 − 1/N)·1/(N − 1)
    Σ_{n ≠ own} q(z|x_n) = q(z): unbiased in the density, for each of the marginals too, and by
    Jensen's inequality low in its logarithm. (The code of the authors puts the two exceptional
    weights in the first columns of the matrix rather than on and beside its diagonal: not so here.)

    Args:
      z: a sample of q(z|x) = N(mean, diag exp(logvar)) of this example; all [d].
      num_examples: N, the size of the training set; static.
      estimator: a key of `ESTIMATORS`; static.

    Returns:
      Scalars, in nats. Finite, with their gradients, for log-variances above −170 in float32.

    Raises:
      ValueError: N < B, or `stratified` with B < 2.
    """
    batch_size = jax.lax.axis_size("batch")
    if num_examples < batch_size:
        raise ValueError(f"A batch of {batch_size} cannot be part of {num_examples} examples.")
    log_weights = ESTIMATORS[estimator](num_examples, batch_size).astype(z.dtype)
    means, logvars = jax.lax.all_gather((mean, logvar), "batch")

    # The difference before the square: expanding it into matrix products would cancel digits.
    @jax.checkpoint
    def dimension(joint, inputs):
        z, means, logvars = inputs
        distance = jnp.clip((z - means) * jnp.exp(-0.5 * logvars), -_FAR, _FAR)
        log_q = -0.5 * (jnp.square(distance) + logvars + LOG_2PI)
        return joint + log_q, jax.nn.logsumexp(log_weights + log_q)

    joint, marginals = jax.lax.scan(dimension, jnp.zeros_like(means[:, 0]), (z, means.T, logvars.T))
    return AggregateLogDensities(jax.nn.logsumexp(log_weights + joint), jnp.sum(marginals))


def total_correlation(densities: AggregateLogDensities) -> jax.Array:
    """log q(z) − Σ_j log q(z_j); its mean estimates KL(q(z) || Π_j q(z_j)), in nats."""
    return densities.log_qz - densities.log_qz_product


def decompose_rate(
    log_qz_given_x: jax.Array, densities: AggregateLogDensities, log_pz: jax.Array
) -> RateTerms:
    """Splits the sampled rate; the three terms add up to log q(z|x) − log p(z), to rounding.

    Args:
      log_qz_given_x, log_pz: scalars, of the z whose aggregate densities are given.
    """
    return RateTerms(
        mutual_information=log_qz_given_x - densities.log_qz,
        total_correlation=total_correlation(densities),
        dimension_kl=densities.log_qz_product - log_pz,
    )


def information_gains(z: jax.Array, mean: jax.Array, logvar: jax.Array) -> jax.Array:
    """log q(z_n|x_n) − log q(z_n), q(z) = 1/N Σ_m q(z|x_m) over the same N examples; in nats.

    Their mean estimates I_q(x; z) and is at most log N, whatever the information: each q(z_n) has
    q(z_n|x_n)/N in it (Hoffman and Johnson 2016). All N² pairs are looked at, N at a time.

    Args:
      z: a sample of each q(z|x_n) = N(mean_n, diag exp(logvar_n)); all [N, d].

    Returns:
      [N].
    """
    count = z.shape[0]

    def gain(z, n):
        log_q = jax.vmap(distributions.normal_log_prob, (None, 0, 0))(z, mean, logvar)
        return log_q[n] - (jax.nn.logsumexp(log_q) - jnp.log(count))

    # One z after the other: all pairs at once would be N² × d numbers.
    return jax.lax.map(lambda pair: gain(*pair), (z, jnp.arange(count)))


def _rbf(u: jax.Array) -> jax.Array:
    return jnp.exp(-u)


def _laplace(u: jax.Array) -> jax.Array:
    # √u has no derivative at 0. There the gradient is taken as 0, the mean over directions.
    apart = u > 0
    return jnp.exp(-jnp.where(apart, jnp.sqrt(jnp.where(apart, u, 1)), 0))


def _imq(u: jax.Array) -> jax.Array:
    return sum(scale / (scale + u) for scale in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0))


def _rational_quadratic(u: jax.Array) -> jax.Array:
    return sum(jnp.exp(-alpha * jnp.log1p(u / alpha)) for alpha in (0.2, 0.5, 1.0, 2.0, 5.0))


# Kernels as functions of u = |x − y|²/C, with C = 2·d·bandwidth²: see `mmd`.
KERNELS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "rbf": _rbf,
    "laplace": _laplace,
    "imq": _imq,
    "rational_quadratic": _rational_quadratic,
}


def mmd(z: jax.Array, prior_z: jax.Array, kernel: str, bandwidth: jax.Array) -> jax.Array:
    """Unbiased estimate of MMD²(q(z), p(z)); Gretton et al. 2012, eq. 3. Couples the batch.

        1/(B(B−1)) Σ_{i≠j} [k(z_i, z_j) + k(y_i, y_j)] − 2/B² Σ_{i,j} k(z_i, y_j),   y = prior_z

    It can be negative. All kernels are functions of u = |x − y|²/C with C = 2·d·bandwidth², which
    for bandwidth 1 is the mean squared distance of two draws of N(0, I) (Tolstikhin et al. 2018):

      rbf                 exp(−u) = exp(−|x − y|²/(2ℓ²)), ℓ = bandwidth·√d.
      laplace             exp(−√u), of the Euclidean distance.
      imq                 Σ_s s/(s + u) = Σ_s sC/(sC + |x − y|²), s = .1, .2, .5, 1, 2, 5, 10;
                          Tolstikhin et al. 2018, as in their code. At most 7, not 1.
      rational_quadratic  Σ_α (1 + u/α)^−α, α = .2, .5, 1, 2, 5; Bińkowski et al. 2018. At most 5.

    Args:
      z: a sample of q(z|x) of this example; prior_z: a sample of p(z), another for each example;
        both [d].
      kernel: a key of `KERNELS`; static.
      bandwidth: > 0, a scalar.

    Returns:
      A scalar, this example's share: in the units of the kernel, not nats.

    Raises:
      ValueError: a batch of one, of which there are no pairs.
    """
    batch_size = jax.lax.axis_size("batch")
    if batch_size < 2:
        raise ValueError("MMD needs a batch of at least 2 examples.")
    scale = 2 * z.shape[0] * jnp.square(bandwidth)
    own = _positions() == 0
    all_z, all_prior_z = jax.lax.all_gather((z, prior_z), "batch")

    # One kind of pair after the other, of which nothing is kept but the sum.
    @jax.checkpoint
    def pairs(total, inputs):
        x, points, itself, weight = inputs
        similarities = KERNELS[kernel](_squared_distances(x, points) / scale)
        return total + weight * jnp.sum(jnp.where(own, itself, 1) * similarities), None

    within, across = 1 / (batch_size - 1), -2 / batch_size
    kinds = (
        jnp.stack([z, prior_z, z]),
        jnp.stack([all_z, all_prior_z, all_prior_z]),
        jnp.array([0, 0, 1], z.dtype),  # whether an example is paired with itself
        jnp.array([within, within, across], z.dtype),
    )
    return jax.lax.scan(pairs, jnp.zeros_like(z[0]), kinds)[0]


def _squared_distances(x: jax.Array, points: jax.Array) -> jax.Array:
    """|x − y|² of x [d] to each of the points y [B, d]; [B], exactly 0 where they coincide."""

    @jax.checkpoint
    def dimension(total, inputs):
        x, points = inputs
        return total + jnp.square(x - points), None

    return jax.lax.scan(dimension, jnp.zeros_like(points[:, 0]), (x, points.T))[0]


def dip(
    mean: jax.Array,
    variance: jax.Array,
    offdiagonal: jax.Array,
    diagonal: jax.Array,
    kind: str,
) -> jax.Array:
    """λ_od Σ_{i≠j} C_ij² + λ_d Σ_i (C_ii − 1)²; Kumar et al. 2018, eq. 6–7. Couples the batch.

    C is Cov_x[mean] (kind `i`) or Cov_q[z] = Cov_x[mean] + E_x[diag variance] (kind `ii`), over
    the batch with ddof = 0: the covariance of these examples, not an estimate for a population.

    Args:
      mean, variance: of q(z|x), [d]; the latter is for kind `ii` alone.
      offdiagonal, diagonal: λ_od, λ_d ≥ 0, scalars.
      kind: `i` or `ii`; static.

    Returns:
      A scalar, the same for each example; not nats.

    Raises:
      ValueError: another kind.
    """
    if kind not in ("i", "ii"):
        raise ValueError(f"The kind of DIP is 'i' or 'ii', not {kind!r}.")
    # Centred before it is squared: E[xx'] − E[x]E[x]' would cancel digits.
    centred = mean - jax.lax.pmean(mean, "batch")
    covariance = jax.lax.pmean(centred[:, None] * centred[None, :], "batch")
    variances = jnp.diagonal(covariance)
    on_diagonal = jnp.eye(mean.shape[0], dtype=bool)
    correlated = jnp.sum(jnp.where(on_diagonal, 0, jnp.square(covariance)))
    if kind == "ii":
        variances = variances + jax.lax.pmean(variance, "batch")
    return offdiagonal * correlated + diagonal * jnp.sum(jnp.square(variances - 1))


def capacity(kl: jax.Array, target: jax.Array) -> jax.Array:
    """|E_batch[KL] − C| as a per-example term; Burgess et al. 2018, eq. 8. Couples the batch.

    sign(E[KL] − C)·(KL − C): the mean over examples is the absolute value, and the coupling is
    through the sign alone, which has no gradient. At E[KL] = C both are 0.

    Args:
      kl: KL(q(z|x) || p(z)) of this example, a scalar. target: C ≥ 0. Both in nats.
    """
    return jnp.sign(jax.lax.pmean(kl, "batch") - target) * (kl - target)
