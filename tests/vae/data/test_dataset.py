import json

import jax
import numpy as np
import pytest

from vae.data import Transform, load, prepare
from vae.errors import UserError


def _inputs(dataset):
    """All model inputs of the training split; dynamic bits with one key per row."""
    keys = jax.random.split(jax.random.key(0), dataset.num_train)
    return np.asarray(jax.vmap(lambda r, k: prepare(dataset.transform, r, k))(dataset.train, keys))


def _floats(low, high):
    train = np.linspace(low, high, 12, dtype=np.float32).reshape(4, 3)
    return lambda: {"train": train, "test": train[:1]}


@pytest.mark.parametrize(
    ("scaling", "value_range"),
    [("unit", (0.0, 1.0)), ("symmetric", (-1.0, 1.0)), ("none", (0.0, 16.0))],
)
def test_scaling_of_uint8(scaling, value_range):
    dataset = load("digits", scaling=scaling)
    x = _inputs(dataset)
    assert (x.min(), x.max()) == dataset.value_range() == value_range
    # Sums of 1438 float32 values of order 1 agree to about 1e-6.
    np.testing.assert_allclose(dataset.train_mean, x.mean(axis=0), atol=1e-5)
    assert dataset.train_mean.dtype == np.float32
    assert dataset.train_mean.shape == dataset.example_shape == (8, 8, 1)


@pytest.mark.parametrize("source", ["digits", _floats(-3.0, 7.0)])
def test_standardize_uses_the_training_moments(source):
    dataset = load(source, scaling="standardize")
    x = _inputs(dataset).astype(np.float64)
    # float32 rounding of values of order 1.
    assert abs(x.mean()) < 1e-5 and abs(x.std() - 1.0) < 1e-5
    np.testing.assert_allclose(dataset.value_range(), (x.min(), x.max()), rtol=1e-6)


def test_value_range_covers_the_test_split():
    arrays = {"train": np.full((2, 3), 0.5), "test": np.full((1, 3), 1.5)}
    assert load(lambda: arrays, scaling="none").value_range() == (0.5, 1.5)
    with pytest.raises(UserError, match=r"data\.scaling"):
        load(lambda: arrays)


def test_scaling_of_floats():
    assert load(_floats(0.0, 1.0)).transform == Transform()
    assert load(_floats(0.0, 1.0), scaling="symmetric").value_range() == (-1.0, 1.0)
    assert load(_floats(-3.0, 7.0), scaling="none").value_range() == (-3.0, 7.0)


@pytest.mark.parametrize("scaling", ["unit", "symmetric"])
@pytest.mark.parametrize("ends", [(-0.1, 1.0), (0.0, 1.1)])
def test_floats_outside_0_1_are_refused(scaling, ends):
    with pytest.raises(UserError, match=r"data\.scaling: .* expects float values in \[0, 1\]"):
        load(_floats(*ends), scaling=scaling)


def test_standardize_refuses_constant_values():
    with pytest.raises(UserError, match=r"data\.scaling: 'standardize' divides by"):
        load(_floats(0.1, 0.1), scaling="standardize")


def test_threshold():
    dataset = load("digits", binarization="threshold")
    raw = load("digits")
    assert dataset.train.dtype == np.uint8 and dataset.transform == Transform()
    np.testing.assert_array_equal(dataset.train, raw.train >= 8)
    np.testing.assert_array_equal(dataset.test, raw.test >= 8)
    assert dataset.value_range() == (0.0, 1.0)
    np.testing.assert_allclose(dataset.train_mean, (raw.train >= 8).mean(axis=0), rtol=1e-6)


@pytest.mark.parametrize("binarization", ["static", "dynamic"])
def test_bits_follow_the_probabilities(binarization):
    dataset = load("digits", binarization=binarization)
    x = _inputs(dataset)
    p = load("digits").train / 16.0
    assert set(np.unique(x)) == {0.0, 1.0}
    # Per pixel over n images: the standard error of a mean of Bernoullis; 64 pixels at 5 of them.
    error = np.sqrt((p * (1 - p)).sum(axis=0)) / len(p)
    assert (np.abs(x.mean(axis=0) - p.mean(axis=0)) <= 5 * error + 2**-17).all()
    np.testing.assert_array_equal(x[p == 0], 0.0)
    np.testing.assert_array_equal(x[p == 1], 1.0)
    mean = x.mean(axis=0) if binarization == "static" else p.mean(axis=0)
    np.testing.assert_allclose(dataset.train_mean, mean, atol=1e-6)


def test_static_bits_are_fixed_by_the_data_seed():
    one, again, other = (load("digits", binarization="static", seed=seed) for seed in (0, 0, 1))
    assert one.train.dtype == np.uint8 and one.transform == Transform()
    np.testing.assert_array_equal(one.train, again.train)
    np.testing.assert_array_equal(one.test, again.test)
    assert (one.train != other.train).any() and (one.test != other.test).any()
    # The splits have streams of their own: equal examples get different bits.
    half = {"train": np.full((1, 500), 0.5), "test": np.full((1, 500), 0.5)}
    dataset = load(lambda: half, binarization="static")
    assert (dataset.train != dataset.test).any()


def test_evaluation_of_dynamic_data_is_the_static_draw():
    dynamic, static = (load("digits", binarization=name, seed=3) for name in ("dynamic", "static"))
    for split, expected in (("train", static.train), ("test", static.test)):
        bits, transform = dynamic.evaluation(split)
        assert transform == Transform() and bits.dtype == np.uint8
        np.testing.assert_array_equal(bits, expected)
        np.testing.assert_array_equal(bits, dynamic.evaluation(split)[0])
        np.testing.assert_array_equal(dynamic.evaluation(split, limit=7)[0], expected[:7])


@pytest.mark.parametrize("binarization", ["none", "threshold", "static"])
def test_evaluation_of_fixed_data_is_the_split_itself(binarization):
    dataset = load("digits", binarization=binarization)
    raw, transform = dataset.evaluation("test", limit=5)
    assert transform == dataset.transform
    np.testing.assert_array_equal(raw, dataset.test[:5])
    assert len(dataset.evaluation("train", limit=10**6)[0]) == dataset.num_train


def test_splits_are_slices_of_images_and_labels():
    whole = load("digits")
    part = load("digits", train_split="train[:80%]", test_split="train[80%:]")
    assert part.num_train + part.num_test == whole.num_train
    np.testing.assert_array_equal(np.concatenate([part.train, part.test]), whole.train)
    np.testing.assert_array_equal(
        np.concatenate([part.train_labels, part.test_labels]), whole.train_labels
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_split": "trian"}, "data.train_split: the source has no split 'trian'"),
        ({"test_split": "test[:0]"}, "data.test_split: 'test[:0]' is empty"),
        ({"train_split": "train["}, "data.train_split: 'train[' is not a split"),
        ({"test_split": "train[:9]"}, "data.test_split: it shares rows 0 to 8"),
        ({"scaling": "units"}, "data.scaling: 'units' is not one of"),
        ({"binarization": "dynmic"}, "Did you mean 'dynamic'?"),
        ({"binarization": None}, "data.binarization: None is not one of"),
        (
            {"binarization": "dynamic", "scaling": "symmetric"},
            "data.binarization: 'dynamic' reads values as probabilities",
        ),
        ({"binarization": "threshold", "scaling": "none"}, "data.binarization"),
        ({"binarization": "static", "scaling": "standardize"}, "data.binarization"),
        ({"seed": -1}, "data.seed"),
        ({"seed": 2**32}, "data.seed"),
        ({"seed": 1.0}, "data.seed"),
        ({"seed": True}, "data.seed"),
    ],
)
def test_bad_arguments_name_the_field(arguments, message):
    with pytest.raises(UserError) as error:
        load("digits", **arguments)
    assert message in str(error.value) and str(error.value).startswith("data.")


def test_protocol_records_what_was_used():
    protocol = load("digits", train_split="train[:1000]", binarization="dynamic", seed=5).protocol
    assert json.loads(json.dumps(protocol)) == protocol
    fingerprint, version = protocol.pop("fingerprint"), protocol.pop("version")
    assert len(fingerprint) == 64 and version.startswith("scikit-learn ")
    assert protocol == {
        "source": "digits",
        "splits": {"train": "train[:1000]", "test": "test"},
        "counts": {"train": 1000, "test": 359},
        "shapes": {"train": [1000, 8, 8, 1], "test": [359, 8, 8, 1]},
        "dtype": "uint8",
        "max_value": 16.0,
        "scaling": "unit",
        "binarization": "dynamic",
        "seed": 5,
        "transform": {"scale": 1 / 16, "offset": 0.0},
    }


def test_fingerprint_is_of_the_arrays_in_use():
    def fingerprint(train, test):
        return load(lambda: {"train": train, "test": test}).protocol["fingerprint"]

    rng = np.random.default_rng(0)
    train, test = (rng.integers(0, 256, (4, 6), dtype=np.uint8) for _ in range(2))
    base = fingerprint(train, test)
    assert base == fingerprint(train.copy(), np.asfortranarray(test))
    changed = train.copy()
    changed[0, 0] ^= 1
    others = [
        fingerprint(changed, test),
        fingerprint(test, train),
        fingerprint(train[::-1], test),
        fingerprint(train.reshape(4, 2, 3), test.reshape(4, 2, 3)),
        fingerprint(train[:3], test),
    ]
    assert len({base, *others}) == 6
    # The embedded digits under the default protocol: changes only if the bytes or the rule change.
    assert load("digits").protocol["fingerprint"].startswith("dba5da2f980dbf56")


# Folds --------------------------------------------------------------------------------------------


def test_a_fold_takes_the_place_of_the_test_split():
    whole = load("digits")
    seen = []
    for fold in range(3):
        dataset = load("digits", folds=3, fold=fold, test_split="no such split")
        assert dataset.num_train + dataset.num_test == whole.num_train
        assert dataset.num_test == whole.num_train // 3
        both = np.concatenate([dataset.train, dataset.test])
        assert sorted(map(bytes, both)) == sorted(map(bytes, whole.train))
        labels = np.concatenate([dataset.train_labels, dataset.test_labels])
        pairs = sorted((bytes(x), int(y)) for x, y in zip(both, labels, strict=True))
        asked = zip(whole.train, whole.train_labels, strict=True)
        assert pairs == sorted((bytes(x), int(y)) for x, y in asked)
        assert dataset.protocol["splits"] == {
            "train": f"train without fold {fold} of 3",
            "test": f"fold {fold} of 3 of train",
        }
        seen += map(bytes, dataset.test)
    assert len(seen) == whole.num_train // 3 * 3
    fingerprints = {load("digits", folds=3, fold=f).protocol["fingerprint"] for f in range(3)}
    assert len(fingerprints) == 3


def test_standardizing_does_not_see_the_part_that_is_left_out():
    arrays = {"train": np.arange(12, dtype=np.float32).reshape(6, 2) ** 2}
    for fold in range(3):
        dataset = load(lambda: arrays, scaling="standardize", folds=3, fold=fold)
        x = _inputs(dataset).astype(np.float64)
        assert abs(x.mean()) < 1e-5 and abs(x.std() - 1.0) < 1e-5
