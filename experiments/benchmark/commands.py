"""Benchmarks of whole processes: from their start to results on disk, as a user waits for them."""

import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from configs import default, quickstart
from experiments import programs
from experiments.benchmark import library
from experiments.benchmark.measure import Row, Settings, spread
from experiments.plan import PopulationPlan

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

BETAS, SEEDS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0), (0, 1, 2, 3)

# Separate processes that are run; the rest are taken to be like them.
SAMPLE = 4


# Runs a command and prints its peak of resident memory. In between, because a process starts with
# the peak of the one that started it.
_MEASURED = """
import resource, subprocess, sys
status = subprocess.call(sys.argv[1:])
print("peak", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""


class Launch(NamedTuple):
    """A finished command: wall-clock seconds, peak resident bytes, and what it printed."""

    seconds: float
    peak: int
    output: str


def launch(arguments: Sequence[str], cache: pathlib.Path) -> Launch:
    """Runs `python -m experiments.run` with a cache folder of its own.

    Raises:
      RuntimeError: it failed; the message ends with what it printed.
    """
    command = [sys.executable, "-m", "experiments.run", *arguments]
    environment = {**os.environ, "VAE_LAB_CACHE": str(cache)}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, *command],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        text = done.stdout[-2000:]
        raise RuntimeError(f"{' '.join(command)}: status {done.returncode}\n{text}")
    output, _, peak = done.stdout.rpartition("peak ")
    return Launch(seconds, int(peak) * (1 if sys.platform == "darwin" else 1024), output)


def _single_runs(settings: Settings) -> tuple[list[str], tuple[float, ...], tuple[int, ...]]:
    """Arguments that all runs share, and the axes β and seed."""
    arguments = [f"--config={default.__file__}", "--noreport"]
    if settings.quick:
        arguments += ["--config.train.epochs=null", "--config.train.steps=2"]
        arguments += ["--config.eval.iw_samples=0", "--config.model.width=4"]
        return arguments, (1.0,), (0, 1)
    return arguments, BETAS, SEEDS


def processes(settings: Settings) -> list[Row]:
    """The same runs by one command and by one process each."""
    arguments, betas, seeds = _single_runs(settings)
    runs = [(beta, seed) for beta in betas for seed in seeds]
    sample = len(runs) if settings.full else min(SAMPLE, len(runs))
    sweep = [f"--sweep=objective.beta={','.join(map(str, betas))}"]
    sweep += [f"--sweep=seed={','.join(map(str, seeds))}"]
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        together, apart = {}, {}
        for caches in ("cold", "warm"):
            workdir = f"--workdir={root / caches / 'together'}"
            together[caches] = launch([*arguments, *sweep, workdir], root / "one").seconds
            apart[caches] = []
            for beta, seed in runs[:sample]:
                own = [f"--config.objective.beta={beta}", f"--config.seed={seed}"]
                own += [f"--workdir={root / caches / f'{beta}-{seed}'}"]
                apart[caches].append(launch([*arguments, *own], root / "many").seconds)
    # The first process of the cold ones fills the cache that the others then read.
    first = apart["cold"][0]
    later = float(np.mean(apart["cold"][1:] if sample > 1 else apart["cold"]))
    total = {
        "cold": first + (len(runs) - 1) * later,
        "warm": len(runs) * float(np.mean(apart["warm"])),
        "none": len(runs) * first,
    }
    how = "all run" if sample == len(runs) else f"{sample} of {len(runs)} run, the rest like them"
    count = len(runs)
    return [
        Row("processes", f"{count} runs, one command, empty cache", together["cold"], "s"),
        Row("processes", f"{count} processes, cache empty at first", total["cold"], "s", note=how),
        Row(
            "processes",
            "gain, each cache empty at first",
            total["cold"] / together["cold"],
            "ratio",
            target=(">=", 10.0),
            note=f"a process takes {first:.1f} s at first, {later:.1f} s when its programs are "
            "in the cache",
        ),
        Row(
            "processes",
            "gain over processes without a cache",
            total["none"] / together["cold"],
            "ratio",
            target=(">=", 10.0),
            note="as scripts have it that do not keep compiled programs",
        ),
        Row(
            "processes",
            "gain, all programs in the cache",
            total["warm"] / together["warm"],
            "ratio",
            target=(">=", 10.0),
            note=f"{together['warm']:.1f} s against {total['warm']:.0f} s; {how}",
        ),
    ]


def quickstart_(settings: Settings) -> list[Row]:
    """The quickstart ablation and its report, nothing in the cache."""
    arguments = [f"--config={quickstart.__file__}"]
    if settings.quick:
        arguments += ["--config.train.epochs=null", "--config.train.steps=2"]
        arguments += ["--config.eval.iw_samples=0", "--sweep=model.depth=1", "--sweep=seed=0"]
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        done = launch([*arguments, f"--workdir={root / 'results'}"], root / "cache")
        size = (root / "results" / "report.html").stat().st_size
    return [
        Row("quickstart", "wall clock", done.seconds, "s", target=("<=", 90.0)),
        Row("quickstart", "peak memory", done.peak / 1e9, "GB", target=("<=", 2.0)),
        Row("quickstart", "report.html", size / 1e6, "MB"),
    ]


def startup(settings: Settings) -> list[Row]:
    """From the start of a process to its first training step; the compilation of each program."""
    arguments = [f"--config={default.__file__}", "--noreport", "--config.train.epochs=null"]
    arguments += ["--config.train.steps=20", "--config.eval.every=20"]
    arguments += ["--config.eval.iw_samples=0"]
    seconds: dict[str, list[float]] = {"empty": [], "full": []}
    for _ in range(settings.pick(3, 1)):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            for cache in seconds:
                done = launch([*arguments, f"--workdir={root / cache}"], root / "cache")
                seconds[cache].append(first_step(done.output))
    rows = [
        Row("startup", f"first step, {cache} cache", **spread(values), unit="s")
        for cache, values in seconds.items()
    ]
    return rows + [
        Row("startup", f"tracing and compiling {name}", value, "s", note="the digits, one run")
        for name, value in compile_seconds(library.population_plan(default, {})).items()
    ]


def compile_seconds(plan: PopulationPlan) -> dict[str, float]:
    """Of each program of a population, one after the other, without the cache on disk."""
    jax.clear_caches()  # of benchmarks before this one
    pool, seconds = programs.Programs(), {}
    for name in ("init", "chunk", "changes", "evaluate_test", "iw_bounds", "gallery"):
        start = time.perf_counter()
        pool.get(name, plan)
        seconds[name] = time.perf_counter() - start
    pool.close()
    return seconds


def first_step(output: str) -> float:
    """The seconds in the launcher's line `First step after 7.1 s`.

    Raises:
      RuntimeError: there is no such line.
    """
    found = re.search(r"First step after ([0-9.]+) s", output)
    if not found:
        raise RuntimeError(f"the launcher did not say when its first step was done:\n{output}")
    return float(found[1])
