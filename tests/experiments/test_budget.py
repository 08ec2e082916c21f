"""What a host has to spare, and what of it a population may take."""

from experiments import budget


def host(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return budget.free_host_memory(root)


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

    monkeypatch.setattr(budget, "free_host_memory", lambda: 10 * GIB)
    for device, expected in (
        (Device("cpu", None), 6 * GIB),
        (Device("gpu", {"bytes_limit": 80 * GIB}), 64 * GIB),
        (Device("gpu", None), 6 * GIB),
    ):
        monkeypatch.setattr(budget.jax, "devices", lambda device=device: [device])
        monkeypatch.setattr(budget.jax, "local_device_count", lambda: 1)
        assert budget.default_budget() == expected
    # CPU devices have one memory together.
    monkeypatch.setattr(budget.jax, "local_device_count", lambda: 4)
    assert budget.default_budget() == 1.5 * GIB
