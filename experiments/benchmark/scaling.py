"""What sharing the work among devices and processes costs, on devices that a CPU plays.

They share its cores, so that beyond those nothing gets faster: what is measured is how the time of
the same work changes when it is split, and what the devices have to exchange, read off the compiled
programs.
"""

import json
import os
import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from configs import default, mnist
from experiments.benchmark.commands import REPOSITORY
from experiments.benchmark.library import Training, mnist_overrides, population_plan
from experiments.benchmark.measure import Row, Settings, in_turns, ratio

DEVICES = (1, 2, 4, 8)
PER_DEVICE, IN_ALL = 2, 16  # runs, of weak and of strong scaling
TIMEOUT = 600  # seconds of a process, which takes one or two minutes on two cores

COLLECTIVE = re.compile(
    r"= .*? (all-reduce|all-gather|collective-permute|all-to-all|reduce-scatter"
    r"|collective-broadcast)(?:-start)?\("
)


def scaling(settings: Settings) -> Iterator[Row]:
    """The same work on 1, 2, 4 and 8 devices of a CPU against one of them; two processes."""
    single = {}
    for devices in settings.pick(DEVICES, (2,)):
        (found,) = _start(settings, devices, processes=1)
        single[devices] = found
        yield from _rows(found, devices)
    # As many devices, in two processes, which talk through sockets.
    devices = settings.pick(4, 2)
    found, _ = _start(settings, devices // 2, processes=2)
    for name, case in found.items():
        what = f"2 processes of {devices // 2}: {_WHAT[name].format(**case)}"
        yield _exchanged(what, name, case)
        seconds = np.median(case["seconds"]) / np.median(single[devices][name]["seconds"])
        note = f"{devices // 2} × 2 against {devices} × 1, one measured after the other"
        yield Row("scaling", f"{what}: time / one process", float(seconds), "ratio", note=note)


# By the case: what is split among {devices}.
_WHAT = {
    "weak": "{runs} runs, {per_device} on each",
    "strong": "{runs} runs of digits",
    "data": "one run of 784-500-20, its batch",
}


def _rows(found: dict[str, Any], devices: int) -> Iterator[Row]:
    for name, case in found.items():
        what = f"{devices} devices: {_WHAT[name].format(**case)}"
        yield _exchanged(what, name, case)
        spread = ratio(np.array(case["seconds"]), np.array(case["alone"]))
        yield Row("scaling", f"{what}: time / on one device", **spread, unit="ratio")


def _exchanged(what: str, name: str, case: dict[str, Any]) -> Row:
    counted = case["collectives"]
    note = ", ".join(f"{n} {kind}" for kind, n in sorted(counted.items()))
    # Runs need nothing of each other.
    target = None if name == "data" else ("<=", 0)
    total = float(sum(counted.values()))
    return Row("scaling", f"{what}: collectives in the step", total, "", target=target, note=note)


def cases(settings: Settings, devices: int) -> dict[str, tuple[Any, dict[str, str], int]]:
    """By name: config, overrides with the mesh, and number of runs."""
    runs = {"mesh.runs": str(devices), "mesh.data": "1"}
    if jax.process_count() > 1:  # chosen, the same: a plan also asks what one run would take
        runs = {"mesh.runs": "null", "mesh.data": "null"}
    share = {"mesh.runs": "1", "mesh.data": str(devices)}
    small = {"model.width": "4"} if settings.quick else {}
    found = {
        "weak": (default, small | runs, PER_DEVICE * devices),
        "strong": (default, small | runs, IN_ALL),
        "data": (mnist, mnist_overrides(settings)[0] | share, 1),
    }
    return {name: found[name] for name in found if not (settings.quick and name == "strong")}


def measure(settings: Settings, devices: int) -> dict[str, Any]:
    """In a process with so many devices, with those of its peers: all `cases`."""
    found = {}
    for name, (module, overrides, runs) in cases(settings, devices).items():
        sweep = [f"seed=0:{runs}"]
        plan = population_plan(module, overrides, sweep, "vmap")
        split = Training(plan)
        functions = {"seconds": split}
        if jax.process_count() == 1:  # a single device of all is not every process's own
            on_one = {**overrides, "mesh.runs": "1", "mesh.data": "1"}
            functions["alone"] = Training(population_plan(module, on_one, sweep, "vmap"))
        seconds = in_turns(functions, settings.pick(40, 2), settings.pick(5, 2))
        found[name] = {
            **{key: list(values) for key, values in seconds.items()},
            "runs": runs,
            "per_device": runs // devices,
            "mesh": dict(plan.mesh.shape) if plan.mesh else {},
            "collectives": collectives(split.program.as_text()),
        }
    return found


def collectives(hlo: str) -> dict[str, int]:
    """Operations between devices in a compiled program, by kind."""
    return dict(Counter(COLLECTIVE.findall(hlo)))


def _start(settings: Settings, devices: int, processes: int) -> list[dict[str, Any]]:
    """What each of some processes of so many devices has measured.

    Raises:
      RuntimeError: one failed or took too long; the message ends with what it printed.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", flags)
    flags += f" --xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip()}
    data_dir = settings.data_dir or ""
    arguments = [str(settings.quick), data_dir, str(devices * processes), str(processes), _port()]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", scaling.__module__, *arguments, str(number)],
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]
    found = []
    try:
        for process in started:
            output, errors = process.communicate(timeout=TIMEOUT)
            if process.returncode:
                raise RuntimeError(f"status {process.returncode}\n{errors[-2000:]}")
            found.append(json.loads(output.splitlines()[-1]))
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{devices} devices took more than {TIMEOUT} s") from error
    finally:
        for process in started:  # one that failed leaves its peer waiting
            process.kill()
            process.communicate()
    return found


def _port() -> str:
    """A port that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def main(arguments: Sequence[str]) -> None:
    """A process that `_start` starts: prints what it has measured."""
    quick, data_dir, devices, processes, port, number = arguments
    if int(processes) > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            f"127.0.0.1:{port}", int(processes), int(number), initialization_timeout=120
        )
    settings = Settings(quick=quick == "True", data_dir=data_dir or None)
    print(json.dumps(measure(settings, int(devices))))


if __name__ == "__main__":
    main(sys.argv[1:])
