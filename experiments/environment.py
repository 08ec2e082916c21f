"""What a result was made with: versions, devices, commit, command and data."""

import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax

from experiments.fields import show
from experiments.plan import Plan, differing

PACKAGES = ("vae-lab", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def describe(plan: Plan, command: Sequence[str]) -> dict[str, Any]:
    """The content of environment.json."""
    return machine(command) | {"dataset": _datasets(plan)}


def machine(command: Sequence[str]) -> dict[str, Any]:
    """The command, versions, devices and commit."""
    return {
        "command": list(command),
        "versions": versions(),
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "backend": jax.default_backend(),
        "devices": [f"{d.device_kind} ({d.platform})" for d in jax.devices()],
        # Without a setting: only CPUs come here with none, and they multiply in float32.
        "matmul_precision": jax.config.jax_default_matmul_precision or "float32",
        **_commit(),
    }


def _datasets(plan: Plan) -> dict[str, Any]:
    """The protocol of each dataset by its source, and by the swept data fields where there are."""
    apart = [n for n in differing(plan.populations) if n.startswith("data.") and n != "data.source"]
    return {
        " ".join([p.dataset.name, *(f"{n}={show(p.structure[n])}" for n in apart)]): (
            p.dataset.protocol
        )
        for p in plan.populations
    }


def cpu_model() -> str:
    """What the processor calls itself."""
    info = pathlib.Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Python's, and of each of `PACKAGES`."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _commit() -> dict[str, Any]:
    """The commit of this code, and whether files differ from it; null where git has none."""
    # An installed copy may lie in an environment inside somebody else's repository.
    ours = _git("ls-files", "--error-unmatch", pathlib.Path(__file__).name) is not None
    return {
        "git_commit": _git("rev-parse", "HEAD") if ours else None,
        "git_dirty": bool(_git("status", "--porcelain")) if ours else None,
    }


def _git(*arguments: str) -> str | None:
    """What git says of the repository that this file is in; None where there is none."""
    folder = pathlib.Path(__file__).parent
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def command_line() -> list[str]:
    """The command as the user would type it again."""
    spec = sys.modules["__main__"].__spec__
    return ["python", "-m", spec.name if spec else "experiments.run", *sys.argv[1:]]
