"""Measures speed and memory, prints a table, and writes it as JSON and Markdown.

    python -m experiments.benchmark                    # everything, half an hour on two cores
    python -m experiments.benchmark step dispatch --data_dir=DIR --out=benchmark.json
    python -m experiments.benchmark peers --markdown=docs/benchmarks.md

On a machine that does something else meanwhile, trust the ratios and look at their spread.
"""

import datetime
import importlib.metadata
import os
import pathlib
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from absl import app, flags, logging

from experiments import devices, environment
from experiments.benchmark import (
    commands,
    library,
    markdown,
    objectives,
    peers,
    placement,
    probing,
    roofline,
    scaling,
    structures,
    throughput,
)
from experiments.benchmark.measure import Row, Settings, table
from vae import writers
from vae.errors import UserError

BENCHMARKS: dict[str, Callable[[Settings], Iterable[Row]]] = {
    "step": library.step,
    "peers": peers.peers,
    "dispatch": library.dispatch,
    "throughput": throughput.throughput,
    "scaling": scaling.scaling,
    "processes": commands.processes,
    "quickstart": commands.quickstart_,
    "startup": commands.startup,
    "packing": library.packing,
    "structures": structures.structures,
    "placement": placement.placement,
    "memory": library.memory_,
    "roofline": roofline.roofline,
    "nll": library.nll,
    "objectives": objectives.objectives,
    "probing": probing.probing,
}

_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "TFDS folder with MNIST; without it, synthetic images of its shape."
)
_OUT = flags.DEFINE_string("out", None, "File to write the measurements to, as JSON.")
_MARKDOWN = flags.DEFINE_string(
    "markdown", None, "File whose measured part is brought up to date, as docs/benchmarks.md."
)
_QUICK = flags.DEFINE_bool("quick", False, "Tiny: shows that it runs; the numbers mean nothing.")
_FULL = flags.DEFINE_bool("full", False, "processes: run all 24, none extrapolated.")


def machine() -> dict[str, Any]:
    """What was measured on, with what, and how busy it was."""
    found = environment.machine(environment.command_line())
    for name in peers.PACKAGES:
        try:
            found["versions"][name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found["versions"][name] = "not installed"
    counts = Counter(found["devices"])
    found["devices"] = [f"{count} × {kind}" for kind, count in counts.items()]
    return found | {
        "threads": devices.cores(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "load_average": os.getloadavg()[0],
    }


def main(argv: Sequence[str]) -> None:
    logging.set_verbosity(logging.WARNING)  # JAX tells which backends it did not find
    names = argv[1:] or list(BENCHMARKS)
    for name in names:
        if name not in BENCHMARKS:
            raise UserError(f"{name}: no such benchmark. There are {', '.join(BENCHMARKS)}.")
    settings = Settings(quick=_QUICK.value, full=_FULL.value, data_dir=_DATA_DIR.value)
    tables = pathlib.Path(_MARKDOWN.value) if _MARKDOWN.value else None
    if tables:
        if settings.quick:
            raise UserError("--markdown: the numbers of --quick mean nothing. Leave one out.")
        markdown.check(tables)
    devices.use_cores()  # as the launcher has it
    found = machine()
    print(f"{found['cpu']}, {found['cores']} cores, {', '.join(found['devices'])}")
    print(", ".join(f"{name} {version}" for name, version in found["versions"].items()))
    print(f"load average at the start: {found['load_average']:.1f}", flush=True)
    rows, failed = [], []
    for name in names:
        start, of_name = time.perf_counter(), []
        try:
            for row in BENCHMARKS[name](settings):
                of_name.append(row)
                if _OUT.value:  # after each, so that an interrupt loses little
                    content = {"machine": found, "rows": [r.as_dict() for r in rows + of_name]}
                    writers.write_json(pathlib.Path(_OUT.value), content)
        except Exception:  # the others are still worth measuring, and nobody may be watching
            traceback.print_exc()
            failed.append(name)
        rows += of_name
        if tables and name not in failed:
            title = BENCHMARKS[name].__doc__.partition("\n")[0]
            text = markdown.section(name, title, of_name, machine(), _command(name, settings))
            markdown.update(tables, {name: text}, list(BENCHMARKS))
        print(f"{name}: measured in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    print(table(rows))
    if failed:
        print(f"error: failed, see above: {', '.join(failed)}", file=sys.stderr)
        sys.exit(1)


def _command(name: str, settings: Settings) -> str:
    """How to measure one benchmark again; folders differ from machine to machine."""
    options = [" --data_dir=DIR"] if settings.data_dir else []
    options += [" --full"] if settings.full else []
    return f"python -m experiments.benchmark {name}{''.join(options)} --markdown=FILE"


def entry() -> None:
    try:
        app.run(main)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    entry()
