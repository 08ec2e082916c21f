"""Compiled ahead, once for all populations of equal shape, and kept between processes."""

import os
import time
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from experiments import config as configs
from experiments import plan as plans
from experiments import programs, sweep
from vae import train
from vae.priors import PRIORS

NAMES = ["init", "chunk", "changes", "evaluate_test", "evaluate_train", "iw_bounds", "gallery"]


def populations(*axes, split=False, **changes):
    """The populations of a sweep over a small net; `split`: one for each run."""
    base = configs.flatten(default.get_config().to_dict())
    names = {name.replace(".", "_"): name for name in base}
    base |= {"model.width": 8, "model.depth": 1} | {names[k]: v for k, v in changes.items()}
    runs = sweep.product(*axes) if axes else [{}]
    options = {"budget": 2**40, "pack": "vmap"}

    def make(**more):
        return plans.make(configs.unflatten(base), runs, sweep.axes(runs), **options, **more)

    if not split:
        return make().populations
    return make(packed=[{"runs": [run.run_id]} for run in make().runs]).populations


@pytest.fixture
def compiled(monkeypatch):
    """What would be compiled, in order: (function, optimisation level)."""
    seen = []

    def compile_(function, arguments, level, own):
        seen.append((function, level))
        return object()

    monkeypatch.setattr(programs, "compiled", compile_)
    return seen


@pytest.fixture
def ahead():
    made = programs.Programs()
    yield made
    made.close()


def test_a_population_needs_each_program_once(compiled, ahead):
    (plan,) = populations(sweep.axis("seed", [0, 1]), sweep.axis("objective.beta", [1.0, 2.0]))
    ahead.prepare(plan)
    got = {name: ahead.get(name, plan) for name in NAMES}
    again = {name: ahead.get(name, plan) for name in NAMES}
    assert got == again
    # The two evaluations are one program where the splits are equally large, as here.
    assert got["evaluate_test"] is got["evaluate_train"]
    assert len(compiled) == len(set(got.values())) == len(NAMES) - 1


def test_populations_of_equal_shape_share_their_programs(compiled, ahead):
    first, second, third = populations(sweep.axis("seed", [0, 1, 2]), split=True)
    for plan in (first, second, third):
        ahead.prepare(plan)
    for name in NAMES:
        assert ahead.get(name, first) is ahead.get(name, second) is ahead.get(name, third)
    assert len(compiled) == len(NAMES) - 1


def test_another_structure_or_another_number_of_runs_is_another_program(compiled, ahead):
    shallow, deep = populations(sweep.axis("model.depth", [1, 2]))
    (pair,) = populations(sweep.axis("seed", [0, 1]))
    found = {ahead.get("chunk", plan) for plan in (shallow, deep, pair)}
    assert len(found) == 3


def test_programs_are_forgotten_once_no_population_needs_them(compiled, ahead):
    first, second = populations(sweep.axis("seed", [0, 1]), split=True)
    for plan in (first, second):
        ahead.prepare(plan)
        for name in NAMES:
            ahead.get(name, plan)
    ahead.forget(first)
    before = len(compiled)
    ahead.get("chunk", second)
    assert len(compiled) == before  # still there
    ahead.forget(second)
    ahead.get("chunk", second)
    assert len(compiled) == before + 1


def maps():
    with open("/proc/self/maps", encoding="utf-8") as file:
        return sum(1 for _ in file)


@pytest.mark.thorough
@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="no /proc/self/maps")
def test_many_structures_leave_the_memory_map_small(monkeypatch):
    monkeypatch.setattr(programs, "MANY", 12)
    pool = programs.Programs()
    jax.clear_caches()
    seen = []
    for plan in populations(sweep.axis("model.latent_dim", [1, 2, 3, 4])):
        pool.prepare(plan)
        for name in NAMES:
            pool.get(name, plan)
        at_most = maps()
        pool.forget(plan)
        seen.append((at_most, maps()))
    pool.close()
    # Of two structures at a time, hundreds of maps each, nothing is left.
    assert seen[1][1] < seen[0][1] - 100 and seen[3][1] < seen[2][1] - 100
    assert abs(seen[3][1] - seen[1][1]) < 100


def test_no_nll_no_program_for_it(compiled, ahead):
    (plan,) = populations(eval_iw_samples=0)
    ahead.prepare(plan)
    ahead.get("gallery", plan)
    assert programs.evaluate.iw_bounds not in [function for function, _ in compiled]


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="levels of compilation are the CPU's")
def test_the_training_is_compiled_for_speed_and_what_runs_once_is_not(compiled, ahead):
    (plan,) = populations()
    ahead.prepare(plan)
    for name in NAMES:
        ahead.get(name, plan)
    level = dict(compiled)
    assert level[train.train_chunk] == max(level.values()) > level[train.init]


def test_what_fails_in_the_background_is_raised_where_it_is_needed(monkeypatch, ahead):
    def compile_(*arguments):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(programs, "compiled", compile_)
    (plan,) = populations()
    ahead.prepare(plan)
    with pytest.raises(RuntimeError, match="out of luck"):
        ahead.get("init", plan)


class Lowered:
    """A program for an XLA that may not know what is asked of it."""

    def __init__(self, error):
        self.error, self.asked = error, []

    def lower(self, *arguments):
        return self

    def compile(self, options=None):
        self.asked.append(options)
        if options and self.error:
            raise jax.errors.JaxRuntimeError(self.error)
        return "program"


def test_an_xla_without_levels_compiles_all_the_same(monkeypatch, caplog):
    monkeypatch.setattr(programs.jax, "default_backend", lambda: "cpu")
    function = Lowered("INVALID_ARGUMENT: No such option: xla_backend_optimization_level")
    assert programs.compiled(function, (), 2) == "program"
    assert function.asked[-1] is None
    assert "lacks xla_backend_optimization_level" in caplog.text
    with pytest.raises(jax.errors.JaxRuntimeError, match="out of memory"):
        programs.compiled(Lowered("out of memory"), (), 2)
    monkeypatch.setattr(programs.jax, "default_backend", lambda: "gpu")
    function = Lowered(None)
    assert programs.compiled(function, (), 2) == "program"
    assert function.asked == [None]


def test_sums_over_the_components_of_a_prior_are_left_to_xla(monkeypatch, ahead):
    asked = []
    with monkeypatch.context() as patch:
        patch.setattr(programs, "compiled", lambda *arguments: asked.append(arguments[-1]))
        for prior in ("standard", "mixture"):
            (plan,) = populations(model_prior=prior)
            ahead.get("chunk", plan)
    assert asked == [{}, programs._PLAIN_SUMS]
    without = ("standard", "flow", "hierarchical")
    assert set(programs.COMPONENTS) == {p for p in PRIORS if p not in without}

    def add(x):
        return jnp.sum(x, axis=0)

    shapes = (jax.ShapeDtypeStruct((64, 50, 40), jnp.float32),)
    by_ynn, plain = (
        programs.compiled(jax.jit(add), shapes, 2, own) for own in ({}, programs._PLAIN_SUMS)
    )
    assert "ynn" not in plain.as_text()
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 50, 40)), jnp.float32)
    # Sums of 64 numbers of size 1 in two orders.
    np.testing.assert_allclose(by_ynn(x), plain(x), atol=64 * 8 * 1.2e-7)


@pytest.mark.parametrize(
    "backend, asked, expected",
    [("gpu", None, "float32"), ("tpu", None, "float32"), ("gpu", "tensorfloat32", "tensorfloat32")],
)
def test_accelerators_multiply_in_float32_unless_told(monkeypatch, backend, asked, expected):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    before = jax.config.jax_default_matmul_precision
    try:
        jax.config.update("jax_default_matmul_precision", asked)
        programs.use_float32()
        assert jax.config.jax_default_matmul_precision == expected
    finally:
        jax.config.update("jax_default_matmul_precision", before)


def test_layer_changes_are_norms_of_parameters_and_of_steps():
    (plan,) = populations(sweep.axis("seed", [0, 1]))
    shapes = jax.eval_shape(
        lambda: train.init(plan.spec, jax.tree.map(jnp.asarray, hparams(plan)), mean(plan))
    )
    rng = np.random.default_rng(0)

    def filled():
        params = shapes.states.params
        return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), jnp.float32), params)

    before, after = filled(), filled()
    changes = programs.layer_changes(before, after)
    norms = {"param": after, "update": jax.tree.map(jnp.subtract, after, before)}
    for name, tree in norms.items():
        leaves = jax.tree.leaves(tree["encoder"]["layer_0"])
        flat = np.concatenate([np.asarray(leaf).reshape(2, -1) for leaf in leaves], axis=1)
        np.testing.assert_allclose(changes[name][:, 0], np.linalg.norm(flat, axis=1), rtol=1e-5)


def hparams(plan):
    from vae.hparams import stack

    return stack(plan.hparams())


def mean(plan):
    return jnp.asarray(plan.dataset.train_mean)


# JAX's cache on disk ------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path):
    whole = zlib.compress(bytes(range(256)) * 100)
    entries = {"whole": whole, "half": whole[: len(whole) // 2], "empty": b"", "zstd": b"\x28\xb5"}
    for name, content in entries.items():
        (tmp_path / f"{name}-cache").write_bytes(content)
    return tmp_path


def names(folder):
    return {path.name.removesuffix("-cache") for path in folder.glob("*-cache")}


def test_halves_of_programs_are_dropped(cache):
    programs._drop_damaged(cache)
    assert names(cache) == {"whole", "zstd"}


def test_a_program_is_looked_at_once(cache):
    programs._drop_damaged(cache)
    (cache / "half-cache").write_bytes(b"\x78half")
    an_hour_ago = time.time() - 3600
    os.utime(cache / "half-cache", (an_hour_ago, an_hour_ago))
    programs._drop_damaged(cache)
    assert names(cache) == {"whole", "zstd", "half"}
    os.utime(cache / "half-cache")
    programs._drop_damaged(cache)
    assert names(cache) == {"whole", "zstd"}


def test_a_cache_that_is_not_there_or_not_ours_is_no_error(tmp_path, monkeypatch):
    programs._drop_damaged(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()
    (tmp_path / "half-cache").write_bytes(b"")

    def unlink(self, *args):
        raise PermissionError

    monkeypatch.setattr(type(tmp_path), "unlink", unlink)
    programs._drop_damaged(tmp_path)


def test_programs_are_kept_beside_the_data_by_processor(monkeypatch, tmp_path):
    chosen = {}
    monkeypatch.setattr(programs.jax.config, "update", chosen.__setitem__)
    monkeypatch.setenv("VAE_LAB_CACHE", str(tmp_path))
    programs.use_persistent_cache()
    first = chosen["jax_compilation_cache_dir"]
    assert first.startswith(str(tmp_path / "jax"))
    monkeypatch.setattr(programs, "_cpu_flags", lambda: "flags: another processor")
    programs.use_persistent_cache()
    assert chosen["jax_compilation_cache_dir"] != first
