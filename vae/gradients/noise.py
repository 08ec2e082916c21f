"""The noise of a gradient: how large it is beside the signal, where it comes from, what it hides.

A *gradient* is any function of a key to a pytree of arrays. Draws are scanned, one after the other,
so that memory is a few copies of one draw, whatever their number; programs of it jit, and vmap over
runs. What is said of a whole tree or of each of its layers is an array [G], one number for each
part of it that `groups` names: `whole` (one) or `layers` (in the order of `vae.layers`).

Squares are taken in the dtype of the gradient: in float32, of numbers below 1e-19 they vanish.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vae.errors import UserError
from vae.layers import layer_names

Groups = Callable[[Any], list[Any]]


def whole(tree: Any) -> list[Any]:
    """All of a tree as its one part."""
    return [tree]


def layers(tree: dict[str, Any]) -> list[Any]:
    """The layers of a tree of the parameters' structure, in the order of `layer_names`."""
    names = (name.split("/") for name in layer_names(tree))
    return [tree[part][layer] for part, layer in names]


class Moments(NamedTuple):
    """Of `count` draws of a tree: mean and sums of squared deviations from it, trees like it."""

    count: jax.Array
    mean: Any
    m2: Any


def moments(gradient: Callable[[jax.Array], Any], rngs: jax.Array) -> Moments:
    """Mean and squared deviations of gradient(rng) over keys [n]; Welford 1962, in one scan.

    Raises:
      UserError: n < 2.
    """
    _enough(rngs.shape[0], 2, "SNR")

    def add(found, rng):
        count, mean, before, after = _added(found.count, found.mean, gradient(rng))
        m2 = jax.tree.map(lambda s, b, a: s + b * a, found.m2, before, after)
        return Moments(count, mean, m2), None

    zero = _zeros(gradient, rngs[0])
    return jax.lax.scan(add, Moments(jnp.zeros((), jnp.int32), zero, zero), rngs)[0]


def mean(function: Callable[[Any], Any], inputs: Any) -> Any:
    """Mean of function(x) over the leading axis of `inputs`, any pytrees, in one scan."""

    def add(carry, x):
        count, mean, _, _ = _added(*carry, function(x))
        return (count, mean), None

    zero = _zeros(function, jax.tree.map(lambda a: a[0], inputs))
    return jax.lax.scan(add, (jnp.zeros((), jnp.int32), zero), inputs)[0][1]


def standard_error(found: Moments) -> Any:
    """√(V/n) of each number of the mean: a tree."""
    return jax.tree.map(lambda v: jnp.sqrt(v / found.count.astype(v.dtype)), variance(found))


def variance(found: Moments) -> Any:
    """V = Σ (g − ĝ)²/(n − 1) of each number of the tree: unbiased."""
    return jax.tree.map(lambda m2: m2 / (found.count - 1).astype(m2.dtype), found.m2)


class Snr(NamedTuple):
    """Signal and noise of n draws, each [G]; see `snr`.

    Attributes:
      signal: ‖ĝ‖, the norm of the mean.
      noise: √tr V, the standard deviation of a draw.
      plain: ‖ĝ‖/√tr V.
      corrected: without the floor, √max(‖ĝ‖² − tr V/n, 0)/√tr V.
      parameters: the mean over parameters of `parameter_snr`.
      floor: 1/√n.
    """

    signal: jax.Array
    noise: jax.Array
    plain: jax.Array
    corrected: jax.Array
    parameters: jax.Array
    floor: jax.Array


def snr(found: Moments, groups: Groups = whole) -> Snr:
    """Signal-to-noise ratios ‖E g‖/√(tr Cov g) of parts of a tree; after Rainforth et al. 2018.

    E‖ĝ‖² = ‖E g‖² + tr Cov/n: without any signal the plain ratio is about `floor`, and none can be
    read below it. ‖ĝ‖² − tr V/n has no such bias; where it comes out negative, the corrected ratio
    is 0: the signal cannot be told from none. (The floor of `parameters` is √(2/π)·1/√n, the mean
    of |ĝ|/σ for normal draws of mean 0.)

    `parameters` leaves out those whose gradient was 0 in every draw, of dead units, which have no
    ratio; where a gradient is the same in every draw it is infinite. What has neither signal nor
    noise has ratios that are not numbers.
    """
    count, ratios = found.count, parameter_snr(found)

    def of(mean, spread, ratios):
        signal, noise = _dot(mean, mean), _total(spread)
        n = count.astype(signal.dtype)
        return Snr(
            jnp.sqrt(signal),
            jnp.sqrt(noise),
            jnp.sqrt(signal / noise),
            jnp.sqrt(jnp.maximum(signal - noise / n, 0) / noise),
            _mean_ratio(mean, spread, ratios),
            1 / jnp.sqrt(n),
        )

    trees = zip(groups(found.mean), groups(variance(found)), groups(ratios), strict=True)
    return Snr(*(jnp.stack(values) for values in zip(*(of(*t) for t in trees), strict=True)))


def parameter_snr(found: Moments) -> Any:
    """|E g|/σ[g] of each number of the tree; Rainforth et al. 2018, eq. 3."""
    return jax.tree.map(lambda m, v: jnp.abs(m) / jnp.sqrt(v), found.mean, variance(found))


def _mean_ratio(mean: Any, spread: Any, ratios: Any) -> jax.Array:
    alive = jax.tree.map(lambda m, v: (m != 0) | (v != 0), mean, spread)
    kept = jax.tree.map(lambda a, r: jnp.where(a, r, 0), alive, ratios)
    counts = jax.tree.map(lambda a, r: a.astype(r.dtype), alive, ratios)
    return _total(kept) / _total(counts)


def directional_snr(
    gradient: Callable[[jax.Array], Any], rngs: jax.Array, direction: Any, groups: Groups = whole
) -> Moments:
    """E[‖g∥‖/‖g⊥‖], g∥ = (gᵀu)u, g⊥ = g − g∥; Rainforth et al. 2018, section 4.

    In d dimensions a gradient without any signal has E[χ₁]·E[1/χ_{d−1}], about √(2/(π·d)), not 0.
    The mean exists where the distribution of ‖g⊥‖ has no mass near 0: of normal draws from d = 3
    on, and its standard error from d = 4 on.

    Args:
      direction: u up to its length: the gradient of a long run, of the tree's structure.

    Returns:
      The moments over the draws of the ratio, [G]: its `mean` is the directional SNR, and
      `standard_error` is that of the mean.
    """
    units = [_unit(part) for part in groups(direction)]

    def ratio(part, unit):
        along = _dot(part, unit)
        across = jax.tree.map(lambda g, u: g - along * u, part, unit)
        return jnp.abs(along) / jnp.sqrt(_dot(across, across))

    def ratios(rng):
        return jnp.stack([ratio(*p) for p in zip(groups(gradient(rng)), units, strict=True)])

    return moments(ratios, rngs)


class Components(NamedTuple):
    """Shares of tr Cov g, each [G], unbiased and so at times negative; see `variance_components`.

    Attributes:
      noise: E tr Cov(g | batch, data), from the samples of z.
      data: E tr Cov(E[g | batch, data] | batch), from the binarisation.
      batch: tr Cov E[g | batch], from which examples are in the batch.
      total: their sum, tr Cov g.
    """

    noise: jax.Array
    data: jax.Array
    batch: jax.Array
    total: jax.Array


def variance_components(
    gradient: Callable[[jax.Array, jax.Array, jax.Array], Any],
    rng: jax.Array,
    *,
    batches: int,
    binarisations: int,
    noises: int,
    groups: Groups = whole,
) -> Components:
    """Where the variance of gradient(batch_rng, data_rng, noise_rng) comes from.

    The law of total variance, estimated by a balanced nested analysis of variance (Searle et al.
    1992, chapter 4). With A batches, J binarisations of each and K draws of noise for each of
    those, the mean squares have the expectations

        E MS_noise = σ_noise²,  E MS_data = σ_noise² + K·σ_data²,
        E MS_batch = σ_noise² + K·σ_data² + J·K·σ_batch²,

    of which the components are differences. They are returned as they come out: clipped at 0,
    those that are next to nothing would be too large on average, and would not sum to the total.

    Args:
      rng: key. batches, binarisations, noises: A, J and K, each 2 or more; A·J·K gradients.

    Raises:
      UserError: fewer than 2 of anything.
    """
    counts = {"batches": batches, "binarisations": binarisations, "noises": noises}
    for name, number in counts.items():
        _enough(number, 2, "variance", name)
    keys = jax.random.split

    def of_batch(rng):
        batch_rng, below = keys(rng)

        def of_data(rng):
            data_rng, below = keys(rng)

            def of_noise(noise_rng):
                return gradient(batch_rng, data_rng, noise_rng), ()

            return _spread(of_noise, keys(below, noises), groups)

        return _spread(of_data, keys(below, binarisations), groups)

    _, (batch, data, noise) = _spread(of_batch, keys(rng, batches), groups)
    below = binarisations * noises
    batch = batch * (below / (batches - 1))
    data = data * (noises / (batches * (binarisations - 1)))
    noise = noise * (1 / (batches * binarisations * (noises - 1)))
    shares = noise, (data - noise) / noises, (batch - data) / below
    return Components(*shares, sum(shares))


def _spread(
    draw: Callable[[jax.Array], tuple[Any, tuple[jax.Array, ...]]], rngs: jax.Array, groups: Groups
) -> tuple[Any, tuple[jax.Array, ...]]:
    """One level of a nested design: (mean of the trees, squared deviations [G] of each level).

    The deviations of this level come first, then the sums of those that the draws themselves bring.
    """

    def add(carry, rng):
        count, mean, own, below = carry
        tree, found = draw(rng)
        count, mean, before, after = _added(count, mean, tree)
        own = own + _dots(groups(before), groups(after))
        return (count, mean, own, jax.tree.map(jnp.add, below, found)), None

    zero, none = _zeros(draw, rngs[0])
    start = jnp.zeros((), jnp.int32), zero, _dots(groups(zero), groups(zero)), none
    _, mean, own, below = jax.lax.scan(add, start, rngs)[0]
    return mean, (own, *below)


def bias(estimator: Moments, reference: Moments, groups: Groups = whole) -> jax.Array:
    """‖E g − E r‖/‖E r‖, of an estimator's gradient g and a reference r, [G].

    ‖ĝ − r̂‖² is too large by tr V_g/n_g + tr V_r/n_r on average, and ‖r̂‖² by tr V_r/n_r: they are
    taken off, and what is negative then is 0. A bias of 0 is one that so many draws do not show; to
    tell whether there is any, see `bias_test`.
    """

    def squared(tree, *errors):
        noise = sum(_dots(groups(error), groups(error)) for error in errors)
        return jnp.maximum(_dots(groups(tree), groups(tree)) - noise, 0)

    errors = standard_error(estimator), standard_error(reference)
    difference = jax.tree.map(jnp.subtract, estimator.mean, reference.mean)
    return jnp.sqrt(squared(difference, *errors) / squared(reference.mean, errors[1]))


class BiasTest(NamedTuple):
    """Welch's t, its degrees of freedom and the two-sided p, each [G]; see `bias_test`."""

    t: jax.Array
    df: jax.Array
    p: jax.Array


def bias_test(
    gradient: Callable[[jax.Array], Any],
    reference: Callable[[jax.Array], Any],
    rngs: jax.Array,
    reference_rngs: jax.Array,
    groups: Groups = whole,
) -> BiasTest:
    """Have two gradients the same mean? Welch 1947, on projections to one direction.

    The direction is that of the difference between the means, from the first half of the draws;
    t is from the projections of the second half. Were the direction found on the draws that are
    tested, they would differ along it by its very choice: by about √d standard errors without any
    bias. p is the level at which no bias would be rejected, uniform where there is none (as far as
    projections are normal), and of each group by itself: of many, some are small by chance.

    Args:
      rngs, reference_rngs: keys [n], [m]; the draws of the two must be independent, so the keys
        different.

    Returns:
      Not numbers where nothing varies, or where the first halves do not differ at all.

    Raises:
      UserError: n < 4 or m < 4.
    """
    _enough(rngs.shape[0], 4, "test")
    _enough(reference_rngs.shape[0], 4, "test")
    half, reference_half = rngs.shape[0] // 2, reference_rngs.shape[0] // 2
    first = mean(gradient, rngs[:half]), mean(reference, reference_rngs[:reference_half])
    units = [_unit(part) for part in groups(jax.tree.map(jnp.subtract, *first))]

    def projected(function, rngs):
        found = moments(lambda rng: _dots(groups(function(rng)), units), rngs)
        return found, jnp.square(standard_error(found)), (found.count - 1).astype(found.mean.dtype)

    one, v1, df1 = projected(gradient, rngs[half:])
    two, v2, df2 = projected(reference, reference_rngs[reference_half:])
    t = (one.mean - two.mean) / jnp.sqrt(v1 + v2)
    df = jnp.square(v1 + v2) / (jnp.square(v1) / df1 + jnp.square(v2) / df2)
    # P(|T| > |t|) of Student's t, by the regularised incomplete beta function.
    p = jax.scipy.special.betainc(df / 2, jnp.full_like(df, 0.5), df / (df + jnp.square(t)))
    return BiasTest(t, df, p)


def _added(count: jax.Array, mean: Any, draw: Any) -> tuple[jax.Array, Any, Any, Any]:
    """(count, mean) with one more draw, and its deviations from the mean before and after.

    The product of the two is what it adds to the sum of squared deviations: Welford 1962.
    """
    count = count + 1
    before = jax.tree.map(jnp.subtract, draw, mean)
    mean = jax.tree.map(lambda m, d: m + d / count.astype(m.dtype), mean, before)
    return count, mean, before, jax.tree.map(jnp.subtract, draw, mean)


def _zeros(function: Callable[..., Any], *args: Any) -> Any:
    shapes = jax.eval_shape(function, *args)
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)


def _total(tree: Any) -> jax.Array:
    return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(tree))


def _dot(a: Any, b: Any) -> jax.Array:
    """Sum of products: not a product of matrices, whose factors a GPU would round to TF32."""
    return _total(jax.tree.map(jnp.multiply, a, b))


def _dots(parts: list[Any], others: list[Any]) -> jax.Array:
    return jnp.stack([_dot(a, b) for a, b in zip(parts, others, strict=True)])


def _unit(tree: Any) -> Any:
    norm = jnp.sqrt(_dot(tree, tree))
    return jax.tree.map(lambda a: a / norm, tree)


def _enough(number: int, needed: int, what: str, name: str = "draws") -> None:
    if number < needed:
        raise UserError(
            f"{name}: no {what} from fewer than {needed} {name}, got {number}. Take {needed} or "
            "more."
        )
