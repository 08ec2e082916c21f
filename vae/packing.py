"""How the runs of a population share the machine: side by side, or one after the other."""

from collections.abc import Callable
from typing import Any

import jax


def over_runs(function: Callable[..., Any], pack: str, *stacked: Any) -> Any:
    """Applies a function of one run to all runs of stacked pytrees; the same results either way.

    pack: `vmap`, one batched program: little work a run fills the machine together; `map`, one
    run after the other inside the program: large matrices and convolutions on a CPU, where
    batching them costs copies. A population of one is neither.
    """
    if jax.tree.leaves(stacked)[0].shape[0] == 1:
        out = function(*jax.tree.map(lambda a: a[0], stacked))
        return jax.tree.map(lambda a: a[None], out)
    if pack == "map":
        return jax.lax.map(lambda args: function(*args), stacked)
    return jax.vmap(function)(*stacked)
