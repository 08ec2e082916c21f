"""The digest of a checkpoint: of names, places and values, and of nothing else."""

import jax
import numpy as np

from vae import digests, mesh


def digest(tree):
    return digests.text(digests.digest(digests.pieces_of(tree)))


def test_it_is_of_the_values_and_not_of_where_they_lie():
    rng = np.random.default_rng(0)
    tree = {"a": rng.normal(size=(8, 3)).astype(np.float32), "b": np.arange(8, dtype=np.uint32)}
    plain = digest(tree)
    assert plain == digest(jax.tree.map(jax.numpy.asarray, tree))
    for layout in ((8, 1), (2, 4)):
        on = mesh.make(*layout)
        assert digest(mesh.put(tree, mesh.of_runs(on))) == plain
        assert digest(mesh.put(tree, mesh.everywhere(on))) == plain


def test_it_sees_a_bit_a_name_a_place_and_a_row():
    a = np.arange(6, dtype=np.float32).reshape(3, 2)
    flipped = a.copy()
    flipped.view(np.uint32)[1, 1] ^= 1
    trees = [{"a": a}, {"a": flipped}, {"b": a}, {"a": a[::-1]}, {"a": a[:2]}, {"a": a, "b": a}]
    assert len({digest(tree) for tree in trees}) == len(trees)


def test_parts_add_up():
    # What two processes have of one array, each its rows.
    a = np.arange(6, dtype=np.float32).reshape(3, 2)
    parts = digests.digest([("a", 0, a[:1])]) + digests.digest([("a", 1, a[1:])])
    assert digests.text(parts) == digest({"a": a})
    assert digests.text(-1) == "none"
    assert digests.total(7) == 7
    assert digests.total(None) == -1
