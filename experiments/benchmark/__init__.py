"""Speed and memory, measured: `python -m experiments.benchmark [NAME ...]`.

measure    rows of the table; timing of alternatives in turns
products   the matrix products of a training step, and nothing else
library    benchmarks of compiled programs: step, dispatch, packing, memory, nll
commands   benchmarks of whole processes: processes, quickstart, startup
probing    looking at gradients: its share of a training
"""
