"""Which devices a population takes: the shape of its mesh, chosen or checked.

Of `runs` × `data` devices, each along the first axis has some of the runs, and those along the
second share each batch; see `vae.mesh`.
"""

import os
from typing import NamedTuple

from vae.errors import UserError

# Floating-point operations of a training step of one run, from which on devices share its batch.
# An H100 makes so many in 0.1 ms at a sixth of its float32 rate, and summing the gradients over
# its neighbours takes some hundredths of a millisecond for each of a few sums.
SHARED_FROM_FLOPS = 1e9


# Operations of the training of a population, from which on its runs go to the cores of a CPU.
# Programs of several devices take longer to compile: those of the quickstart's six structures took
# 33 s more of processor time. A third of the training is saved, at 80 GFLOP/s 10 s from here on.
SPREAD_FROM_FLOPS = 2.5e12


class Devices(NamedTuple):
    """The devices at hand.

    Attributes:
      count: of all processes together. processes: how many there are.
      cores: they are the cores of one CPU, see `use_cores`.
    """

    count: int
    processes: int = 1
    cores: bool = False


class Work(NamedTuple):
    """What there is to do.

    Attributes:
      runs: of the population. batch_size: examples in a step. flops: of a step of one run.
      steps: of the training.
    """

    runs: int
    batch_size: int
    flops: float
    steps: int = 1


def cores() -> int:
    """Cores that this process may use, and threads of what runs on them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_cores() -> None:
    """Has JAX take each core of the CPU for a device, where it is to compute on one.

    Runs then train side by side, each on a core of its own: the operations of one device follow
    one another, and few of them keep several cores busy. On two cores eight runs of the digits
    take 0.69 of the time so, eight of 784-500-20 0.83, four convolutional ones at 32 pixels 0.92.
    To be called before JAX starts; what the user has said in XLA_FLAGS or JAX_NUM_CPU_DEVICES
    stands.
    """
    import jax

    said = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not said and "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", cores())


def here() -> Devices:
    """The devices of this process and those that it works with."""
    import jax

    alone = jax.process_count() == 1
    played = alone and jax.default_backend() == "cpu" and jax.config.jax_num_cpu_devices > 1
    return Devices(jax.device_count(), jax.process_count(), cores=played)


def choose(
    devices: Devices, work: Work, runs: int | None = None, data: int | None = None
) -> tuple[int, int]:
    """The mesh (runs, data): as asked for, and else the one with the least work for a device.

    A small step is not shared: a single process leaves devices idle that would not make it faster.
    Several use all their devices, as each has to have a part in every program. The cores of a CPU
    share no batch, as all of them work at the products of a device that is alone; and runs are
    spread over them where training is long.

    Args:
      runs, data: what the config asks for; None: choose.

    Raises:
      UserError: naming mesh.runs or mesh.data, what is wrong and what would do.
    """
    _check_asked(devices, work, runs, data)
    if devices.cores:
        long = work.flops * work.runs * work.steps >= SPREAD_FROM_FLOPS
        runs, data = runs or (None if long else 1), data or 1
    fitting = [
        (r, d)
        for r, d in _meshes(devices)
        if runs in (None, r) and data in (None, d) and work.batch_size % d == 0
    ]
    per_process = devices.count // devices.processes
    if devices.processes > 1:
        fitting = [(r, d) for r, d in fitting if _idle_rows(work.runs, r) * d < per_process]
    if not fitting:
        raise UserError(_too_many(devices, work))
    if data is None and work.flops < SHARED_FROM_FLOPS:
        least = min(d for _, d in fitting)
        fitting = [(r, d) for r, d in fitting if d == least]

    def cost(shape: tuple[int, int]) -> tuple[int, ...]:
        r, d = shape
        busiest = -(-work.runs // r) * (work.batch_size // d)
        return busiest, _idle_rows(work.runs, r), d, r * d

    return min(fitting, key=cost)


def _meshes(devices: Devices) -> list[tuple[int, int]]:
    """All shapes whose product divides the devices, or is them where there are processes."""
    n = devices.count
    divisors = [k for k in range(1, n + 1) if n % k == 0]
    sizes = [n] if devices.processes > 1 else divisors
    return [(size // d, d) for size in sizes for d in divisors if size % d == 0]


def _idle_rows(num_runs: int, rows: int) -> int:
    """Parts of the axis `runs` that have no run: each has as many as the first, while they last."""
    return rows - -(-num_runs // -(-num_runs // rows))


def _check_asked(devices: Devices, work: Work, runs: int | None, data: int | None) -> None:
    n, processes = devices.count, devices.processes
    for name, asked in (("mesh.runs", runs), ("mesh.data", data)):
        if asked is not None and n % asked:
            raise UserError(
                f"{name}: {asked} does not divide the number of devices, {n}. "
                f"{_choices(n)} (or null: it is chosen)."
            )
    if runs is not None and data is not None:
        product = runs * data
        if n % product or (processes > 1 and product != n):
            what = (
                f"the {n} of all {processes} processes" if processes > 1 else f"the {n} there are"
            )
            fits = "is not" if processes > 1 else "does not divide"
            raise UserError(
                f"mesh.runs: {runs} times mesh.data {data} is {_plural(product, 'device')}, which "
                f"{fits} {what}. Change one of the two, or set one to null: it is then chosen."
            )
    if data is not None and work.batch_size % data:
        raise UserError(
            f"mesh.data: {data} devices cannot share a batch of {work.batch_size} equally. "
            "Change it or train.batch_size, or set it to null: it is then chosen."
        )


def _too_many(devices: Devices, work: Work) -> str:
    runs = _plural(work.runs, "run")
    return (
        f"mesh.runs: {devices.processes} processes of "
        f"{_plural(devices.count // devices.processes, 'device')} each are more than {runs} can "
        f"use, even if devices share the batch of {work.batch_size}. Start at most "
        f"{_plural(work.runs, 'process', 'processes')}, or change train.batch_size to a multiple "
        f"of {devices.count}, and leave mesh.runs and mesh.data null."
    )


def _choices(n: int) -> str:
    divisors = [str(k) for k in range(1, n + 1) if n % k == 0]
    if len(divisors) == 1:
        return "Set it to 1"
    return f"Choose {', '.join(divisors[:-1])} or {divisors[-1]}"


def _plural(count: int, noun: str, nouns: str = "") -> str:
    return f"{count} {noun if count == 1 else nouns or noun + 's'}"
