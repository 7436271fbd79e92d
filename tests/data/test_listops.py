"""ListOps against its rules: an independent parser, exact laws, and the cache."""

import hashlib
import itertools
import statistics
from typing import Any

import numpy as np
import pytest

from jaxlr.data import (
    _listops,
    listops,
    listops_value,
    LISTOPS_VOCABULARY,
    root_operator_accuracy,
    Tokens,
)


SMALL: dict[str, Any] = {
    "min_length": 10,
    "max_length": 60,
    "max_depth": 5,
    "max_args": 5,
}
FEW: Any = {**SMALL, "num_train": 40, "num_valid": 6, "num_test": 4}
MANY: Any = {**SMALL, "num_train": 6000, "num_valid": 50, "num_test": 50}


@pytest.fixture(scope="module")
def many():
    return listops(**MANY)


def words(tokens, length):
    return [LISTOPS_VOCABULARY[token] for token in tokens[:length]]


def parse(words, depth=1):
    """(value, depth of the deepest node, argument counts); takes words from a list."""
    word = words.pop(0)
    if word.isdigit():
        return int(word), depth, []
    args = []
    while words[0] != "]":
        args.append(parse(words, depth + 1))
    words.pop(0)
    values = [value for value, _, _ in args]
    value = {
        "[MIN": lambda: min(values),
        "[MAX": lambda: max(values),
        "[MED": lambda: int(statistics.median(values)),
        "[SM": lambda: sum(values) % 10,
    }[word]()
    counts = [len(values), *itertools.chain(*(counts for _, _, counts in args))]
    return value, max(deepest for _, deepest, _ in args), counts


def test_labels_are_the_values_and_trees_obey_the_limits(many):
    depths, counts = [], []
    for split in many:
        for tokens, length, label in zip(*split, strict=True):
            assert not tokens[length:].any()
            rest = words(tokens, length)
            value, depth, args = parse(rest)
            assert not rest
            assert value == label == listops_value(tokens)
            depths.append(depth)
            counts += args
    assert max(depths) == 5
    assert set(counts) == {2, 3, 4, 5}


def test_splits_have_their_sizes_and_no_expression_twice(many):
    assert [len(split.labels) for split in many] == [6000, 50, 50]
    for split in many:
        assert split.tokens.shape == (len(split.labels), 60)
        assert split.tokens.dtype == np.uint8
        assert ((split.lengths > 10) & (split.lengths < 60)).all()
    tokens = np.concatenate([split.tokens for split in many])
    assert len(np.unique(tokens, axis=0)) == 6100


def length_law(min_length, max_length, max_depth, max_args):
    """P(length = n) of a tree, n = 0..max_length - 1, and that given the limits.

    The generating function of a tree at depth d is z at the largest depth, else
    3/4 z + 1/4 z^2 mean_k F_{d+1}(z)^k.
    """
    leaf = np.zeros(max_length)
    leaf[1] = 1
    tree = leaf
    for _ in range(max_depth - 1):
        power, powers = tree, np.zeros(max_length)
        for _ in range(2, max_args + 1):
            power = np.convolve(power, tree)[:max_length]
            powers += power / (max_args - 1)
        tree = 0.75 * leaf + 0.25 * np.concatenate([[0, 0], powers[:-2]])
    kept = np.where(np.arange(max_length) > min_length, tree, 0)
    return tree, kept / kept.sum()


def test_eight_in_a_hundred_of_lra_s_trees_are_kept():
    tree, _ = length_law(500, 2000, 10, 10)
    assert abs(tree[501:].sum() - 0.08) <= 0.005


@pytest.mark.parametrize(
    "limits", [SMALL, {**SMALL, "min_length": 25, "max_depth": 4, "max_args": 9}, {}]
)
def test_lengths_follow_their_exact_law(limits):
    sizes: dict[str, Any] = {
        "num_train": 5000 if limits else 500,
        "num_valid": 1,
        "num_test": 1,
    }
    data = listops(seed=1, **limits, **sizes)
    full = {"min_length": 500, "max_length": 2000, "max_depth": 10, "max_args": 10}
    _, law = length_law(**(full | limits))
    lengths = data.train.lengths
    counts = np.bincount(lengths, minlength=len(law))
    distance = np.abs(np.cumsum(counts) / len(lengths) - np.cumsum(law)).max()
    # Kolmogorov's bound at one in a thousand.
    assert distance <= 1.95 / len(lengths) ** 0.5


def test_digits_and_operators_are_uniform(many):
    counts = np.bincount(many.train.tokens.ravel(), minlength=16)
    assert counts[15] == counts[11:15].sum()
    for part, most in ((counts[1:11], 27.9), (counts[11:15], 16.3)):  # chi^2, .999
        mean = part.mean()
        assert ((part - mean) ** 2 / mean).sum() <= most


def test_all_expressions_are_found_and_one_more_is_an_error():
    """With two arguments at depth 1 alone there are 4 * 10 * 10."""
    limits: dict[str, Any] = {
        "min_length": 1,
        "max_length": 5,
        "max_depth": 2,
        "max_args": 2,
    }
    data = listops(**limits, num_train=300, num_valid=60, num_test=40)
    tokens = np.concatenate([split.tokens[:, :4] for split in data])
    assert {tuple(row) for row in tokens.tolist()} == {
        (operator, 1 + i, 1 + j, 15)
        for operator in range(11, 15)
        for i in range(10)
        for j in range(10)
    }
    with pytest.raises(ValueError, match=r"Found 400 of 401 .*`min_length`"):
        listops(**limits, num_train=301, num_valid=60, num_test=40)


def test_rare_expressions_are_waited_for():
    """One tree in ten thousand is longer than 28: most batches bring none."""
    limits: Any = {"min_length": 28, "max_length": 60, "max_depth": 3, "max_args": 5}
    data = listops(**limits, num_train=4, num_valid=1, num_test=1)
    assert all((split.lengths > 28).all() for split in data)


def digest(data):
    hashed = hashlib.sha256()
    for split in data:
        for array, dtype in zip(split, ("u1", "<i4", "<i4"), strict=True):
            hashed.update(np.ascontiguousarray(array, dtype).tobytes())
    return hashed.hexdigest()[:16]


def test_the_same_data_at_any_later_time():
    assert LISTOPS_VOCABULARY == tuple(
        "<pad> 0 1 2 3 4 5 6 7 8 9 [MIN [MAX [MED [SM ]".split()
    )
    assert digest(listops(**FEW)) == "4c3b0e246d3442dc"
    full: Any = {"num_train": 3, "num_valid": 2, "num_test": 1}
    assert digest(listops(seed=5, **full)) == "90eb345229741787"


def test_a_larger_training_set_is_a_continuation(many):
    few = listops(**(MANY | {"num_train": 40}))
    for name in ("valid", "test"):
        for one, other in zip(getattr(few, name), getattr(many, name), strict=True):
            np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(few.train.tokens, many.train.tokens[:40])
    other = listops(**(MANY | {"num_train": 40, "seed": 1}))
    assert not np.array_equal(few.train.tokens, other.train.tokens)


def no_tree(*_):
    raise RuntimeError("Nothing is to be grown.")


def test_the_kept_file_is_read_again_and_only_by_the_same_arguments(
    tmp_path, monkeypatch
):
    data = listops(tmp_path / "new" / "folder", **FEW)
    assert digest(data) == digest(listops(**FEW))
    [path] = (tmp_path / "new" / "folder").iterdir()
    monkeypatch.setattr(_listops, "_grow", no_tree)
    again = listops(str(path.parent), **FEW)
    for split, first in zip(again, data, strict=True):
        for array, other in zip(split, first, strict=True):
            assert array.dtype == other.dtype
            np.testing.assert_array_equal(array, other)
    for name in (*FEW, "seed"):
        with pytest.raises(RuntimeError, match="Nothing"):
            listops(path.parent, **(FEW | {name: FEW.get(name, 0) + 1}))
    assert [path] == list(path.parent.iterdir())


@pytest.mark.misuse
def test_a_damaged_or_foreign_file_is_an_error(tmp_path):
    listops(tmp_path, **FEW)
    [path] = tmp_path.iterdir()
    good = path.read_bytes()
    middle = good.index(b"train_tokens") + 300
    other = tmp_path / "other"
    listops(other, **(FEW | {"seed": 1}))
    array = tmp_path / "array.npy"
    np.save(array, np.zeros(3))
    for bad in (
        b"",
        good[:-30],
        good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :],
        next(other.iterdir()).read_bytes(),
        array.read_bytes(),
    ):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"`directory` holds .*delete it"):
            listops(tmp_path, **FEW)
    path.unlink()
    assert digest(listops(tmp_path, **FEW)) == digest(listops(**FEW))


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def half(file, **_):
        file.write(b"half")
        raise OSError("No space left on device.")

    monkeypatch.setattr(np, "savez", half)
    with pytest.raises(OSError, match="No space"):
        listops(tmp_path, **FEW)
    assert not list(tmp_path.iterdir())


@pytest.mark.misuse
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": -1}, "`seed` must be an integer >= 0, got -1"),
        ({"seed": 0.5}, "`seed`"),
        ({"min_length": -1}, "`min_length`"),
        ({"max_length": 11}, "`max_length` must be an integer >= 12, got 11"),
        ({"max_depth": 0}, "`max_depth`"),
        ({"max_args": 1}, "`max_args` must be an integer >= 2, got 1"),
        ({"num_train": 0}, "`num_train`"),
        ({"num_valid": 0}, "`num_valid`"),
        ({"num_test": 1.0}, "`num_test`"),
    ],
)
def test_misuse_is_named(changes, words):
    with pytest.raises(ValueError, match=words):
        listops(**(FEW | changes))


@pytest.mark.misuse
@pytest.mark.parametrize(
    "text", ["", "1 2", "[SM 1 2", "[SM ]", "]", "1 ]", "[SM 1 2 ] ]", "[SM 1 2 ] [SM"]
)
def test_what_is_no_expression_is_an_error(text):
    tokens = [LISTOPS_VOCABULARY.index(word) for word in text.split()]
    with pytest.raises(ValueError, match="`tokens`"):
        listops_value(tokens)
    with pytest.raises(ValueError, match="token 16"):
        listops_value([11, 1, 16])


def test_the_rule_of_the_root_is_the_majority_of_training():
    def samples(roots, labels):
        tokens = np.zeros((len(roots), 3), np.uint8)
        tokens[:, 0] = roots
        return Tokens(tokens, np.full(len(roots), 3), np.array(labels))

    train = samples([11, 11, 11, 12, 12], [4, 7, 7, 9, 8])
    test = samples([11, 11, 12, 12, 13, 13], [7, 4, 8, 9, 0, 5])
    # 7 for [MIN; 8, the smaller of two, for [MAX; 0 for [MED, which never came.
    assert root_operator_accuracy(train, test) == pytest.approx(3 / 6)


def test_the_root_tells_more_than_a_third_at_lra_s_lengths():
    data = listops(num_train=2000, num_valid=1, num_test=1000)
    measured = root_operator_accuracy(data.train, data.test)
    # .362 of the full 96 000; four deviations of a thousand samples.
    assert abs(measured - 0.362) <= 4 * (0.362 * 0.638 / 1000) ** 0.5
