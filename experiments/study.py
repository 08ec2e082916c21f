"""Runs studies: published claims, each with a measurement, a verdict and a figure.

    python -m experiments.study --list
    python -m experiments.study --name=iwae_snr --workdir=results/studies
    python -m experiments.study --all --data_dir=DIR --workdir=results/studies --out=docs/studies.md

Writes studies.csv and study.html into the workdir, and a folder for each study. The same command
again finishes what is missing. --config.FIELD=VALUE sets a field in all configs that are trained,
such as --config.train.epochs=1 to see that they run.
"""

import pathlib
import shlex
import time
from collections.abc import Sequence

from absl import flags

from experiments import config as configs
from experiments import devices, entry
from experiments import sweep as sweeps
from experiments.studies import BUDGETS, STUDIES
from vae.errors import UserError

_LIST = flags.DEFINE_bool("list", False, "Print the studies and run none.")
_NAME = flags.DEFINE_multi_string("name", [], "A study to run; several may be given.")
_ALL = flags.DEFINE_bool("all", False, "Run all studies.")
_BUDGET = flags.DEFINE_enum(
    "budget", "quick", BUDGETS, "quick: minutes on two cores; full: the papers' sizes, for a GPU."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the studies' results.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "TFDS folder with MNIST (--config.data.dir).")
_OUT = flags.DEFINE_string("out", None, "File for the tables, in Markdown; default: none.")


def main(overrides: entry.Overrides) -> int:
    """Runs what is asked for, one study after the other; returns the exit status."""
    if _LIST.value:
        for name, study in STUDIES.items():
            print(f"{study.ID:4}{name:22}{study.__doc__.partition(chr(10))[0]}")
        return 0
    names = _asked()
    if not _WORKDIR.value:
        raise UserError("--workdir: missing. See python -m experiments.study --help.")
    if _DATA_DIR.value:
        overrides = [*overrides, ("data.dir", _DATA_DIR.value)]
    plans = {
        name: configs.from_args(STUDIES[name].CONFIGS[_BUDGET.value], overrides, [])
        for name in names
        if hasattr(STUDIES[name], "CONFIGS")
    }

    devices.use_cores()
    import jax

    from experiments import environment, execute
    from experiments.studies import writing

    workdir = pathlib.Path(_WORKDIR.value)
    stop = execute.StopOnSignal()
    found = {}
    for name in names:
        print(f"\nStudy {name}: {STUDIES[name].__doc__.partition(chr(10))[0]}", flush=True)
        if name in plans:
            status = _train(plans[name], workdir / name, stop)
            if status:
                return status
        done = writing.measure(name, _BUDGET.value, workdir, _DATA_DIR.value, stop)
        if done is None:
            return execute.say_how_to_go_on(stop)
        found[name] = done
        # The compiled programs of twenty studies pass what the system lets a process map.
        jax.clear_caches()
        writing.write(found, workdir, environment.machine(environment.command_line()))
    print(f"\n{writing.terminal(found)}")
    print(f"\nVerdicts: {workdir / 'studies.csv'}\nReport:   {workdir / 'study.html'}")
    if _OUT.value:
        command = f"python -m experiments.study {_which(names)} --budget={_BUDGET.value}"
        command += " --data_dir=DIR --workdir=results/studies"
        made = environment.machine(environment.command_line())
        writing.write_page(pathlib.Path(_OUT.value), found, made, command)
        print(f"Tables:   {_OUT.value}")
    return 0


def _asked() -> list[str]:
    names = list(STUDIES) if _ALL.value else list(dict.fromkeys(_NAME.value))
    for name in names:
        if name not in STUDIES:
            raise UserError(f"--name: {name} is no study. There are {', '.join(STUDIES)}.")
    if not names:
        raise UserError("--name: missing. Name a study, or give --all; --list shows what there is.")
    return names


def _which(names: Sequence[str]) -> str:
    return "--all" if _ALL.value else " ".join(f"--name={shlex.quote(name)}" for name in names)


def _train(plan: tuple[configs.Config, sweeps.Sweep], folder: pathlib.Path, stop) -> int:
    """The runs of a study's config, in its folder; returns the exit status."""
    from experiments import execute, trials
    from experiments import plan as planner

    base, runs = plan

    def make_plan(packed=None):
        axes = sweeps.axes(runs)
        return planner.make(base, runs, axes, packed=packed, try_out=trials.fastest)

    return execute.execute(
        make_plan,
        folder,
        started=time.monotonic(),
        stop=stop,
        checkpoint_seconds=60.0,
        report=True,
    )


if __name__ == "__main__":
    entry.start("experiments.study", main)
