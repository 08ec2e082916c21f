import numpy as np
import pytest

from vae.data.splits import Rows, Split, check_disjoint, leave_out, parse, resolve
from vae.errors import UserError

COUNTS = {"train": 1437, "test": 10}
FIELD = "data.train_split"


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("train", (0, 1437)),
        ("train[:1000]", (0, 1000)),
        ("train[1000:]", (1000, 1437)),
        ("train[10:20]", (10, 20)),
        ("train[ 10 : 20 ]", (10, 20)),
        ("train[:]", (0, 1437)),
        ("train[-37:]", (1400, 1437)),
        ("train[:-37]", (0, 1400)),
        ("train[:80%]", (0, 1150)),  # 1149.6
        ("train[80%:]", (1150, 1437)),
        ("train[-20%:]", (1150, 1437)),  # -287.4
        ("train[25%:75%]", (359, 1078)),  # 359.25, 1077.75
    ],
)
def test_slices_follow_tfds(text, rows):
    assert resolve(parse(text, FIELD), COUNTS) == Rows("train", *rows)


@pytest.mark.parametrize("percent", range(1, 100))
def test_percentages_partition_the_split(percent):
    first = resolve(parse(f"train[:{percent}%]", FIELD), COUNTS)
    second = resolve(parse(f"train[{percent}%:]", FIELD), COUNTS)
    assert (first.start, first.stop, second.stop) == (0, second.start, 1437)


@pytest.mark.parametrize(
    "text", ["", "train[", "train[5]", "train[:5.5%]", "train+test", "train[::2]", "a b[c:]", 3]
)
def test_malformed_splits_are_refused(text):
    with pytest.raises(UserError, match=r"data\.train_split: .* is not a split"):
        parse(text, FIELD)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("validation", "no split 'validation'. Choose one of test, train"),
        ("test[:0]", "is empty"),
        ("test[5:5]", "is empty"),
        ("test[8:3]", "is empty"),
        ("test[:1%]", "is empty"),
        ("test[:11]", "has only 10 examples"),
        ("test[-11:]", "has only 10 examples"),
        ("test[:101%]", "has only 10 examples"),
    ],
)
def test_splits_that_name_no_rows_are_refused(text, message):
    with pytest.raises(UserError) as error:
        resolve(parse(text, FIELD), COUNTS)
    assert str(error.value).startswith(f"{FIELD}: ") and message in str(error.value)


def test_parse_keeps_what_was_written():
    assert parse("test[:80%]", FIELD) == Split(FIELD, "test[:80%]", "test", None, "80%")


def test_overlap_is_refused():
    with pytest.raises(UserError, match=r"data\.test_split: it shares rows 40 to 49 of 'train'"):
        check_disjoint(Rows("train", 0, 50), Rows("train", 40, 90))
    with pytest.raises(UserError, match=r"data\.test_split"):
        check_disjoint(Rows("train", 10, 20), Rows("train", 0, 100))


def test_disjoint_splits_pass():
    check_disjoint(Rows("train", 0, 50), Rows("train", 50, 90))
    check_disjoint(Rows("train", 50, 90), Rows("train", 0, 50))
    check_disjoint(Rows("train", 0, 50), Rows("test", 0, 50))


@pytest.mark.parametrize(("count", "folds"), [(10, 2), (10, 5), (11, 3), (1797, 4), (3, 3)])
def test_folds_part_the_examples(count, folds):
    parts = [leave_out(count, folds, fold, seed=7) for fold in range(folds)]
    for kept, out in parts:
        assert len(out) == count // folds
        np.testing.assert_array_equal(np.sort(np.concatenate([kept, out])), np.arange(count))
        assert (np.diff(kept) > 0).all() and (np.diff(out) > 0).all()
    left = np.concatenate([out for _, out in parts])
    assert len(set(left.tolist())) == count // folds * folds


def test_folds_are_dealt_by_the_seed_alone():
    first, again, other = (leave_out(1000, 5, 2, seed)[1] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    # At random: 200 of 1000, of which 40 ± 5 are in another deal's fold of 200.
    assert 15 < len(np.intersect1d(first, other)) < 65
    # No run of neighbours, as of a sorted file cut into pieces: 9 of 1000 in 200 are expected per
    # place, and the largest gap of 200 random ones is near 5 ln 200 = 26.
    assert np.diff(first).max() < 60 and first.min() < 60 and first.max() > 940


@pytest.mark.parametrize(
    ("folds", "fold", "field"),
    [(1, 0, "folds"), (11, 0, "folds"), (3, 3, "fold"), (3, -1, "fold")],
)
def test_folds_that_there_are_not_are_refused(folds, fold, field):
    with pytest.raises(UserError, match=rf"^data\.{field}: "):
        leave_out(10, folds, fold, seed=0)
