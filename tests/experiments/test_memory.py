"""The estimate of memory against what compiled programs ask for, and what a host has."""

import jax
import pytest

from configs import default
from experiments import config as configs
from experiments import memory, programs
from experiments import plan as plans
from vae.nets import NETS
from vae.spec import ModelSpec

MIB = 2**20


def population(runs=1, pack="vmap", **changes):
    base = configs.flatten(default.get_config().to_dict())
    names = {name.replace(".", "_"): name for name in base}
    base |= {names[k]: v for k, v in changes.items()}
    overrides = [{"seed": seed} for seed in range(runs)]
    axes = {"seed": list(range(runs))}
    return plans.make(
        configs.unflatten(base), overrides, axes, budget=2**40, pack=pack
    ).populations[0]


def peak(name, plan):
    """Bytes that a compiled program holds at most: arguments, results and temporary buffers."""
    function, arguments, _ = programs._signature(name, plan)
    shapes = jax.tree.map(programs._shape, arguments)
    # Buffers do not depend on the level; level 0 compiles fastest.
    program = function.lower(*shapes).compile({"xla_backend_optimization_level": 0})
    sizes = program.memory_analysis()
    held = sizes.temp_size_in_bytes + sizes.argument_size_in_bytes + sizes.output_size_in_bytes
    return held - sizes.alias_size_in_bytes


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="levels of compilation are the CPU's")
@pytest.mark.parametrize(
    "runs, changes, evaluation",
    [
        (16, {}, "evaluate_test"),
        (2, {"model_width": 512, "model_depth": 3}, None),
        (2, {"model_net": "conv", "model_width": 16}, "gallery"),
    ],
    ids=["many small runs", "wide", "conv"],
)
def test_the_estimate_bounds_what_the_compiler_says(runs, changes, evaluation):
    plan = population(runs, **changes)
    estimate = plan.estimate
    # A training step with the copy of the state that a reading holds beside it. XLA fuses, and
    # reuses buffers, by rules that the estimate does not model: a factor of two either way.
    shapes = programs._signature("chunk", plan)[1][2]
    copy = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    training = peak("chunk", plan) + copy
    assert training / 2 < estimate.data + estimate.state + estimate.activations < 2 * training
    # Of an evaluation it is a bound: XLA fuses most of it away.
    if evaluation:
        assert peak(evaluation, plan) < estimate.total


def test_what_grows_with_the_runs_and_what_does_not():
    one, eight = population(1).estimate, population(8).estimate
    in_turn = population(8, pack="map").estimate
    assert eight.data == one.data == in_turn.data
    assert eight.state == 8 * one.state == in_turn.state
    assert eight.activations == 8 * one.activations
    assert in_turn.activations == one.activations
    assert one.evaluation < eight.evaluation < 2 * one.evaluation


def test_the_patches_of_convolutions_are_counted():
    # 8 × 8 images through 4, 5 and 6 channels and back, by hand: area written × kernel × channels
    # read. Down by 4 × 4 kernels; up, and to the output, by 3 × 3.
    spec = ModelSpec((8, 8, 1), net="conv", depth=3, width=(4, 5, 6))
    down = 16 * (16 * 1 + 4 * 4 + 1 * 5)
    up = 9 * (4 * 6 + 16 * 5 + 64 * 4 + 64 * 4)
    assert NETS["conv"].patches(spec) == (down, up)
    assert NETS["mlp"].patches(spec) == (0, 0)


def test_the_data_is_counted_once():
    # 1,438 training images, 359 of the test and as many of train_eval, 64 bytes each.
    assert population().estimate.data == (1438 + 359 + 359) * 64


def test_max_runs_is_the_largest_number_that_fits():
    def of(runs):  # grows by steps, as with an evaluation that is shared at first
        return memory.Estimate(100, 7 * runs, 3 * runs, max(40, 5 * runs))

    for budget in range(of(1).total, of(20).total + 10):
        best = max(runs for runs in range(1, 21) if of(runs).total <= budget)
        assert memory.max_runs(of, budget, 20) == best
    assert memory.max_runs(of, of(1).total, 1) == 1
    assert memory.max_runs(of, 0, 20) == 1


def test_evaluation_batches_shrink_as_rows_and_images_grow(monkeypatch):
    small = ModelSpec((8, 8, 1), width=16)
    large = ModelSpec((28, 28, 1), net="conv", width=32)
    monkeypatch.setattr(memory.jax, "default_backend", lambda: "cpu")
    assert memory.eval_batch(small, 1, 1) == 512
    assert memory.eval_batch(small, 64, 1) == 4096 // 64
    assert memory.eval_batch(small, 64, 16) == 4
    assert memory.eval_batch(small, 5000, 100) == 1
    # A 28 × 28 × 32 image holds 9 times as many numbers in patches, twice: less than 64 × 64.
    assert 1 <= memory.eval_batch(large, 64, 1) < 64
    monkeypatch.setattr(memory.jax, "default_backend", lambda: "gpu")
    assert memory.eval_batch(small, 64, 16) == 64


def test_an_evaluation_keeps_to_its_bytes():
    plan = population(model_net="conv", model_width=64, eval_iw_samples=64)
    assert plan.estimate.evaluation <= memory.EVAL_BYTES["cpu"] * 1.01
    assert peak("iw_bounds", plan) < plan.estimate.evaluation


def host(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return memory.free_host_memory(root)


INFO = {"proc/meminfo": f"MemTotal: {16 * 2**20} kB\nMemAvailable: {10 * 2**20} kB\n"}
GIB = 2**30


def test_a_host_without_limits(tmp_path):
    assert host(tmp_path, INFO) == 10 * GIB


def test_a_system_that_does_not_say(tmp_path):
    assert host(tmp_path, {}) == 8 * GIB


def test_a_container_counts_files_that_are_only_cached_as_free(tmp_path):
    files = {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": f"{4 * GIB}\n",
        "sys/fs/cgroup/memory.current": f"{4 * GIB - 4096}\n",
        "sys/fs/cgroup/memory.stat": f"anon {GIB}\nactive_file {GIB}\ninactive_file {2 * GIB}\n",
    }
    assert host(tmp_path, INFO | files) == 3 * GIB + 4096


def test_a_slurm_job_is_bound_by_the_groups_above_it(tmp_path):
    job = "system.slice/slurmstepd.scope/job_7"
    files = {
        "proc/self/cgroup": f"0::/{job}/step_0/user/task_0\n",
        f"sys/fs/cgroup/{job}/memory.max": f"{6 * GIB}\n",
        f"sys/fs/cgroup/{job}/memory.current": f"{GIB}\n",
        f"sys/fs/cgroup/{job}/step_0/memory.max": "max\n",
        f"sys/fs/cgroup/{job}/step_0/memory.current": f"{GIB}\n",
    }
    assert host(tmp_path, INFO | files) == 5 * GIB


def test_the_first_version_of_control_groups(tmp_path):
    group = "sys/fs/cgroup/memory/job"
    files = {
        "proc/self/cgroup": "9:cpu:/other\n4:memory:/job\n0::/\n",
        f"{group}/memory.limit_in_bytes": f"{3 * GIB}\n",
        f"{group}/memory.usage_in_bytes": f"{2 * GIB}\n",
        f"{group}/memory.stat": f"active_file 1\ntotal_active_file 0\ntotal_inactive_file {GIB}\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{9 * GIB}\n",
    }
    assert host(tmp_path, INFO | files) == 2 * GIB


def test_the_budget_leaves_room_for_the_rest_of_the_process(monkeypatch):
    class Device:
        def __init__(self, platform, stats):
            self.platform, self.memory_stats = platform, lambda: stats

    monkeypatch.setattr(memory, "free_host_memory", lambda: 10 * GIB)
    for device, expected in (
        (Device("cpu", None), 6 * GIB),
        (Device("gpu", {"bytes_limit": 80 * GIB}), 64 * GIB),
        (Device("gpu", None), 6 * GIB),
    ):
        monkeypatch.setattr(memory.jax, "devices", lambda device=device: [device])
        assert memory.default_budget() == expected


@pytest.mark.parametrize(
    "size, text",
    [(1, "1 MiB"), (312 * MIB, "312 MiB"), (GIB, "1.0 GiB"), (1.55 * GIB, "1.6 GiB")],
)
def test_sizes_for_people(size, text):
    assert memory.gib(size) == text
