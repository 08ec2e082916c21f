"""Several processes that train as one: who they are, how they meet, and what they agree on.

Each process runs the same command. They meet at the coordinator, process 0, and are then one
machine to JAX, with the devices of all. All do the same in the same order; process 0 alone writes
results. Whatever a process decides by its own clock or its own signals is agreed on first.
"""

import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from vae.errors import UserError

_LOST = (
    "{who} stopped, most likely because another one ended or cannot be reached: see what that one "
    "printed. The same command goes on from the last checkpoint."
)
_handler = None  # of abort(); C does not keep it alive


class Group(NamedTuple):
    """Processes that train as one.

    Attributes:
      coordinator: HOST:PORT at which process 0 listens. count: processes. index: this one's number.
    """

    coordinator: str
    count: int
    index: int


def find(
    environment: Mapping[str, str],
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
) -> Group | None:
    """The group that the flags or a Slurm step name; None: this process is alone.

    Raises:
      UserError: a flag is missing beside the others, or makes no sense.
    """
    given = {"--coordinator": coordinator, "--num_processes": count, "--process_id": index}
    missing = [flag for flag, value in given.items() if value is None]
    if len(missing) < len(given):
        if missing:
            raise UserError(
                f"{missing[0]}: missing. Several processes need all of {', '.join(given)}."
            )
        if not re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\s]+):\d+", coordinator):
            raise UserError(f"--coordinator: {coordinator!r} is not HOST:PORT, as in node1:12345.")
        if not 0 <= index < count:
            raise UserError(f"--process_id: {index} is not one of 0 to {count - 1}.")
        return Group(coordinator, count, index) if count > 1 else None
    return _of_slurm(environment)


def _of_slurm(environment: Mapping[str, str]) -> Group | None:
    """The tasks of a job step that srun started; the script around it is no such step."""
    try:
        count, index = (int(environment[n]) for n in ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"))
        job, hosts = int(environment["SLURM_JOB_ID"]), environment["SLURM_STEP_NODELIST"]
        step = int(environment["SLURM_STEP_ID"])
    except (KeyError, ValueError):
        return None
    if count < 2:
        return None
    # Steps and jobs that share a node differ in their port, most likely.
    port = 50_000 + (job * 16 + step) % 10_000
    return Group(f"{_first_host(hosts)}:{port}", count, index)


def _first_host(hosts: str) -> str:
    """node1 of node[1-3,7],other."""
    found = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\])?([^,\[]*)", hosts)
    if not found:
        raise UserError(f"SLURM_STEP_NODELIST: {hosts!r} names no host. Give --coordinator.")
    return "".join(part or "" for part in found.groups())


def join(group: Group, timeout: float) -> None:
    """Waits until all processes are there, then makes them one machine to JAX.

    They meet over a plain socket first: what JAX does when one of them is missing is to end the
    process, with a trace of its own library.

    Raises:
      UserError: they did not meet within `timeout` seconds; says who is missing, and what to check.
    """
    import jax

    end = time.monotonic() + timeout
    (_welcome if group.index == 0 else _knock)(group, end, timeout)
    # Read by the CPU backend alone.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        coordinator_address=group.coordinator,
        num_processes=group.count,
        process_id=group.index,
        initialization_timeout=max(30, int(end - time.monotonic())),
    )
    _abort_with_a_reason(f"process {group.index} of {group.count}")


def on_tpu_slice(environment: Mapping[str, str]) -> bool:
    """Whether this is one of several hosts of a TPU slice on GKE, which all have to join."""
    return "," in environment.get("TPU_WORKER_HOSTNAMES", "")


def join_found() -> None:
    """The same where JAX knows by itself who the others are: TPU pods, Kubernetes, Open MPI.

    Raises:
      UserError: it does not.
    """
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"--distributed=on: JAX finds no other processes here ({error}). Give --coordinator, "
            "--num_processes and --process_id to each, or leave the flag out for one process."
        ) from None
    _abort_with_a_reason("this process")


def _abort_with_a_reason(who: str) -> None:
    """From now on abort() says that another process is gone, and ends this one with status 1.

    A thread of JAX calls it when process 0 is gone, which may be before or after Python hears of
    it as an error. A handler of Python's own would wait for the main thread, and abort() waits for
    nobody; one in C runs where abort() was called.
    """
    global _handler
    message = f"error: {_LOST.format(who=who)} (ended by JAX, see above)\n".encode()

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def leave_now(_: int) -> None:
        os.write(2, message)
        os._exit(1)

    _handler = leave_now
    ctypes.pythonapi.PyOS_setsig(ctypes.c_int(signal.SIGABRT), leave_now)


def _address(group: Group) -> tuple[str, int]:
    host, _, port = group.coordinator.rpartition(":")
    return host.strip("[]"), int(port)


def _welcome(group: Group, end: float, timeout: float) -> None:
    """Process 0: lets the others in, and sends them on when all are there."""
    host, port = _address(group)
    with contextlib.ExitStack() as stack:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        door = stack.enter_context(socket.socket(family))
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind(("", port))
            door.listen(group.count)
        except OSError as error:
            raise UserError(
                f"--coordinator: process 0 cannot listen on port {port} ({error.strerror}). "
                "Give another port, the same to all processes."
            ) from None
        guests: dict[int, socket.socket] = {}
        while len(guests) < group.count - 1:
            door.settimeout(max(0.01, end - time.monotonic()))
            try:
                guest, _ = door.accept()
            except TimeoutError:
                missing = sorted(set(range(1, group.count)) - guests.keys())
                raise UserError(
                    f"--num_processes: of {group.count} processes, number "
                    f"{', '.join(map(str, missing))} did not come to {group.coordinator} within "
                    f"{timeout:.0f} s. Start them all with the same --coordinator and "
                    "--num_processes, each with its own --process_id; see whether their logs say "
                    f"why, and whether a firewall closes port {port}."
                ) from None
            stack.enter_context(guest)
            if (said := _name(guest)) is None:  # somebody else's knock
                continue
            index, count = said
            if count != group.count or index in guests or not 0 < index < group.count:
                already = f", which has a number {index} already" if index in guests else ""
                raise UserError(
                    f"--process_id: a process came as number {index} of {count}, and this is "
                    f"number 0 of {group.count}{already}. Give all the same --num_processes, and "
                    "each its own --process_id."
                )
            guests[index] = guest
        for guest in guests.values():
            with contextlib.suppress(OSError):  # it went away: JAX's own meeting will miss it
                guest.sendall(b"go")


def _name(guest: socket.socket) -> tuple[int, int] | None:
    """The number and count that a process says; None of what is no such process."""
    try:
        guest.settimeout(5)
        index, count = json.loads(guest.recv(100))
        return int(index), int(count)
    except (OSError, ValueError, TypeError):
        return None


def _knock(group: Group, end: float, timeout: float) -> None:
    """The others: come to process 0, and wait to be sent on."""
    reason = "nobody listens there"
    while time.monotonic() < end:
        try:
            with socket.create_connection(_address(group), timeout=2) as door:
                door.sendall(json.dumps([group.index, group.count]).encode())
                door.settimeout(max(0.01, end - time.monotonic()))
                if door.recv(10) == b"go":
                    return
                reason = "process 0 turned this one away, or ended: see its message"
                break
        except TimeoutError:
            reason = "process 0 was there, and others were missing"
        except socket.gaierror as error:
            reason = f"its host is not known ({error.strerror})"
        except OSError as error:
            reason = error.strerror or str(error)
        time.sleep(0.2)
    raise UserError(
        f"--coordinator: process {group.index} of {group.count} waited for process 0 at "
        f"{group.coordinator} for {timeout:.0f} s: {reason}. Check that process 0 runs, that "
        "--coordinator names its host as this one knows it, and that no firewall is between them."
    )


def several() -> bool:
    """Whether there are other processes."""
    return count() > 1


def count() -> int:
    """Processes, this one among them."""
    import jax

    return jax.process_count()


def index() -> int:
    """Which of them this is, from 0."""
    import jax

    return jax.process_index()


def writes() -> bool:
    """Whether this process writes the results: process 0 does."""
    return index() == 0


def gather(value: Any) -> np.ndarray:
    """The numbers (of one shape) that each process has here, [processes, ...]; all must ask."""
    if not several():
        return np.asarray(value)[None]
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(np.asarray(value)))


def any_of(value: bool) -> bool:
    """Whether it is so in any process."""
    return bool(gather(value).any())


def first(value: Any) -> np.ndarray:
    """What process 0 has here."""
    return gather(value)[0]


def in_turn(first_does: Callable[[], Any], others_do: Callable[[], Any]) -> Any:
    """Process 0 does its part, then the others theirs; what this process's part returns.

    Raises:
      UserError: the part of another process failed; its own message says why.
    """
    result, error = None, None
    for turn, does in enumerate((first_does, others_do)):
        if writes() == (turn == 0):
            try:
                result = does()
            except Exception as caught:
                error = caught
        failed = np.flatnonzero(gather(error is not None))
        if error is not None:
            raise error
        if len(failed):
            raise UserError(
                f"process {', '.join(map(str, failed))} of {count()} could not begin, and so none "
                "can: what it printed says why."
            )
    return result


class Lost(RuntimeError):
    """Another process is gone, or this one can no longer reach it."""


def lost(error: Exception) -> Lost:
    """What to say of an error in a program of several processes."""
    first_line = str(error).strip().partition("\n")[0]
    return Lost(f"{_LOST.format(who=f'process {index()} of {count()}')} ({first_line})")


def leave() -> None:
    """Ends what the processes do together, when the last one has come here."""
    import jax

    if several():
        gather(0)
        jax.distributed.shutdown()
