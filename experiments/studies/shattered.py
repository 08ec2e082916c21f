"""Gradients of deep ReLU nets decorrelate between inputs, far less so if residual (Balduzzi 2017).

Balduzzi et al. 2017, "The shattered gradients problem". For orthogonal inputs x and y and a random
network, the correlation of the gradients of its output is the product over layers of the share of
its open units that are open for both, κ0(c) = (π − arccos c)/π; c is the cosine of what enters a
layer, and goes on as κ1(c) = [√(1 − c²) + (π − arccos c)·c]/π (Cho and Saul 2009), from c = 0:

  feed-forward        Π κ0(c_l):  .5, .3016, .1046, .0337, .0055, .0009 for L = 1, 2, 5, 10, 24, 50
  residual            Π (1 + κ0(c_l))/2
  scaled by 1/√L      Π (1 + κ0(c_l)/L)/(1 + 1/L)

With c_l = 0 throughout, as the paper supposes, the first two are 2^−L and (3/4)^L. In the library's
residual layers, h + s·relu(Wh) with s = 1 or 1/√L, c = p/q goes on by the second moment q, the mean
m and the product p of two inputs:

  q ← (1 + s²)q + 2sm√(q/π),  p ← p + s²q·κ1(c) + 2sm√(q/π),  m ← m + s√(q/π).

Measured is the mean cosine between the gradients at 32 orthonormal inputs, over nets with He's
weights. All of the above is of wide nets. Feed-forward, what a width n adds is of order 1/n (about
2/n at L = 50, more than the limit): widths of 128, 256 and 512 are extrapolated to 1/n = 0, with
numbers of nets of equal work, more of them where nets are shallow. That leaves a noise of .001 or
1%, and the tolerance is three times that and a little more: .003, or 4% where it is larger.

Residual, the limit is out of reach of any n unless L is small. relu nets have f(x) = x·∂f/∂x, so
that |∂f/∂x|² is at least f²/|x|², which grows by 2.90 a layer (see the study residual_scaling),
where the limit has 2 a layer: they part at 1.45^L = n. The recursion is therefore asked for up to
L = 5 at n = 256, to terms of relative order 5L/n; of deeper nets the claim is asked: at L = 24, the
paper's own, ten times the correlation of feed-forward nets.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from experiments.report import canvas, style
from experiments.studies.cases import Context, Found
from experiments.studies.quantity import Quantity, of_seeds
from vae.gradients import signal
from vae.spec import ModelSpec

ID = "A9"
DEPTHS = (1, 2, 5, 10, 24, 50)
INPUTS = 32
# Nets for each seed, by width; times SHALLOW // L.
NETS, SHALLOW = {128: 320, 256: 80, 512: 20}, 20
RESIDUAL_WIDTH, RESIDUAL_NETS, LIMIT_DEPTH = 256, 20, 5
SEEDS = {"quick": 5, "full": 20}
KINDS = {"none": "feed-forward", "plain": "residual", "scaled": "residual, scaled by 1/√L"}
# Points on a circle through two inputs, for the figure: (layers, kind).
CURVES = ((1, "none"), (24, "none"), (50, "plain"))
POINTS = 256


def cases(budget: str) -> list[dict]:
    nets = [
        {"what": "nets", "residual": residual, "depth": depth, "seeds": SEEDS[budget]}
        for residual in KINDS
        for depth in DEPTHS
    ]
    curves = [{"what": "curve", "residual": residual, "depth": depth} for depth, residual in CURVES]
    return nets + curves


def run(arguments: dict, context: Context) -> dict:
    del context
    residual, depth = arguments["residual"], arguments["depth"]
    if arguments["what"] == "curve":
        return {"slope": np.asarray(_curve(_spec(residual, depth, 256), jax.random.key(1)))}
    nets = NETS if residual == "none" else {RESIDUAL_WIDTH: RESIDUAL_NETS}
    found = {}
    for width, count in nets.items():
        count *= max(1, SHALLOW // depth)
        keys = jax.random.split(jax.random.key(width), arguments["seeds"] * count)
        cosines = np.asarray(_cosines(_spec(residual, depth, width), keys), np.float64)
        found[str(width)] = cosines.reshape(-1, count).mean(axis=1)
    return found


def _spec(residual: str, depth: int, width: int) -> ModelSpec:
    return ModelSpec((width,), depth=depth, width=width, init="he", residual=residual)


def _gradients(spec: ModelSpec, rng: jax.Array, x: jax.Array) -> jax.Array:
    """Gradients of one output of a random net in its inputs x [B, n]: [B, n]."""
    params, stats = signal.random_net(spec, rng, 1)
    return jax.grad(lambda x: jnp.sum(signal.apply_net(spec, params, stats, x, {})[0]))(x)


@functools.partial(jax.jit, static_argnums=0)
def _cosines(spec: ModelSpec, keys: jax.Array) -> jax.Array:
    """Mean cosine between the gradients at orthonormal inputs, in each net: [keys]."""

    def one(rng):
        x_rng, rng = jax.random.split(rng)
        x = jnp.linalg.qr(jax.random.normal(x_rng, (spec.widths[0], INPUTS)))[0].T
        return signal.correlation(_gradients(spec, rng, x))

    return jax.lax.map(one, keys)


@functools.partial(jax.jit, static_argnums=0)
def _curve(spec: ModelSpec, rng: jax.Array) -> jax.Array:
    """d output/dt along x(t) = cos t·a + sin t·b, a and b orthonormal, 0 ≤ t ≤ π/2: [POINTS]."""
    x_rng, rng = jax.random.split(rng)
    a, b = jnp.linalg.qr(jax.random.normal(x_rng, (spec.widths[0], 2)))[0].T
    t = jnp.linspace(0, math.pi / 2, POINTS)[:, None]
    x = jnp.cos(t) * a[None] + jnp.sin(t) * b[None]
    along = jnp.cos(t) * b[None] - jnp.sin(t) * a[None]
    return jnp.sum(_gradients(spec, rng, x) * along, axis=1)


def kappa0(c: float) -> float:
    """Share of the units open for one input that are open for the other."""
    return (math.pi - math.acos(min(c, 1.0))) / math.pi


def kappa1(c: float) -> float:
    """E relu(u)relu(v)/E relu(u)² of standard normal u and v with correlation c."""
    return math.sqrt(max(1 - c * c, 0.0)) / math.pi + kappa0(c) * c


def correlation(residual: str, depth: int) -> float:
    """Of the gradients at two orthogonal inputs whose units average to 0, in wide nets."""
    if residual == "none":
        c, product = 0.0, 1.0
        for _ in range(depth):
            product *= kappa0(c)
            c = kappa1(c)
        return product
    s = {"plain": 1.0, "scaled": 1 / math.sqrt(depth)}[residual]
    q, p, m, product = 1.0, 0.0, 0.0, 1.0
    for _ in range(depth):
        c = p / q
        product *= (1 + s * s * kappa0(c)) / (1 + s * s)
        both = 2 * s * m * math.sqrt(q / math.pi)
        p += s * s * q * kappa1(c) + both
        m += s * math.sqrt(q / math.pi)
        q += s * s * q + both
    return product


def wide(by_width: dict[str, np.ndarray]) -> np.ndarray:
    """Values of widths n, [seeds] each, extrapolated to 1/n = 0 by least squares; one as it is."""
    values = np.stack(list(by_width.values()))
    if len(values) == 1:
        return values[0]
    inverse = np.array([1 / int(width) for width in by_width])
    return np.linalg.lstsq(np.stack([np.ones_like(inverse), inverse], axis=1), values)[0][0]


def measure(found: Found) -> list[Quantity]:
    """Correlations at each depth, and how much more is left of them in residual nets."""
    rows, seen = [], {}
    for case in found.of(what="nets"):
        residual, depth = case.arguments["residual"], case.arguments["depth"]
        values = seen[residual, depth] = wide(case.values)
        expected = correlation(residual, depth)
        name = f"{KINDS[residual]}, L = {depth}: correlation of gradients"
        if residual == "none":
            tolerance, source = max(0.003, 0.04 * expected), "Π κ0 (Cho and Saul 2009)"
        else:
            tolerance = 5 * depth / RESIDUAL_WIDTH * expected + 0.003
            source = "the recursion for wide nets"
        if residual != "none" and depth > LIMIT_DEPTH:
            rows.append(of_seeds(name, values, source=f"{source} would have {expected:.3f}"))
        else:
            rows.append(
                of_seeds(name, values, round(expected, 4), round(tolerance, 4), source=source)
            )
    for residual in ("plain", "scaled"):
        if {(residual, 24), ("none", 24)} <= seen.keys():
            rows.append(
                of_seeds(
                    f"{KINDS[residual]}, L = 24: correlation, less ten times feed-forward's",
                    seen[residual, 24] - 10 * seen["none", 24],
                    0,
                    relation=">=",
                    source="Balduzzi et al. 2017: (3/4)^L against 2^−L",
                )
            )
    return rows


def figure(found: Found):
    """Gradients along a line of inputs, as in figure 1 of the paper; correlations over depth."""
    curves = found.of(what="curve")
    sheet, panels = canvas.new_figure(
        1, len(CURVES) + 1, 9.8, 2.6, ratios=[1] * len(CURVES) + [1.6]
    )
    for panel, case in zip(panels, curves, strict=False):
        residual, depth = case.arguments["residual"], case.arguments["depth"]
        slope = case.values["slope"]
        t = np.linspace(0, 90, len(slope))
        panel.plot(t, slope / np.std(slope), color=style.ACCENT, linewidth=0.8)
        panel.set(title=f"{KINDS[residual]}, L = {depth}", xlabel="angle of x, degrees")
        panel.set_xticks([0, 45, 90])
    panels[0].set_ylabel("gradient, standardised")
    last = panels[-1]
    depths = np.arange(1, max(DEPTHS) + 1)
    for (residual, name), color in zip(KINDS.items(), style.PETROFF, strict=False):
        theory = [correlation(residual, int(depth)) for depth in depths]
        last.plot(depths, theory, color=color, linewidth=0.9, label=name)
        for case in found.of(what="nets", residual=residual):
            depth, seen = case.arguments["depth"], wide(case.values)
            error = 1.96 * seen.std(ddof=1) / math.sqrt(len(seen))
            last.errorbar(depth, seen.mean(), error, fmt="o", color=color, markersize=3)
    last.plot(depths, 0.5**depths, ":", color=style.MUTED, label="2^−L")
    last.plot(depths, 0.75**depths, "--", color=style.MUTED, label="(3/4)^L")
    last.set(
        yscale="log",
        ylim=(5e-5, 1.3),
        xlabel="layers L",
        ylabel="correlation",
        title="Between orthogonal inputs",
    )
    last.yaxis.set_major_formatter("{x:g}")
    last.legend(fontsize=6.5, loc="lower left")
    return sheet
