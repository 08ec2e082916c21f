"""Every test: a CPU with eight devices, strict dtypes and ranks, checked types, caches of its own.

`JAX_PLATFORMS=cuda pytest ...` runs the tests on a GPU instead.
"""

import collections
import hashlib
import os
import platform
from importlib import metadata
from pathlib import Path

import beartype
import jaxtyping
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def compiled_programs() -> Path:
    """Where JAX keeps compiled programs, so that running the tests again is quick.

    One folder for each kind of processor: a program may use instructions that another lacks. It
    hides no retrace: the cache holds the results of XLA, and a trace comes before it.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        processor = platform.processor()
    kind = hashlib.sha256(f"{platform.machine()} {processor}".encode()).hexdigest()[:8]
    return REPOSITORY / ".pytest_cache" / "xla" / kind


# Read when JAX starts.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if os.environ["JAX_PLATFORMS"] == "cpu":
    # Compiling is most of the tests' time: XLA's lowest level and its older loops take the least.
    # Commands that tests start in a process of their own run what users run.
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    if metadata.version("jaxlib").startswith("0.10."):  # 0.12 has the newer ones alone
        flags += " --xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] = f"{flags} {os.environ.get('XLA_FLAGS', '')}".strip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compiled_programs()))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def check_types(function):
    """Checks the annotations of a function at every call, but not those of a dataclass.

    The leaves of a pytree class are not always the arrays that its annotations name: JAX rebuilds
    it with NumPy arrays, shapes or axis numbers in their place.
    """
    return function if function.__name__ == "__init__" else beartype.beartype(function)


# Before anything imports the library.
jaxtyping.install_import_hook("vae", "tests.conftest.check_types")

import jax  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config):
    # An interrupted run may leave half an entry, of which JAX warns and compiles it again.
    config.addinivalue_line(
        "filterwarnings", "ignore:Error (reading|writing) persistent compilation cache"
    )


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what `-m` says
def pytest_collection_modifyitems(items):
    """Of a test marked `sampled(n)`, all cases but the first n asked for are `thorough`."""
    seen = collections.Counter()
    for item in items:
        if marker := item.get_closest_marker("sampled"):
            (count,) = marker.args or (1,)
            function = item.nodeid.partition("[")[0]
            if seen[function] >= count:
                item.add_marker("thorough")
            seen[function] += 1


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """The user's cache is neither read nor written; datasets are decoded once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VAE_LAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Drops a file's compiled programs: together they pass what the system lets a process map."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real datasets beside the repository."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real datasets beside the repository (../shared/data)")
    return folder
