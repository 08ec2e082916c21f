"""Instruments of gradient flow: what vanishes, explodes or collapses, layer by layer.

Each is a pure function at frozen parameters. Those that need nothing but a gradient take one as a
function; the others take a run's `TrainState`, a batch and a key. `probe` has the table of all.
"""
