"""The measurement of both ways to run a population: what it takes, keeps and says."""

import json

import pytest

from configs import default
from experiments import config as configs
from experiments import packs, programs, sweep, trials
from experiments import plan as plans
from experiments.workdir import Workdir
from tests.experiments import launch
from vae.packing import Packing

# In doubt by its convolutions, and long enough.
CONV = {
    "model.net": "conv",
    "model.width": 2,
    "model.depth": 1,
    "model.latent_dim": 2,
    "train.epochs": None,
    "train.steps": 1000,
}
AXIS = sweep.axis("seed", range(16))  # two on each of eight devices: one would be alone


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VAE_LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "packs"


def make(try_out=trials.fastest, **options):
    base = configs.unflatten(configs.flatten(default.get_config().to_dict()) | CONV)
    (population,) = plans.make(
        base, sweep.product(AXIS), {}, budget=2**40, try_out=try_out, **options
    ).populations
    return population


class Clock:
    """In place of `_Way`: seconds of each way, and how often it was asked."""

    def __init__(self, monkeypatch, **seconds):
        self.asked, clock = [], self

        class Way:
            def __init__(self, plan):
                self.pack = plan.pack.how

            def seconds(self):
                clock.asked.append(self.pack)
                return seconds[self.pack]

        monkeypatch.setattr(trials, "_Way", Way)
        monkeypatch.setattr(packs.jax, "default_backend", lambda: "cpu")  # by rule in turn


def test_the_faster_one_is_taken_and_remembered(cache, monkeypatch):
    clock = Clock(monkeypatch, vmap=0.01, map=0.02)
    found = make()
    assert (found.pack.how, found.why) == ("vmap", "measured, 2 x as fast")
    assert {"vmap", "map"} == set(clock.asked)
    (file,) = cache.iterdir()
    assert json.loads(file.read_text()) == {"vmap": 0.01, "map": 0.02}
    clock.asked.clear()
    again = make()
    assert (again.pack.how, again.why) == (found.pack.how, found.why) and not clock.asked


def test_what_the_rule_says_stands_within_the_noise(cache, monkeypatch):
    Clock(monkeypatch, vmap=0.0196, map=0.02)
    assert make().pack.how == "map"


def test_a_training_that_is_over_soon_is_not_worth_it(cache, monkeypatch):
    # 1,000 steps of 16 runs, of a millisecond each.
    clock = Clock(monkeypatch, vmap=0.0001, map=0.001)
    assert make().why == "by rule: short"
    assert clock.asked == ["map"] and not cache.exists()


@pytest.mark.sampled
@pytest.mark.parametrize("text", ["", "{", "[]", '{"vmap": 1}', '{"vmap": "a", "map": 1}'])
def test_a_damaged_file_is_measured_anew(cache, monkeypatch, text):
    Clock(monkeypatch, vmap=0.01, map=0.02)
    make()
    (file,) = cache.iterdir()
    file.write_text(text)
    assert make().pack.how == "vmap"
    assert json.loads(file.read_text()) == {"vmap": 0.01, "map": 0.02}


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VAE_LAB_CACHE", str(tmp_path / "file"))
    found = {pack: make(None, pack=pack) for pack in ("vmap", "map")}
    Clock(monkeypatch, vmap=0.01, map=0.02)
    assert trials.fastest(found, "map").pack == "vmap"
    assert "not kept" in caplog.text


def test_processes_that_work_together_do_not_measure(cache, monkeypatch):
    found = {pack: make(None, pack=pack) for pack in ("vmap", "map")}
    clock = Clock(monkeypatch, vmap=0.01, map=0.02)
    monkeypatch.setattr(trials.jax, "process_count", lambda: 2)
    assert trials.fastest(found, "map") == ("map", "by rule") and not clock.asked


def test_a_resumed_population_goes_on_as_it_began(cache, monkeypatch, tmp_path):
    clock = Clock(monkeypatch, vmap=0.01, map=0.02)
    began = make()
    workdir = Workdir(tmp_path / "results")
    workdir.write_packed([began])
    for file in cache.iterdir():  # another machine, a new JAX, or a cache that was emptied
        file.unlink()
    clock.asked.clear()
    resumed = make(packed=workdir.packed())
    assert (resumed.pack.how, resumed.why) == ("vmap", "as before") and not clock.asked
    # Unless it is asked for.
    assert make(packed=workdir.packed(), pack="map").pack.how == "map"
    # A folder of before there was a choice has none.
    (record,) = workdir.packed()
    del record["pack"]
    assert make(packed=[record]).why.startswith("measured")


@pytest.mark.thorough
def test_the_measurement_is_of_the_training_itself(cache, monkeypatch):
    asked = []
    compile_ = programs.compiled
    monkeypatch.setattr(
        programs,
        "compiled",
        lambda function, shapes, level, own: (
            asked.append((function, shapes[1])) or compile_(function, shapes, 0, own)
        ),
    )
    monkeypatch.setattr(trials, "WORTH_SECONDS", 0.0)
    plan = make()
    assert {s.how for _, s in asked if isinstance(s, Packing)} == {"vmap", "map"}
    (file,) = cache.iterdir()
    seconds = json.loads(file.read_text())
    # A step and run on this machine: between a microsecond and a second.
    assert all(1e-6 < value < 1 for value in seconds.values())
    best = min(seconds, key=seconds.get)
    assert plan.pack.how == (best if seconds[best] < 0.95 * seconds["map"] else "map")


def test_a_dry_run_measures_nothing(tmp_path):
    flags = [f"--config.{name}={'null' if v is None else v}" for name, v in CONV.items()]
    done = launch.run(tmp_path / "results", *flags, "--sweep=seed=0:4", "--dry_run")
    assert "in turn (map), by rule, unmeasured" in done.stdout
    assert "Measuring" not in done.stdout
