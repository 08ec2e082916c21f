"""Studies: a published claim, a config or a measurement, a verdict, a figure.

A study is one module, with a row in `STUDIES`. It has

  __doc__   the claim in its first line, with the paper; then the set-up, equations, what differs
  ID        its name in the order of studies: A1 ... of closed forms, B1 ... of data, S0 ... seeds
  CONFIGS   {budget: config of the runs that it trains}; absent where it trains none
  cases     (budget) -> list of dicts: what it measures by itself, see `cases`; with
  run       (arguments, context) -> dict of arrays: one of them; both absent where there are none
  measure   (found) -> the quantities that tell, see `quantity`
  figure    (found) -> the figure, in the manner of the paper's

A budget is `quick`, minutes on two cores, or `full`.
"""

import types

from experiments.studies import beta, bounds, priors

STUDIES: dict[str, types.ModuleType] = {"bounds": bounds, "beta": beta, "priors": priors}
BUDGETS = ("quick", "full")
