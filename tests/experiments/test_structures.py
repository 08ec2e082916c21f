"""Latent dimensions and depths in one program: when, and what it leaves in the results folder."""

import json
import signal
import subprocess

import jax
import numpy as np
import pytest

from configs import default
from experiments import config as configs
from experiments import memory, structures, sweep
from experiments import plan as plans
from experiments.load import load_run
from tests.experiments import launch

BASE = configs.flatten(default.get_config().to_dict())
DEPTHS, LATENTS = sweep.axis("model.depth", [1, 2, 3]), sweep.axis("model.latent_dim", [2, 4, 8])


def make(*axes, mode="always", packed=None, **changes):
    nested = configs.unflatten(BASE | {n.replace("__", "."): v for n, v in changes.items()})
    runs = sweep.product(*axes)
    return plans.make(
        nested, runs, sweep.axes(runs), budget=2**40, pack_structures=mode, packed=packed
    )


def test_all_share_the_largest():
    plan = make(DEPTHS, LATENTS, sweep.axis("seed", [0, 1]))
    (population,) = plan.populations
    assert len(population.runs) == 18 and plan.groups == 1
    model = population.spec.model
    assert (model.latent_dim, model.depth, model.packed) == (8, 3, (2, 4, 8))
    for run, numbers in zip(population.runs, population.hparams(), strict=True):
        assert (numbers.latents, numbers.layers) == (
            run.flat["model.latent_dim"],
            run.flat["model.depth"],
        )
        # What a run is by itself is what it would be alone.
        alone = plans.make(run.config, [{}], {}, budget=2**40).populations[0]
        assert population.own(run) == alone.spec and alone.own(alone.runs[0]) == alone.spec
    assert len(make(DEPTHS, LATENTS, mode="never").populations) == 9


def test_numbers_may_be_swept_beside_them_and_other_structures_are_apart():
    plan = make(
        LATENTS, sweep.axis("objective.beta", [1.0, 2.0]), sweep.axis("model.width", [8, 16])
    )
    assert [len(p.runs) for p in plan.populations] == [6, 6]
    assert plans.differing(plan.populations) == ["model.width"]


# One change each that the masks are not made for.
REFUSED = {
    "model__net": "conv",
    "model__posterior": "full",
    "model__prior": "mixture",
    "model__norm": "batch",
    "model__residual": "scaled",
    "model__latent_skip": "concat",
    "objective__name": "tcvae",
    "objective__free_bits": 0.1,
    "objective__free_bits_groups": 2,
    "optimizer__encoder_steps": 2,
    "probe__instruments": "terms",
}


def test_each_need_has_its_case():
    assert {name.replace("__", ".") for name in REFUSED} == set(structures.NEEDS)


@pytest.mark.sampled
@pytest.mark.parametrize("name", REFUSED)
def test_what_masks_are_not_made_for_stays_apart(name):
    assert len(make(LATENTS, **{name: REFUSED[name]}).populations) == 3


def test_a_width_that_is_a_latent_dimension_is_residual_from_the_first_layer_on():
    plan = make(LATENTS, model__width=4, model__residual="plain")
    assert sorted(len(p.runs) for p in plan.populations) == [1, 2]
    (alone,) = [p for p in plan.populations if len(p.runs) == 1]
    assert alone.runs[0].flat["model.latent_dim"] == 4 and not alone.spec.model.packed
    assert len(make(LATENTS, model__width=4).populations) == 1


def test_padding_is_what_the_larger_model_has_more():
    (shared,) = make(DEPTHS, LATENTS).populations
    flats = [run.flat for run in shared.runs]
    width, latents, layers = 128, 8, 3
    for run, weights in zip(shared.runs, structures.padding(flats), strict=True):
        more = shared.num_params - memory.num_params(shared.own(run))
        latent, layer = latents - run.flat["model.latent_dim"], layers - run.flat["model.depth"]
        assert more == weights + 2 * latent + 2 * width * layer  # and biases


def test_it_is_done_where_compiling_takes_longer_than_the_arithmetic():
    short, long = ({"train__epochs": None, "train__steps": n} for n in (100, 10**6))
    assert len(make(DEPTHS, mode="auto", **short).populations) == 1
    assert len(make(DEPTHS, mode="auto", **long).populations) == 3
    # By hand: each run of depth 1 pays for four more matrices, that of depth 2 for two.
    flats = [run.flat for run in make(DEPTHS, **short).runs]
    weights = (4 + 2) * 128**2

    def seconds(steps):
        return weights * (6 * 128 * steps + 2 * 100 * 359) / structures.FLOPS

    even = next(n for n in range(1, 10**6) if seconds(n) >= 2 * structures.COMPILE_SECONDS)
    assert structures.pays(flats, even - 1, 359) and not structures.pays(flats, even, 359)


@pytest.mark.thorough
def test_what_an_earlier_execution_did_stands():
    shared, apart = make(DEPTHS), make(DEPTHS, mode="never")
    for earlier in (shared, apart):
        packed = [{"runs": [r.run_id for r in p.runs]} for p in earlier.populations]
        for steps in (100, 10**6):
            length = {"train__epochs": None, "train__steps": steps}
            again = make(DEPTHS, mode="auto", **length)
            assert len(again.populations) == (1 if steps == 100 else 3)
        again = make(DEPTHS, mode="auto", packed=packed)
        assert [p.id for p in again.populations] == [p.id for p in earlier.populations]


FLAGS = (
    "--sweep=model.depth=1,2",
    "--sweep=model.latent_dim=2,5",
    "--sweep=optimizer.learning_rate=1e-3,1e6",
    "--config.optimizer.name=sgd",
)


def start(workdir, *flags):
    """As `launch.start`, of a command that leaves depth and latent dimension to the sweep."""
    swept = ("--config.model.depth", "--config.model.latent_dim")
    return subprocess.Popen(
        [w for w in launch.command(workdir, *flags) if not w.startswith(swept)],
        cwd=launch.REPOSITORY,
        env=launch.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def command(workdir, *flags):
    """What such a command prints, run to its end."""
    done = launch.finish(start(workdir, *flags))
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for mode in ("always", "never"):
        made[mode] = tmp_path_factory.mktemp(mode)
        made[f"{mode} said"] = command(made[mode], *FLAGS, f"--pack_structures={mode}")
    return made


@pytest.mark.thorough
def test_the_plan_says_so(folders):
    assert "8 runs in 1 population " in folders["always said"]
    assert "model.depth = 1, 2  (structural: in one program, masked)" in folders["always said"]
    assert "8 runs in 4 populations " in folders["never said"]


@pytest.mark.thorough
def test_the_results_folder_is_that_of_runs_alone(folders):
    one, other = folders["always"], folders["never"]
    found, expected = launch.rows(one), launch.rows(other)
    assert found.keys() == expected.keys()
    assert {row["status"] for row in found.values()} == {"ok", "diverged"}
    for run_id, row in expected.items():
        assert found[run_id].keys() == row.keys()
        for name, text in row.items():
            same = name == "wall_s" or found[run_id][name] == text
            # 200 steps of roundings: a few units of the sixth digit.
            assert same or float(found[run_id][name]) == pytest.approx(float(text), rel=1e-3), name
        trees = [
            sorted(str(p.relative_to(f / "runs" / run_id)) for p in (f / "runs" / run_id).glob("*"))
            for f in (one, other)
        ]
        assert trees[0] == trees[1]
        readings = [launch.readings(f, run_id) for f in (one, other)]
        assert [list(r) for r in readings[0]] == [list(r) for r in readings[1]]
        with (
            np.load(one / "runs" / run_id / "gallery.npz") as mine,
            np.load(other / "runs" / run_id / "gallery.npz") as alone,
        ):
            shapes = [{n: (a[n].shape, a[n].dtype) for n in a} for a in (mine, alone)]
            assert shapes[0] == shapes[1]
        if row["status"] == "ok":
            params = [load_run(f / "runs" / run_id).params for f in (one, other)]
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), *params
            )


@pytest.mark.thorough
def test_the_same_command_again_finds_it_finished(folders):
    # `auto` now goes by what the folder began with.
    assert "finished earlier" in command(folders["always"], *FLAGS, "--pack_structures=auto")
    (record,) = json.loads((folders["always"] / "populations.json").read_text())
    assert len(record["runs"]) == 8


@pytest.mark.thorough
def test_killed_while_a_checkpoint_is_written_it_goes_on_to_the_same_end(folders, tmp_path):
    flags = (*FLAGS, "--pack_structures=always", "--checkpoint_seconds=0")
    process = start(tmp_path, *flags)
    launch.wait_until(
        process,
        lambda: (
            max(launch.checkpoints(tmp_path), default=0) >= 50 and launch.half_written(tmp_path)
        ),
    )
    process.kill()
    assert launch.finish(process).returncode == -signal.SIGKILL
    assert not (tmp_path / "results.csv").exists()
    command(tmp_path, *flags)
    assert launch.everything(tmp_path) == launch.everything(folders["always"])
