"""Fixtures of the library's tests."""

import jax
import pytest


@pytest.fixture
def x64():
    """Float64 wherever no other type is said; of all tests in a file by `usefixtures`."""
    with jax.enable_x64(True):
        yield
