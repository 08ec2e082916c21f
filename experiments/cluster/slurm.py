"""What Slurm says: of tasks of array jobs, of nodes, of limits. Its commands are run, no more."""

import dataclasses
import re
import shutil
import subprocess
from collections.abc import Iterable

from vae.errors import UserError

SECONDS = 60  # for an answer

WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")
RUNNING = ("RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT")

# By the words of Slurm's pending reasons, what they mean to who waits; others are shown as they
# are.
REASONS = {
    "Resources": "for free nodes",
    "Priority": "behind other jobs",
    "JobArrayTaskLimit": "for its turn (--array_parallelism)",
    "BeginTime": "until Slurm starts it again",
    "None": "to be looked at by Slurm",
    "PartitionConfig": "for what the partition does not have (--nodes, --time)",
    "PartitionNodeLimit": "for more nodes than the partition gives to a job (--nodes)",
    "PartitionTimeLimit": "for more time than the partition gives to a job (--time)",
}


@dataclasses.dataclass(frozen=True)
class Task:
    """What Slurm knows of one task of an array job.

    Attributes:
      state: in Slurm's words. reason: why it waits or failed, in Slurm's words; "" where it gives
        none. exit_code: status and signal, such as "0:9". restarts: how often it was requeued.
    """

    state: str
    reason: str = ""
    exit_code: str = "0:0"
    nodes: str = ""
    restarts: int = 0


class Silent(Exception):
    """Slurm is not here, or does not answer; the message says which."""


def check_present() -> None:
    """Raises UserError where there is no Slurm to submit to."""
    if missing := [name for name in ("sbatch", "srun", "scontrol") if not shutil.which(name)]:
        raise UserError(
            f"--cluster: {', '.join(missing)} not found: this machine has no Slurm. Submit from a "
            "login node of a Slurm cluster, or give --cluster=local; --dry_run prints the script "
            "without one."
        )


def max_array_size() -> int | None:
    """The number of tasks that an array job may have; None where Slurm does not say.

    Raises:
      Silent: no answer.
    """
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _ask("scontrol", "show", "config"), re.M)
    return int(found[1]) if found else None


def tasks(jobs: Iterable[str]) -> dict[tuple[str, int], Task]:
    """What Slurm knows of the tasks of array jobs, by job and task.

    The controller forgets a job some minutes after its end; what it forgot comes from the
    accounting database, where the cluster has one.

    Raises:
      Silent: no answer.
    """
    found: dict[tuple[str, int], Task] = {}
    for job in jobs:
        if shutil.which("sacct"):
            found |= _accounted(job)
        found |= _controlled(job)
    return found


def down_nodes() -> dict[str, str]:
    """The nodes that cannot be used, and why.

    Raises:
      Silent: no answer.
    """
    lines = _ask("sinfo", "--noheader", "--Node", "--format=%N|%T|%E").splitlines()
    rows = [line.strip().split("|", 2) for line in lines]
    return {
        node: state.rstrip("*") + (f", {why}" if why not in ("", "none") else "")
        for node, state, why in rows
        if re.match(r"down|drain|fail|error|no_respond|not_responding|unk", state.lower())
    }


def _controlled(job: str) -> dict[tuple[str, int], Task]:
    """As the controller has it: one line for each task, or for several that wait."""
    try:
        lines = _ask("scontrol", "--oneliner", "show", "job", job).splitlines()
    except Silent as silent:
        if "invalid job id" in str(silent).lower():
            return {}
        raise
    found = {}
    for line in lines:
        values = dict(re.findall(r"(\w+)=(\S*)", line))
        task = Task(
            state=values.get("JobState", ""),
            reason=values.get("Reason", ""),
            exit_code=values.get("ExitCode", "0:0"),
            nodes=values.get("NodeList", "").removeprefix("(null)"),
            restarts=int(values.get("Restarts", 0)),
        )
        for index in _indices(values.get("ArrayTaskId", "")):
            found[job, index] = task
    return found


def _accounted(job: str) -> dict[tuple[str, int], Task]:
    """As the accounting database has it, where there is one."""
    fields = "JobID,State,ExitCode,NodeList"
    words = ("--noheader", "--parsable2", "--allocations", f"--format={fields}", f"--jobs={job}")
    try:
        lines = _ask("sacct", *words).splitlines()
    except Silent:  # "Slurm accounting storage is disabled"
        return {}
    found = {}
    for name, state, exit_code, nodes in (line.split("|") for line in lines if line):
        # CANCELLED by 1000; None assigned
        task = Task(state.split()[0], "", exit_code, nodes if " " not in nodes else "")
        for index in _indices(name.partition("_")[2].strip("[]")):
            found[job, index] = task
    return found


def _indices(text: str) -> list[int]:
    """The tasks of `3`, or of several that wait: `0-2,5%4`."""
    indices = []
    for part in text.partition("%")[0].split(","):
        if match := re.fullmatch(r"(\d+)(?:-(\d+))?", part):
            indices += range(int(match[1]), int(match[2] or match[1]) + 1)
    return indices


def refusal(said: str) -> UserError:
    """What sbatch said when it refused a job, as an error that names the flag."""
    lines = [line for line in said.strip().splitlines() if line.strip()]
    words = "; ".join(re.sub(r"^sbatch: (error|fatal): ", "", line) for line in lines)
    flag, advice = next((f, a) for pattern, f, a in _REFUSALS if re.search(pattern, words, re.I))
    try:
        partitions = sorted(set(_ask("sinfo", "--noheader", "--format=%R").split()))
    except Silent:
        partitions = []
    if flag == "--partition" and partitions:
        advice = f"There are {', '.join(partitions)}."
    return UserError(f"{flag}: Slurm refused the job: {words.rstrip('.')}. {advice}")


# What sbatch says, the flag that it is about, and what to do; the first that fits.
_REFUSALS = (
    (r"partition", "--partition", "`sinfo` lists the partitions."),
    (r"account", "--account", "`sacctmgr show associations user=$USER` lists yours."),
    (r"qos", "--qos", "`sacctmgr show associations user=$USER` lists yours."),
    (r"array", "--runs_per_task", "Make it larger: there are fewer tasks then."),
    (r"gres|gpu", "--gpus_per_node", "`sinfo -o '%P %G'` lists what the partitions have."),
    (r"memory", "--mem", "`sinfo -o '%P %m'` lists what the nodes have, in MB."),
    (r"time limit", "--time", "`sinfo -o '%P %l'` lists the limits."),
    (r"cpu|node count|node config", "--nodes", "Ask for fewer nodes, or for less of each."),
    (r"", "--cluster", "Mend it, or ask the cluster's administrators."),
)


def _ask(*words: str) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS)
    except FileNotFoundError:
        raise Silent(f"{words[0]} not found: this machine has no Slurm") from None
    except subprocess.TimeoutExpired:
        raise Silent(f"{words[0]} gave no answer in {SECONDS} s") from None
    if done.returncode:
        raise Silent((done.stderr.strip() or f"{words[0]} failed").splitlines()[-1])
    return done.stdout
