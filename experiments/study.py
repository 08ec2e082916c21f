"""Runs studies, and writes what they found: each claim beside what is measured.

    python -m experiments.study --list
    python -m experiments.study --name=bounds --data_dir=DIR --workdir=results/studies
    python -m experiments.study --all --data_dir=DIR --workdir=results/studies --out=docs/results.md

Each study has a folder of its own in the workdir, with runs and report as of experiments.run; the
same command again finishes what is missing. --config.FIELD=VALUE sets a field in all of them, such
as --config.train.epochs=1 to see that it runs.
"""

import pathlib
import time

from absl import flags

from experiments import config as configs
from experiments import entry
from experiments import sweep as sweeps
from experiments.studies import STUDIES
from vae.errors import UserError

_LIST = flags.DEFINE_bool("list", False, "Print the studies and run none.")
_NAME = flags.DEFINE_multi_string("name", [], "A study to run; several may be given.")
_ALL = flags.DEFINE_bool("all", False, "Run all studies.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the studies' results.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "TFDS folder with MNIST (--config.data.dir).")
_OUT = flags.DEFINE_string("out", None, "File for the tables; default: results.md in the workdir.")


def main(overrides: entry.Overrides) -> int:
    """Runs what is asked for, one study after the other; returns the exit status."""
    if _LIST.value:
        for name, study in STUDIES.items():
            print(f"{name:10}  {study.__doc__.partition(chr(10))[0]}")
        return 0
    names = list(STUDIES) if _ALL.value else _NAME.value
    for name in names:
        if name not in STUDIES:
            raise UserError(f"--name: {name} is no study. There are {', '.join(STUDIES)}.")
    if not names:
        raise UserError("--name: missing. Name a study, or give --all; --list shows what there is.")
    if not _WORKDIR.value:
        raise UserError("--workdir: missing. See python -m experiments.study --help.")
    if _DATA_DIR.value:
        overrides = [*overrides, ("data.dir", _DATA_DIR.value)]
    plans = {name: configs.from_args(STUDIES[name].CONFIG, overrides, []) for name in names}

    from experiments import execute
    from experiments import plan as planner
    from experiments.studies import page
    from vae import writers

    workdir = pathlib.Path(_WORKDIR.value)
    stop = execute.StopOnSignal()
    for name, (base, runs) in plans.items():
        print(f"\nStudy {name}: {STUDIES[name].__doc__.partition(chr(10))[0]}", flush=True)

        def make_plan(packed=None, base=base, runs=runs):
            return planner.make(base, runs, sweeps.axes(runs), packed=packed)

        status = execute.execute(
            make_plan,
            workdir / name,
            started=time.monotonic(),
            stop=stop,
            checkpoint_seconds=60.0,
            report=True,
        )
        if status:
            return status
    found = {name: workdir / name for name in names}
    print(f"\n{page.verdicts(found)}")
    out = pathlib.Path(_OUT.value or workdir / "results.md")
    writers.write_text(out, page.page(found))
    print(f"\nTables: {out}")
    return 0


if __name__ == "__main__":
    entry.start("experiments.study", main)
