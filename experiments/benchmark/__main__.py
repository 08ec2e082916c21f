"""Measures speed and memory, prints a table, and writes it as JSON.

    python -m experiments.benchmark                    # everything, about ten minutes
    python -m experiments.benchmark step dispatch --data_dir=DIR --json=benchmark.json

On a machine that does something else meanwhile, trust the ratios and look at their spread.
"""

import datetime
import os
import pathlib
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from absl import app, flags

from experiments import environment
from experiments.benchmark import commands, library, objectives, probing
from experiments.benchmark.measure import Row, Settings, table
from vae import writers
from vae.errors import UserError

BENCHMARKS: dict[str, Callable[[Settings], Iterable[Row]]] = {
    "step": library.step,
    "dispatch": library.dispatch,
    "processes": commands.processes,
    "quickstart": commands.quickstart_,
    "startup": commands.startup,
    "packing": library.packing,
    "memory": library.memory_,
    "nll": library.nll,
    "objectives": objectives.objectives,
    "probing": probing.probing,
}

_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "TFDS folder with MNIST; without it, synthetic images of its shape."
)
_JSON = flags.DEFINE_string("json", None, "File to write the measurements to.")
_QUICK = flags.DEFINE_bool("quick", False, "Tiny: shows that it runs; the numbers mean nothing.")
_FULL = flags.DEFINE_bool("full", False, "processes: run all 24, none extrapolated.")


def machine() -> dict[str, Any]:
    """What was measured on, and how busy it was."""
    return {
        "cpu": environment.cpu_model(),
        "cores": os.cpu_count(),
        "devices": [f"{d.device_kind} ({d.platform})" for d in jax.devices()],
        "platform": platform.platform(),
        "versions": environment.versions(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "load_average": os.getloadavg()[0],
    }


def main(argv: Sequence[str]) -> None:
    names = argv[1:] or list(BENCHMARKS)
    for name in names:
        if name not in BENCHMARKS:
            raise UserError(f"{name}: no such benchmark. There are {', '.join(BENCHMARKS)}.")
    settings = Settings(quick=_QUICK.value, full=_FULL.value, data_dir=_DATA_DIR.value)
    found = machine()
    print(f"{found['cpu']}, {found['cores']} cores, {', '.join(found['devices'])}")
    print(", ".join(f"{name} {version}" for name, version in found["versions"].items()))
    print(f"load average at the start: {found['load_average']:.1f}", flush=True)
    rows = []
    for name in names:
        start = time.perf_counter()
        for row in BENCHMARKS[name](settings):
            rows.append(row)
            if _JSON.value:  # after each, so that an interrupt loses little
                content = {"machine": found, "rows": [r.as_dict() for r in rows]}
                writers.write_json(pathlib.Path(_JSON.value), content)
        print(f"{name}: measured in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    print(table(rows))


def entry() -> None:
    try:
        app.run(main)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    entry()
