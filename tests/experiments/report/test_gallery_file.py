"""What the launcher writes for the report to show: the arrays of gallery.npz."""

import types

import numpy as np
import pytest

from experiments.outcome import write_gallery
from experiments.population import Trainer
from experiments.report.results import read_gallery

IMAGES = ("originals", "reconstructions", "samples", "traversals")
OF_CODES = {"traversal_codes": np.arange(3), "code_counts": np.ones((2, 3), np.int32)}
OF_A_PLANE = {"latents": np.zeros((4, 2)), "latent_dims": np.arange(2)}


@pytest.mark.parametrize(
    "own, more",
    [(OF_CODES, set()), (OF_A_PLANE, {"traversal_values", "labels"})],
)
def test_codes_take_the_place_of_values(tmp_path, own, more):
    dataset = types.SimpleNamespace(value_range=lambda: (0.0, 1.0), test_labels=np.arange(9))
    pictures = {name: np.full((1, 2), 0.5) for name in IMAGES} | {"traversal_dims": np.arange(2)}
    write_gallery(tmp_path, dataset, pictures | own, np.zeros(2))
    arrays = read_gallery(tmp_path / "gallery.npz")
    assert set(arrays) == {*IMAGES, "traversal_dims", "kl_per_dim", *own, *more}
    assert arrays["samples"].dtype == np.uint8 and np.all(arrays["samples"] == 128)
    if "labels" in more:
        assert arrays["labels"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "elbos, expected",
    [
        ([-3.0, -5.0], ("test elbo", -4.0)),
        ([-3.0, float("nan")], ("test elbo", -3.0)),  # one that has just diverged
        ([float("nan"), None], ("test distortion", 2.0)),  # as read, and as restored from a file
    ],
)
def test_the_score_of_a_population_is_the_elbo_or_else_the_distortion(elbos, expected):
    records = [[{"step": 5, "test/elbo": elbo, "test/distortion": 2.0}] for elbo in elbos]
    records.append([{"step": 4, "test/elbo": -99.0, "test/distortion": 99.0}])  # stopped before
    assert Trainer._score(types.SimpleNamespace(_records=records)) == expected


def test_without_readings_there_is_no_score():
    assert Trainer._score(types.SimpleNamespace(_records=[[], []])) is None
