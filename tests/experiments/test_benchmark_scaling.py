"""That split work is measured, and what devices exchange is counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from experiments.benchmark import scaling
from experiments.benchmark.measure import Settings
from vae import mesh

QUICK = Settings(quick=True)


@pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices")
def test_collectives_are_counted_in_compiled_programs():
    on = mesh.make(1, 2)
    shards = jax.device_put(
        jnp.ones((2, 4)), mesh.everywhere(on).update(spec=PartitionSpec("data"))
    )
    total = jax.jit(lambda x: x.sum(0), out_shardings=mesh.everywhere(on)).lower(shards).compile()
    assert scaling.collectives(total.as_text()) == {"all-reduce": 1}
    each = jax.jit(lambda x: 2 * x).lower(shards).compile()
    assert scaling.collectives(each.as_text()) == {}


@pytest.mark.thorough
@pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices")
def test_two_devices_are_compared_with_one():
    found = scaling.measure(QUICK, 2)
    assert [case["mesh"] for case in found.values()] == [
        {"runs": 2, "data": 1},
        {"runs": 1, "data": 2},
    ]
    rows = list(scaling._rows(found, 2))
    assert all(np.isfinite(row.value) for row in rows)
    exchanged = [row for row in rows if row.what.endswith("collectives in the step")]
    assert [(row.value > 0, row.met) for row in exchanged] == [
        (False, True),
        (True, None),  # gradients are summed
    ]


def test_a_process_that_fails_is_said_so(monkeypatch):
    monkeypatch.setattr(scaling.sys, "executable", "false")
    with pytest.raises(RuntimeError, match="status 1"):
        scaling._start(QUICK, 1, processes=2)


@pytest.mark.slow  # two starts of processes: half a minute on two cores
def test_processes_measure_together():
    rows = {row.what: row for row in scaling.scaling(QUICK)}
    of_two = [row for what, row in rows.items() if what.startswith("2 processes of 1")]
    assert len(of_two) == 4 and all(row.met is not False for row in of_two)
