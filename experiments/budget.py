"""How much memory a population may take: of an accelerator, or of this host."""

import math
import pathlib

import jax

from experiments.devices import here


def default_budget() -> int:
    """Bytes that a population may take of a device: of an accelerator's four fifths.

    Of a CPU 60% of the host's free memory, as Python, the compiler and the arrays of the report
    live there too: for all its cores together, or for each of the devices that it was told to play.
    """
    device = jax.devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return int(0.8 * stats["bytes_limit"])
    return int(0.6 * free_host_memory()) // (1 if here().cores else jax.local_device_count())


def free_host_memory(root: pathlib.Path = pathlib.Path("/")) -> int:
    """Bytes free on this host, within the limits of its control groups (Slurm jobs, containers)."""
    free = 8 * 2**30  # where the system does not say
    if info := _read(root / "proc/meminfo"):
        fields = dict(line.split(":") for line in info.splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in _CGROUPS:
            mount, *names = _CGROUPS[controllers]
            # A limit holds for everything below it. In a container the path may be the host's, and
            # the folders on it are not there: the mount itself is then the container's own group.
            parts = pathlib.PurePosixPath(path).parts[1:]
            for depth in range(len(parts) + 1):
                free = min(free, _free_in_cgroup(root / mount / "/".join(parts[:depth]), *names))
    return max(0, free)


# By the name in /proc/self/cgroup (none: version 2): where groups are, and what files are called.
_CGROUPS = {
    "": ("sys/fs/cgroup", "memory.max", "memory.current", ""),
    "memory": (
        "sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_",
    ),
}


def _free_in_cgroup(folder: pathlib.Path, limit: str, usage: str, prefix: str) -> float:
    """What a control group may still take: cached files count as used, but give way."""
    allowed, used = _read(folder / limit).strip(), _read(folder / usage).strip()
    if not (allowed.isdigit() and used.isdigit()):  # no such group, or no limit
        return math.inf
    stat = dict(line.split() for line in _read(folder / "memory.stat").splitlines())
    cached = sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
    return int(allowed) - int(used) + cached


def _read(file: pathlib.Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
