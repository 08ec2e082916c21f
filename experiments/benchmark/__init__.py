"""Speed and memory, measured: `python -m experiments.benchmark [NAME ...]`.

measure     rows of the table; timing of alternatives in turns
markdown    the rows as sections of docs/benchmarks.md
products    the matrix products of a training step, and nothing else
library     benchmarks of compiled programs: step, dispatch, packing, memory, nll
objectives  what objectives cost
peers       steps of the same model here and elsewhere: in pytorch (PyTorch, pythae) and flax_loop
throughput  a population against its runs one after another, and against processes
scaling     the same work on several devices and processes
roofline    a step against the machine's arithmetic and memory
commands    benchmarks of whole processes: processes, quickstart, startup
probing     looking at gradients: its share of a training
"""
