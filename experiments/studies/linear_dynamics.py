"""A deep linear network learns each mode along a sigmoid of its own (Saxe et al. 2014).

Inputs are whitened, Σ_xx = I, targets have Σ_yx = U S Vᵀ, and the loss is ½E|y − ŷ|². From weights
that have the modes apart and all N layers alike, x ↦ x R_1 diag(u0^{1/N}) R_2ᵀ and so on, with
R_1 = V, R_{N+1} = U and other R_l with orthonormal columns, the strength u of a mode of singular
value s follows under gradient flow, with time in units of τ, the inverse of its rate,

  N = 2 layers:  u(t) = s e^{2st} / (e^{2st} − 1 + s/u0)
  N layers:      du/dt = N u^{2 − 2/N} (s − u)

(they count layers of units, N + 1): a plateau, a fast rise in a time of the order of 1/s, and no
change after it; strong modes first. It holds for all modes, which do not see each other.

The network is the library's decoder with identity activations: N − 1 hidden layers of 16 units and
a head, 8 values to 8. s = (4, 3, 2, 1), the other modes have neither strength nor weights; u0 =
.01; rotations by the seed; inputs two along each axis. Gradient flow by Runge and Kutta's fourth
order in steps of 1/200, float64. The tolerance is 1e-4 of s at all times, between all modes; the
steps are good for about 1e-7. For N > 2 the equation is integrated by SciPy to 1e-10.

Only reported: weights that start at random, with deviations of .01. Then the formula is an
approximation (their figure 3), of which the start is not known: what is compared is the time from
10% to 90% of s, ln 81/(2s).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.report import canvas, style
from experiments.studies import linear
from experiments.studies.cases import Arguments, Context, Found
from experiments.studies.quantity import Quantity, of_seeds
from vae import model
from vae.spec import ModelSpec

ID = "A11"
VALUES, WIDTH = 8, 16
STRENGTHS = np.array([4.0, 3.0, 2.0, 1.0])
START, STEP, EVERY, READINGS = 0.01, 1 / 200, 10, 240


def cases(budget: str) -> list[Arguments]:
    """Two, three and five layers that start apart and alike, and two that start at random."""
    del budget
    apart = [{"layers": n, "start": "apart", "seeds": 5} for n in (2, 3, 5)]
    return [*apart, {"layers": 2, "start": "random", "seeds": 5}]


def predicted(layers: int, strength: float, time: np.ndarray, start: float = START) -> np.ndarray:
    """u(t) of a mode of `strength`, from u(0) = `start`; see above."""
    if layers == 2:
        # e^{2st} divided out, which overflows.
        return strength / (1 + (strength / start - 1) * np.exp(-2 * strength * time))
    from scipy.integrate import solve_ivp

    def change(_, u):
        return layers * u ** (2 - 2 / layers) * (strength - u)

    span = (0, float(time[-1]))
    found = solve_ivp(change, span, [start], "DOP853", time, rtol=1e-10, atol=1e-12)
    return found.y[0]


def run(arguments: Arguments, context: Context) -> dict[str, Any]:
    """The network's map between the modes [seeds, readings, modes, modes], over time."""
    del context
    with jax.enable_x64(True):
        return _flow(**arguments)


def _spec(layers: int) -> ModelSpec:
    return ModelSpec((VALUES,), VALUES, depth=layers - 1, width=WIDTH, activation="identity")


def _weights(kernels: list[jax.Array]) -> dict[str, Any]:
    """The decoder's parameters of these kernels, without biases."""
    dense = [{"kernel": k, "bias": jnp.zeros(k.shape[1], k.dtype)} for k in kernels]
    hidden = {f"layer_{i}": {"dense": layer} for i, layer in enumerate(dense[:-1])}
    return {"decoder": hidden | {"output": dense[-1]}}


def _flow(layers: int, start: str, seeds: int) -> dict[str, Any]:
    of, modes = _spec(layers), len(STRENGTHS)
    x = jnp.asarray(linear.points(np.ones(VALUES)))
    sizes = [VALUES, *[WIDTH] * (layers - 1), VALUES]

    def network(params, x):
        return jax.vmap(lambda x: model.decoder(of, params, {}, x, False)[0]["output"])(x)

    def one(key):
        keys = jax.random.split(key, layers + 1)
        bases = [jax.random.orthogonal(k, n)[:, :modes] for k, n in zip(keys, sizes, strict=True)]
        y = x @ bases[0] @ (jnp.asarray(STRENGTHS)[:, None] * bases[-1].T)
        if start == "apart":
            gain = START ** (1 / layers)
            kernels = [gain * a @ b.T for a, b in zip(bases[:-1], bases[1:], strict=True)]
        else:
            shapes = zip(keys[:-1], sizes[:-1], sizes[1:], strict=True)
            kernels = [START * jax.random.normal(k, (n, m), x.dtype) for k, n, m in shapes]

        def loss(params):
            return 0.5 * jnp.mean(jnp.sum(jnp.square(y - network(params, x)), axis=1))

        def velocity(params):
            return jax.tree.map(jnp.negative, jax.grad(loss)(params))

        def runge_kutta(_, params):
            def ahead(slope, step):
                return jax.tree.map(lambda p, k: p + step * k, params, slope)

            k1 = velocity(params)
            k2 = velocity(ahead(k1, STEP / 2))
            k3 = velocity(ahead(k2, STEP / 2))
            k4 = velocity(ahead(k3, STEP))
            mean = jax.tree.map(lambda a, b, c, d: (a + 2 * b + 2 * c + d) / 6, k1, k2, k3, k4)
            return ahead(mean, STEP)

        def reading(params, _):
            between = bases[0].T @ network(params, jnp.eye(VALUES, dtype=x.dtype)) @ bases[-1]
            return jax.lax.fori_loop(0, EVERY, runge_kutta, params), between

        return jax.lax.scan(reading, _weights(kernels), length=READINGS)[1]

    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    return {"time": STEP * EVERY * np.arange(READINGS), "between": jax.jit(jax.vmap(one))(keys)}


def _all_predicted(layers: int, time: np.ndarray) -> np.ndarray:
    """u(t) of all modes, [readings, modes]."""
    return np.stack([predicted(layers, s, time) for s in STRENGTHS], axis=1)


def _rise(time: np.ndarray, strength: np.ndarray, final: float) -> float:
    """The time that a mode's strength takes from 10% to 90% of `final`; nan if it does not."""
    if strength.max() < 0.9 * final:
        return float("nan")
    first = [int(np.argmax(strength >= share * final)) for share in (0.1, 0.9)]
    # Linear between the readings about the crossing.
    crossed = [
        np.interp(share * final, strength[i - 1 : i + 1], time[i - 1 : i + 1])
        for share, i in zip((0.1, 0.9), first, strict=True)
    ]
    return float(crossed[1] - crossed[0])


def measure(found: Found) -> list[Quantity]:
    """How far all modes are from the solution; and, from a random start, how fast they rise."""
    rows = []
    for case in found.cases:
        layers, time, between = (
            case.arguments["layers"],
            case.values["time"],
            case.values["between"],
        )
        if case.arguments["start"] == "apart":
            theory = _all_predicted(layers, time)[:, :, None] * np.eye(len(STRENGTHS))[None]
            off = np.abs(between - theory[None]) / STRENGTHS[None, None, :, None]
            rows.append(
                of_seeds(
                    f"largest error of a mode's strength, {layers} layers, share of s",
                    off.max((1, 2, 3)),
                    0,
                    1e-4,
                    source="Saxe et al. 2014, the exact solution",
                )
            )
        else:
            strengths = np.diagonal(between, axis1=2, axis2=3)
            for i, s in enumerate(STRENGTHS):
                rises = [_rise(time, of[:, i], s) / (np.log(81) / (2 * s)) for of in strengths]
                name = f"time from 10% to 90% of s = {s:g} over the formula's, random start"
                rows.append(of_seeds(name, rises, source="1, if modes were apart"))
    return rows


def figure(found: Found):
    """Strengths over time, as in figure 3 of Saxe et al. 2014: lines the theory, points a seed."""
    sheet, panels = canvas.new_figure(1, len(found.cases), 1.9 * len(found.cases), 2.4)
    for panel, case in zip(panels, found.cases, strict=True):
        layers, time = case.arguments["layers"], case.values["time"]
        strengths = np.diagonal(case.values["between"], axis1=2, axis2=3)
        apart = case.arguments["start"] == "apart"
        theory = _all_predicted(layers, time)
        for i, color in enumerate(style.viridis(len(STRENGTHS))):
            if apart:
                panel.plot(time, theory[:, i], "-", color=color, lw=1)
                shown = slice(None, None, 8)
                panel.plot(time[shown], strengths[0, shown, i], "o", ms=2.5, color=color)
            else:
                panel.plot(time, strengths[:, :, i].T, "-", color=color, lw=0.8)
        panel.set_title(f"{layers} layers" + ("" if apart else ", random start"))
        panel.set_xlabel("time, units of τ")
    panels[0].set_ylabel("strength u of the mode")
    return sheet
