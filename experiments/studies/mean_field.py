"""Wide tanh nets with random weights: the integrals of Schoenholz et al. 2017, by quadrature.

Weights have variance σ_w²/n and biases σ_b², here `weights` and `bias`; q is the second moment of a
pre-activation, c the correlation of two inputs' pre-activations, and tanh′ = 1 − tanh².
"""

import functools
import math

import numpy as np

_NODES, _MASS = np.polynomial.hermite_e.hermegauss(120)
_MASS = _MASS / _MASS.sum()


def _slope(u: np.ndarray) -> np.ndarray:
    return 1 - np.square(np.tanh(u))


@functools.cache
def fixed_q(weights: float, bias: float) -> float:
    """q*, by iteration: the map of q contracts, also where χ = 1."""
    q = 1.0
    for _ in range(2000):
        q = weights * float(_MASS @ np.square(np.tanh(math.sqrt(q) * _NODES))) + bias
    return q


def chi(weights: float, bias: float) -> float:
    """Factor of E (∂ℓ/∂h)² per layer, back."""
    q = fixed_q(weights, bias)
    return weights * float(_MASS @ np.square(_slope(math.sqrt(q) * _NODES)))


def _pair(function, q: float, c: float) -> float:
    """E f(u1) f(u2) of normal u1 and u2 with variance q and correlation c."""
    z1, z2 = _NODES[:, None], _NODES[None, :]
    u2 = math.sqrt(q) * (c * z1 + math.sqrt(max(1 - c * c, 0.0)) * z2)
    return float(_MASS @ (function(math.sqrt(q) * _NODES) * (function(u2) @ _MASS)))


def next_c(c: float, q: float, weights: float, bias: float) -> float:
    """c in the next layer."""
    return (weights * _pair(np.tanh, q, c) + bias) / q


def fixed_c(weights: float, bias: float) -> float:
    """c*: 1 where χ ≤ 1, else the stable point below 1, by bisection."""
    if chi(weights, bias) <= 1:
        return 1.0
    q = fixed_q(weights, bias)
    low, high = 0.0, 1 - 1e-6
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if next_c(middle, q, weights, bias) > middle else (low, middle)
    return low


def depth_scale(weights: float, bias: float) -> float:
    """ξ_c, in layers."""
    q, c = fixed_q(weights, bias), fixed_c(weights, bias)
    return -1 / math.log(weights * _pair(_slope, q, c))


def critical_weights(bias: float) -> float:
    """The σ_w² with χ = 1."""
    low, high = 1.0, 6.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if chi(middle, bias) < 1 else (low, middle)
    return low


def curve(weights: float, bias: float, size: float, start: float, depth: int) -> np.ndarray:
    """c in each layer, [depth], of inputs with correlation `start`.

    size: E x² of the inputs, for which q is q* in the first layer.
    """
    q = fixed_q(weights, bias)
    found = [(weights * size * start + bias) / q]
    for _ in range(depth - 1):
        found.append(next_c(found[-1], q, weights, bias))
    return np.array(found)
