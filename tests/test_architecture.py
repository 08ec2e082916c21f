"""The layers: who may import whom. Imports are read from the source, the lazy ones too."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Each module or package imports only from those before it. A new one is placed here.
LIBRARY = (
    "vae.errors",
    "vae.spec",
    "vae.hparams",
    "vae.prng",
    "vae.random",
    "vae.mesh",
    "vae.packing",
    "vae.layers",
    "vae.distributions",
    "vae.matmul",
    "vae.linalg",
    "vae.conv",
    "vae.nets",
    "vae.flows",
    "vae.family",
    "vae.gaussians",
    "vae.discrete",
    "vae.hierarchy",
    "vae.printed",
    "vae.posteriors",
    "vae.priors",
    "vae.penalties",
    "vae.writers",
    "vae.digests",
    "vae.checkpoint",
    "vae.data",
    "vae.discretized",
    "vae.likelihoods",
    "vae.model",
    "vae.elbo",
    "vae.packed",
    "vae.bounds",
    "vae.adversaries",
    "vae.schedules",
    "vae.objectives",
    "vae.validity",
    "vae.optimizers",
    "vae.loss",
    "vae.aggressive",
    "vae.train",
    "vae.evaluate",
    "vae.gallery",
    "vae.sharpness",
    "vae.attribution",
    "vae.divergence",
    "vae.gradients",
)
LAUNCHER = (
    "experiments.fields",
    "experiments.sweep",
    "experiments.rules",
    "experiments.config",
    "experiments.distributed",
    "experiments.devices",
    "experiments.budget",
    "experiments.memory",
    "experiments.specs",
    "experiments.packs",
    "experiments.structures",
    "experiments.plan",
    "experiments.load",
    "experiments.environment",
    "experiments.programs",
    "experiments.trials",
    "experiments.progress",
    "experiments.locks",
    "experiments.workdir",
    "experiments.outcome",
    "experiments.population",
    "experiments.report",
    "experiments.table",
    "experiments.cluster",
    "experiments.execute",
    "experiments.entry",
    "experiments.run",
    "experiments.status",
    "experiments.submit",
    "experiments.studies",
    "experiments.study",
    "experiments.benchmark",
)
ORDER = (*LIBRARY, *LAUNCHER)

# Packages with one owner each: all that knows them is in one place.
OWNERS = {
    "tensorflow_datasets": ("vae.data",),
    "sklearn": ("vae.data",),
    "grain": ("vae.data",),
    "orbax": ("vae.checkpoint",),
    "tensorboardX": ("vae.writers",),
    "flax.linen": ("vae.nets", "experiments.benchmark"),
    "flowjax": ("vae.flows",),
    "equinox": ("vae.flows",),
    "paramax": ("vae.flows",),
    "optax": ("vae.optimizers", "vae.train", "experiments.benchmark"),
    "plotly": ("experiments.report",),
    "matplotlib": ("experiments.report",),
    "PIL": ("experiments.report",),
    "rich": ("experiments.progress",),
    "submitit": ("experiments.cluster",),
    "cloudpickle": (),
    "tensorflow": (),
    "pickle": (),
    "joblib": (),
    # Peers that the benchmark compares with, of an extra.
    "torch": ("experiments.benchmark",),
    "pythae": ("experiments.benchmark",),
}
# These take a good part of a second each to import, or far more: only inside functions.
LAZY = (
    "tensorflow_datasets",
    "sklearn",
    "grain",
    "orbax",
    "tensorboardX",
    "plotly",
    "matplotlib",
    "PIL",
    "flowjax",
    "equinox",
    "paramax",
    "submitit",
    "torch",
    "pythae",
)


def sources():
    """{module name: its syntax tree} of the library, the launcher and the configs."""
    trees = {}
    for package in ("vae", "experiments", "configs"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            trees[name] = ast.parse(path.read_text(encoding="utf-8"))
    return trees


SOURCES = sources()


def imports(tree, top_level=False):
    """Dotted names that a module imports; `from a import b` gives a.b, which may be an object."""
    nodes = tree.body if top_level else ast.walk(tree)
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(name, place):
    return name == place or name.startswith(place + ".")


def place_of(name):
    """The entry of ORDER that a module, or a name in it, belongs to; None outside of them."""
    return next((place for place in ORDER if within(name, place)), None)


def modules_outside(places, package):
    return [n for n in SOURCES if within(n, package) and not any(within(n, p) for p in places)]


def test_imports_are_found():
    assert "jax.numpy" in imports(SOURCES["vae.train"], top_level=True)
    assert "vae.data.Examples" in imports(SOURCES["vae.train"])
    lazy = imports(SOURCES["vae.checkpoint"]) - imports(SOURCES["vae.checkpoint"], top_level=True)
    assert "orbax.checkpoint" in lazy


def test_every_module_has_its_place():
    assert modules_outside(LIBRARY, "vae") == ["vae"]
    assert modules_outside(LAUNCHER, "experiments") == ["experiments"]
    assert [place for place in ORDER if place not in SOURCES] == []


@pytest.mark.parametrize("package", ["vae", "experiments"])
def test_a_package_itself_imports_nothing(package):
    assert imports(SOURCES[package]) == set()


@pytest.mark.parametrize("name", [name for name in SOURCES if place_of(name)])
def test_imports_point_downward(name):
    own = ORDER.index(place_of(name))
    for imported in imports(SOURCES[name]):
        assert not within(imported, "tests"), imported
        # The benchmark measures the shipped configs.
        assert not within(imported, "configs") or within(name, "experiments.benchmark"), imported
        if imported.split(".")[0] in ("vae", "experiments"):
            place = place_of(imported)
            assert place and ORDER.index(place) <= own, f"{name} imports {imported}, above it"


@pytest.mark.parametrize("name", [name for name in SOURCES if within(name, "configs")])
def test_a_config_is_data(name):
    for imported in imports(SOURCES[name]):
        allowed = ("ml_collections", "configs", "experiments.sweep")
        assert any(within(imported, place) for place in allowed), imported


@pytest.mark.parametrize("package", OWNERS)
def test_a_package_has_one_owner(package):
    users = {n for n, tree in SOURCES.items() if any(within(i, package) for i in imports(tree))}
    strangers = {n for n in users if not any(within(n, owner) for owner in OWNERS[package])}
    assert not strangers


def test_every_owner_uses_what_it_owns():
    for package, owners in OWNERS.items():
        for owner in owners:
            inside = [tree for name, tree in SOURCES.items() if within(name, owner)]
            used = any(within(i, package) for tree in inside for i in imports(tree))
            assert used, f"{owner} no longer imports {package}"


@pytest.mark.parametrize("name", SOURCES)
def test_heavy_packages_are_imported_where_they_are_used(name):
    for imported in imports(SOURCES[name], top_level=True):
        assert not any(within(imported, package) for package in LAZY), imported


@pytest.mark.parametrize("name", [n for n in SOURCES if within(n, "experiments.report")])
def test_the_report_needs_neither_jax_nor_the_library(name):
    for imported in imports(SOURCES[name]):
        assert imported.split(".")[0] not in ("jax", "flax", "optax"), imported
        assert not within(imported, "vae") or within(imported, "vae.errors"), imported


def test_no_pickle_is_ever_allowed():
    for name, tree in SOURCES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert node.value.value is False, name


@pytest.mark.parametrize("command", ["run", "submit", "status"])
def test_a_command_starts_without_jax(command):
    """`--help` and a typo are answered before anything heavy is imported."""
    heavy = ("jax", "flax", "orbax", "matplotlib", "plotly", "tensorflow_datasets", "submitit")
    code = f"import sys, experiments.{command}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
