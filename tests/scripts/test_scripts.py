"""The two commands, run for real in a copy of the repository, with stand-ins for Python and pip.

PATH holds only the shell's ordinary tools and what a test puts there, so no test depends on which
Pythons this machine has, and none reaches the network.
"""

import configparser
import os
import re
import shutil
import signal
import subprocess
import time
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
LOCK = (REPOSITORY / "requirements.lock").read_text()
TOOLS = (
    "bash cat cksum cut dirname env find flock grep ls mkdir mv readlink rm sed sleep tail tee tr"
).split()

# Stands for an interpreter of version $version. `-m venv DIR` puts a copy of itself into DIR; pip
# does what the file "pip" beside the PATH folder says; any other program echoes its arguments.
STAND_IN = """#!{bash}
version={version}
case "$*" in
  *version_info*) printf %s "$version" ;;
  *"import ensurepip"*) {venv_module} ;;
  *"-m venv "*) mkdir -p "${{@: -1}}/bin" && cat "$0" >"${{@: -1}}/bin/python" &&
    {chmod} +x "${{@: -1}}/bin/python" ;;
  *"-m pip "*) echo "$*" >>"{calls}"; . "{pip}" ;;
  --version) echo "Python $version.0" ;;
  *) echo "ran: $*"; exit {status} ;;
esac
"""


class Machine:
    """A copy of the repository's scripts in a folder with a space in its name, and a bare PATH."""

    def __init__(self, folder: Path):
        self.repository = folder / "a copy"
        self.bin = folder / "bin"
        self.calls = folder / "calls"
        self.pip = folder / "pip"
        self.bin.mkdir()
        self.repository.mkdir()
        shutil.copytree(REPOSITORY / "scripts", self.repository / "scripts")
        for name in ("setup.cfg", "pyproject.toml", "requirements.lock"):
            shutil.copy(REPOSITORY / name, self.repository)
        for tool in TOOLS:
            if found := shutil.which(tool):
                (self.bin / tool).symlink_to(found)
        self.pip.write_text("exit 0\n")

    def add_python(self, name: str, version: str, venv_module: bool = True, status: int = 0):
        stand_in = self.bin / name
        stand_in.write_text(
            STAND_IN.format(
                bash=shutil.which("bash"),
                chmod=shutil.which("chmod"),
                version=version,
                venv_module="true" if venv_module else "false",
                status=status,
                calls=self.calls,
                pip=self.pip,
            )
        )
        stand_in.chmod(0o755)

    def start(self, script: str, *arguments: str, cwd: Path | None = None, **variables: str):
        return subprocess.Popen(
            [self.bin / "bash", self.repository / "scripts" / script, *arguments],
            cwd=cwd or self.repository,
            env={"PATH": str(self.bin), **variables},  # not even HOME
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, script: str, *arguments: str, **options):
        process = self.start(script, *arguments, **options)
        stdout, stderr = process.communicate(timeout=180)
        return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)

    def pip_calls(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def assert_fails(result, *words):
    assert result.returncode == 1, result.stderr
    assert "vae-lab: error:" in result.stderr
    for word in words:
        assert word in result.stderr


def test_no_python_at_all(machine):
    assert_fails(machine.run("test.sh"), "no Python 3.11 or newer", "no Python at all", "PYTHON=")


def test_old_pythons_are_named(machine):
    machine.add_python("python3", "3.9")
    machine.add_python("python", "2.7")
    result = machine.run("quickstart.sh")
    assert_fails(result, "no Python 3.11 or newer", "python3 (3.9)", "python (2.7)")


def test_an_asked_python_that_is_too_old_is_not_replaced_by_another(machine):
    machine.add_python("python3", "3.12")
    machine.add_python("old", "3.10")
    assert_fails(machine.run("test.sh", PYTHON="old"), "PYTHON=old is Python 3.10")
    assert_fails(machine.run("test.sh", PYTHON="absent"), "PYTHON=absent does not run")


def test_python_without_the_venv_module(machine):
    machine.add_python("python3", "3.11", venv_module=False)
    assert_fails(machine.run("test.sh"), "venv", "apt install python3-venv", "python3.11-venv")


def test_the_first_complete_python_is_taken(machine):
    machine.add_python("python3", "3.11", venv_module=False)
    machine.add_python("python3.12", "3.12")
    machine.add_python("python3.13", "3.13")
    result = machine.run("test.sh")
    assert result.returncode == 0
    assert "python3.13 (Python 3.13)" in result.stderr


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("NewConnectionError: Temporary failure in name resolution", "index was not reached"),
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("THESE PACKAGES DO NOT MATCH THE HASHES", "hash differs"),
        ("something nobody foresaw", "lines above say why"),
    ],
)
def test_a_failed_install_says_why_and_is_repeated(machine, output, words):
    machine.add_python("python3", "3.12")
    machine.pip.write_text(f"echo '{output}'; exit 1\n")
    result = machine.run("test.sh")
    assert_fails(result, words, output)
    assert "ran:" not in result.stdout

    machine.pip.write_text("exit 0\n")
    assert machine.run("test.sh").stdout.startswith("ran: -m pytest")


def test_all_tests_take_all_cores_and_a_choice_of_them_one_process(machine):
    machine.add_python("python3", "3.12")
    everything = "ran: -m pytest --numprocesses=logical --maxprocesses=8 --dist=loadfile"
    everything += " --no-loadscope-reorder"
    assert machine.run("test.sh").stdout == f"{everything}\n"
    assert machine.run("test.sh", "-m", "thorough").stdout == f"{everything} -m thorough\n"
    assert machine.run("test.sh", "tests/vae").stdout == "ran: -m pytest tests/vae\n"
    # Each process would take the whole accelerator.
    assert machine.run("test.sh", JAX_PLATFORMS="cuda").stdout == "ran: -m pytest\n"


def test_an_unreached_index_sends_uv_to_pip(machine):
    machine.add_python("python3", "3.12")
    uv = machine.bin / "uv"
    uv.write_text(f"#!{shutil.which('bash')}\nexit 2\n")
    uv.chmod(0o755)
    result = machine.run("test.sh")
    assert result.returncode == 0
    assert "trying pip" in result.stderr


def test_every_download_is_checked_and_nothing_else_is_fetched(machine):
    machine.add_python("python3", "3.12")
    machine.run("test.sh")
    build_tools, lock, package = machine.pip_calls()
    assert "--require-hashes" in build_tools
    assert "--require-hashes" in lock and "--no-build-isolation" in lock
    assert "--no-index" in package and "--no-deps" in package
    tools = (machine.repository / ".venv" / "build-tools.lock").read_text()
    assert re.findall(r"^(\S+)==", tools, re.MULTILINE) == ["setuptools"]
    assert "--hash=sha256:" in tools


def test_a_second_run_installs_nothing(machine):
    machine.add_python("python3", "3.12")
    machine.run("test.sh")
    calls = machine.pip_calls()
    result = machine.run("test.sh")
    assert machine.pip_calls() == calls
    assert "installing" not in result.stderr


def test_a_changed_lock_updates_in_place_and_keeps_what_was_added(machine):
    machine.add_python("python3", "3.12")
    machine.run("test.sh")
    added = machine.repository / ".venv" / "added-by-its-owner"
    added.touch()
    with (machine.repository / "requirements.lock").open("a") as lock:
        lock.write("# changed\n")
    machine.run("test.sh")
    assert len(machine.pip_calls()) == 6
    assert added.exists()


def test_another_python_version_makes_the_environment_anew(machine):
    machine.add_python("python3", "3.12")
    machine.add_python("newer", "3.13")
    machine.run("test.sh")
    added = machine.repository / ".venv" / "left-over"
    added.touch()
    assert "Python 3.13.0" in machine.run("test.sh", PYTHON="newer").stderr
    assert not added.exists()
    # Without the wish for another one, what is there is used.
    assert "Python 3.13.0" in machine.run("test.sh").stderr


def test_a_folder_of_somebody_else_is_left_alone(machine, tmp_path):
    machine.add_python("python3", "3.12")
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "thesis.tex").touch()
    assert_fails(machine.run("test.sh", VAE_LAB_VENV=str(folder)), "left alone", str(folder))
    assert (folder / "thesis.tex").exists()


def test_an_environment_that_cannot_be_written(machine):
    machine.add_python("python3", "3.12")
    folder = machine.pip / "below-a-file"
    assert_fails(machine.run("test.sh", VAE_LAB_VENV=str(folder)), "cannot be written")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_install_starts_afresh(machine, number):
    machine.add_python("python3", "3.12")
    machine.pip.write_text('echo > "$(dirname "$0")/../started"; sleep 1; exit 1\n')
    process = machine.start("test.sh")
    started = machine.repository / ".venv" / "started"
    deadline = time.monotonic() + 120
    while not started.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=180)
    assert process.returncode == (130 if number == signal.SIGTERM else -number)
    assert "interrupted" in stderr or number == signal.SIGKILL

    machine.pip.write_text("exit 0\n")
    assert machine.run("test.sh").returncode == 0
    assert not started.exists()


@pytest.mark.skipif(shutil.which("flock") is None, reason="flock, which makes them wait, is absent")
def test_two_commands_at_once_install_once(machine):
    machine.add_python("python3", "3.12")
    machine.pip.write_text("sleep 0.3\n")
    both = [machine.start("test.sh"), machine.start("test.sh")]
    outputs = [process.communicate(timeout=180) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert len(machine.pip_calls()) == 3
    assert sum("waiting for another" in stderr for _, stderr in outputs) == 1


def test_arguments_and_exit_status_pass_through(machine):
    machine.add_python("python3", "3.12", status=5)
    result = machine.run("test.sh", "-k", "a b", "tests/vae")
    assert result.stdout == "ran: -m pytest -k a b tests/vae\n"
    assert result.returncode == 5


def test_quickstart_from_the_repository_and_from_elsewhere(machine, tmp_path):
    machine.add_python("python3", "3.12")
    at_home = machine.run("quickstart.sh", "--dry_run")
    assert at_home.stdout == (
        "ran: -P -m experiments.run --config=configs/quickstart.py "
        "--workdir=results/quickstart --dry_run\n"
    )
    link = tmp_path / "quickstart"
    link.symlink_to(machine.repository / "scripts" / "quickstart.sh")
    elsewhere = machine.run(str(link), "--workdir=here", cwd=tmp_path)
    root = machine.repository
    assert elsewhere.stdout == (
        f"ran: -P -m experiments.run --config={root}/configs/quickstart.py "
        f"--workdir={root}/results/quickstart --workdir=here\n"
    )


@pytest.mark.parametrize("script", ["quickstart.sh", "test.sh"])
def test_help_needs_nothing(machine, script):
    result = machine.run(script, "--help")
    assert result.returncode == 0
    assert f"bash scripts/{script}" in result.stdout
    assert not (machine.repository / ".venv").exists()


@pytest.mark.parametrize(
    "script", [*sorted((REPOSITORY / "scripts").glob("*.sh")), REPOSITORY / ".ci" / "run"]
)
def test_scripts_parse(script):
    subprocess.run(["bash", "-n", script], check=True)


# The lock file


def locked() -> dict[str, list[str]]:
    """Package name -> its entries: the requirement line and the hash lines that continue it."""
    entries: dict[str, list[str]] = {}
    for entry in re.split(r"(?m)^(?=[A-Za-z0-9])", LOCK)[1:]:
        entries.setdefault(re.match(r"[A-Za-z0-9._-]+", entry)[0], []).append(entry)
    return entries


def canonical(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_locked_package_is_pinned_and_hashed():
    assert len(locked()) > 50
    for entries in locked().values():
        for entry in entries:
            assert re.match(r"\S+==\S+", entry), entry
            assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry


def test_the_lock_names_no_place():
    assert "://" not in LOCK
    assert " @ " not in LOCK
    assert not re.search(r"(?m)^\s*-", re.sub(r"(?m)^\s+--hash=\S+( \\)?$", "", LOCK))
    # Comments say "via flax" or "via vae-lab (setup.cfg)", never a path.
    assert not re.search(r"(?m)#.*\s/", LOCK)


def test_the_lock_has_every_direct_dependency_and_the_build_tools():
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    pyproject = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    wanted = [
        *setup["options"]["install_requires"].split("\n"),
        *setup["options.extras_require"]["test"].split("\n"),
        *pyproject["build-system"]["requires"],
    ]
    missing = {canonical(line) for line in wanted if line.strip()} - locked().keys()
    assert not missing, "run: bash scripts/lock.sh"


def test_the_base_install_has_no_tensorflow_and_no_torch():
    assert not {"tensorflow", "tensorflow-cpu", "torch", "pandas"} & locked().keys()


def test_python_3_11_and_newer_each_get_their_newest_jax():
    versions = [re.match(r"jax==([\d.]+) *;? *([^\\]*)", entry) for entry in locked()["jax"]]
    by_marker = {match[2].strip(): match[1] for match in versions}
    assert by_marker.pop("python_full_version < '3.12'") == "0.10.2"
    (newer,) = by_marker.items()
    assert newer[0] == "python_full_version >= '3.12'"
    assert int(newer[1].split(".")[1]) >= 12


def test_the_editable_install_sees_every_package():
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    patterns = setup["options.packages.find"]["include"].split()
    assert patterns == ["vae*", "experiments*", "configs*"]
    for top in ("vae", "experiments", "configs"):
        for folder, _, files in os.walk(REPOSITORY / top):
            if any(name.endswith(".py") for name in files):
                assert "__init__.py" in files, f"{folder} has no __init__.py and would be left out"
