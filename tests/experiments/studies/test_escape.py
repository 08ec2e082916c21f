"""The study of the way out of collapse: its rates by NumPy, and verdicts on made-up numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.studies import escape, linear
from experiments.studies.cases import Case, Context, Found


@pytest.mark.parametrize(("beta", "eta2"), escape.SETTINGS)
def test_rates_are_eigenvalues_of_the_loss_at_collapse(beta, eta2):
    # Of one mode in one latent, by the Hessian of the exact loss.
    of = linear.spec((1,), 1)
    for i in (0, 4, 7):
        with jax.enable_x64(True):
            x = jnp.asarray(linear.points(linear.VARIANCES[i : i + 1]))
            zero = jax.tree.map(lambda a: jnp.zeros_like(a[0]), linear.start(of, [0]))

            def loss(both, zero=zero, x=x):
                mean = zero["encoder"]["mean"] | {"kernel": both[:1][None]}
                output = zero["decoder"]["output"] | {"kernel": both[1:][None]}
                encoder = zero["encoder"] | {"mean": mean}
                params = zero | {"encoder": encoder, "decoder": {"output": output}}
                means = linear.means(of, params, x, eta2)
                return means["distortion"] + beta * means["rate"]

            hessian = np.asarray(jax.jit(jax.hessian(loss))(jnp.zeros(2)))
        fast, slow = escape.eigenvalues(beta, eta2)
        np.testing.assert_allclose(-np.linalg.eigvalsh(hessian), [fast[i], slow[i]], rtol=1e-9)


def test_the_number_of_the_catalogue():
    assert escape.eigenvalues(1.0, 0.3)[0][0] == pytest.approx(9.6708, abs=5e-5)


def test_descent_shows_the_rates(tmp_path, monkeypatch):
    for name, few in {"READINGS": 3, "EVERY": 2, "FINAL": 1}.items():
        monkeypatch.setattr(escape, name, few)
    arguments = {"beta": 2.0, "eta2": 0.3, "seeds": 2}
    values = escape.run(arguments, Context(tmp_path, None, None))
    growth = np.asarray(values["growth"])
    assert growth.shape == (2, 8) and np.asarray(values["sizes"]).shape == (2, 3, 8)
    # Modes of 1e-12 grow by e^20 at most before the end: 1e-3, whose square is neglected.
    np.testing.assert_allclose(growth, [escape.eigenvalues(2.0, 0.3)[0]] * 2, rtol=1e-5)


def case(beta=1.0, eta2=0.3, factor=1.0, flipped=0, stays=0):
    """As theory has it, and off: `flipped` and `stays` count modes."""
    growth = np.tile(escape.eigenvalues(beta, eta2)[0] * factor, (5, 1))
    growth[:, :flipped] *= -1
    final = np.tile(np.maximum(0, 1 - beta * eta2 / linear.VARIANCES), (5, 1))
    final[:, :stays] = 0
    return Case({"beta": beta, "eta2": eta2, "seeds": 5}, {"growth": growth, "final": final}, 1.0)


def verdicts(*cases):
    return [q.verdict for q in escape.measure(Found("quick", None, cases))]


def test_verdicts():
    assert verdicts(*(case(*s) for s in escape.SETTINGS)) == ["reproduced"] * 13
    good, bad = "reproduced", "not reproduced"
    assert verdicts(case(factor=1.02)) == [bad, bad, good, good]
    assert verdicts(case(factor=1.005)) == [good] * 4
    assert verdicts(case(flipped=1)) == [bad, bad, bad, good]
    assert verdicts(case(stays=1)) == [good, good, good, bad]
