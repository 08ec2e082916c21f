"""Studies: what was claimed of some runs, and what is measured of them.

A study is one module: its docstring is the claim, with the paper, `CONFIG` the config of its runs,
and `measure` makes of their results the quantities that tell. It has a row in `STUDIES`.
"""

import types

from experiments.studies import beta, bounds, priors

STUDIES: dict[str, types.ModuleType] = {"bounds": bounds, "beta": beta, "priors": priors}
