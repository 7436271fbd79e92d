"""ListOps by the rules of the Long Range Arena: trees of operators on digits."""

from collections.abc import Iterator, Sequence
import hashlib
import itertools
import json
import os
from pathlib import Path
from typing import Any, NamedTuple
import uuid

from jaxtyping import Int, Integer, UInt8
import numpy as np

from jaxlr.core import checks


LISTOPS_VOCABULARY = ("<pad>", *"0123456789", "[MIN", "[MAX", "[MED", "[SM", "]")
"""The word that each token stands for; its order is part of the data's format."""

_DIGIT, _OPERATOR, _CLOSE, _PENDING = 1, 11, 15, 16
_BATCH = 4096  # trees grown side by side; the stream of samples depends on it
_PATIENCE = 2**20  # trees in a row of which none is a new sample


class Tokens(NamedTuple):
    """Padded token sequences with labels.

    Attributes:
        tokens: Rows padded with 0 on the right; L is the longest length allowed. Tasks
            with two documents a sample have an axis for them.
        lengths: Tokens of each row before the padding.
        labels: Class of each sample, counted from 0.
    """

    tokens: UInt8[np.ndarray, "n *documents L"]
    lengths: Int[np.ndarray, " n *documents"]
    labels: Int[np.ndarray, " n"]


class ListOpsSplits(NamedTuple):
    """Three sets of samples, none of which is in two of them.

    Attributes:
        train: Samples to train on.
        valid: Samples to choose hyper-parameters by.
        test: Samples to test with.
    """

    train: Tokens
    valid: Tokens
    test: Tokens


def pack(
    rows: Sequence[bytes], max_length: int
) -> tuple[UInt8[np.ndarray, "n L"], Int[np.ndarray, " n"]]:
    """Rows of tokens, none longer than `max_length`, as a padded array and lengths."""
    tokens = np.zeros((len(rows), max_length), np.uint8)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = np.frombuffer(row, np.uint8)
    return tokens, np.array([len(row) for row in rows], np.int32)


def listops_value(tokens: bytes | Sequence[int] | Integer[np.ndarray, " L"]) -> int:
    """The digit that an expression comes to; O(length log length).

    `[MED` is the median rounded down, `[SM` the sum modulo 10.

    Args:
        tokens: Places in `LISTOPS_VOCABULARY`; padding is passed over.

    Returns:
        0..9.

    Raises:
        ValueError: Unless `tokens` is one whole expression.
    """
    expression: list[list[int]] = [[]]
    for token in tokens:
        if _DIGIT <= token < _OPERATOR:
            expression[-1].append(int(token) - _DIGIT)
        elif _OPERATOR <= token < _CLOSE:
            expression.append([int(token)])
        elif token == _CLOSE and len(expression) > 1 and len(expression[-1]) > 1:
            operator, *values = expression.pop()
            values.sort()
            if operator == _OPERATOR:
                value = values[0]
            elif operator == _OPERATOR + 1:
                value = values[-1]
            elif operator == _OPERATOR + 2:
                half = len(values) // 2
                value = (values[half] + values[~half]) // 2
            else:
                value = sum(values) % 10
            expression[-1].append(value)
        elif token:
            raise ValueError(f"`tokens` has a token {token} where none can be.")
    if len(expression) != 1 or len(expression[0]) != 1:
        raise ValueError("`tokens` must be one whole expression.")
    return expression[0][0]


def _grow(
    stream: np.random.PCG64, max_length: int, max_depth: int, max_args: int
) -> Iterator[bytes]:
    """`_BATCH` random trees, less those of `max_length` tokens or more, in order.

    All grow together, a level at a time: every pending place becomes a digit or an
    operator around new pending places. A tree never shrinks, so one that is too long
    already is dropped at once; its draws decide nothing else.
    """
    tree = np.arange(_BATCH)
    flat = np.full(_BATCH, _PENDING, np.uint8)
    for depth in range(1, max_depth + 1):
        at = np.flatnonzero(flat == _PENDING)
        # Two bits choose digit or operator, two the operator, sixty the rest. Raw
        # bits, because NumPy keeps their stream the same in all its versions.
        raw = np.asarray(stream.random_raw(at.size))
        is_operator = (raw % 4 == 0) & (depth < max_depth)
        flat[at] = np.where(
            is_operator, _OPERATOR + (raw >> 2) % 4, _DIGIT + (raw >> 4) % 10
        )
        num_args = 2 + (raw >> 4) % (max_args - 1)
        width = np.ones(flat.size, np.int64)
        width[at] += np.where(is_operator, 1 + num_args.astype(np.int64), 0)
        end = np.cumsum(width)
        grown = np.full(end[-1] if end.size else 0, _PENDING, np.uint8)
        grown[end - width] = flat
        grown[end[at[is_operator]] - 1] = _CLOSE
        tree = np.repeat(tree, width)
        is_kept = np.bincount(tree, minlength=_BATCH)[tree] < max_length
        flat, tree = grown[is_kept], tree[is_kept]
    length = np.bincount(tree, minlength=_BATCH)
    for stop, size in zip(np.cumsum(length), length, strict=True):
        yield flat[stop - size : stop].tobytes()


def _load(path: Path, config: str) -> ListOpsSplits:
    try:
        with open(path, "rb") as raw, np.load(raw) as file:
            if str(file["config"]) != config:
                raise ValueError("It was made with other arguments.")
            splits = [
                Tokens(*(file[f"{split}_{field}"] for field in Tokens._fields))
                for split in ListOpsSplits._fields
            ]
    except Exception as error:  # a damaged archive raises nearly anything
        raise ValueError(
            f"`directory` holds {path}, damaged or not ours: delete it, and it will be "
            "made again."
        ) from error
    return ListOpsSplits(*splits)


def _save(path: Path, config: str, splits: ListOpsSplits) -> None:
    """Writes beside and renames: `path` appears whole or not at all."""
    arrays: dict[str, Any] = {
        f"{split}_{field}": array
        for split, tokens in splits._asdict().items()
        for field, array in tokens._asdict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(beside, "wb") as file:
            np.savez(file, config=config, **arrays)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def listops(
    directory: str | os.PathLike[str] | None = None,
    *,
    seed: int = 0,
    min_length: int = 500,
    max_length: int = 2000,
    max_depth: int = 10,
    max_args: int = 10,
    num_train: int = 96_000,
    num_valid: int = 2_000,
    num_test: int = 2_000,
) -> ListOpsSplits:
    """Expressions such as `[MAX 4 [SM 3 9 ] 0 ]`, labelled by their value.

    A tree is grown from depth 1. At a depth less than `max_depth`, with probability
    1/4, an operator of MIN, MAX, MED, SM with uniformly 2 to `max_args` arguments, each
    one deeper; else a uniform digit. Trees with `min_length` < length < `max_length`
    are kept, where length = digits + 2 per operator = tokens: parentheses are left out,
    closing brackets are kept. No expression comes twice, in any split.

    The same arguments give the same data at any time, on any machine. Test samples
    are drawn first, then those to validate, then those to train: the test set depends
    on `num_test` alone of the three, the training set grows at its end.

    Args:
        directory: Where a file of the data is kept and looked for, 2 kB a sample at
            the default lengths; its name holds a digest of the arguments, so that other
            arguments never read it. None keeps none.
        seed: Seed of all draws.
        min_length: Number of tokens that is too few.
        max_length: Number of tokens that is too many; the width L of the arrays.
        max_depth: Largest depth, where all nodes are digits.
        max_args: Largest number of arguments of an operator.
        num_train: Number of training samples.
        num_valid: Number of validation samples.
        num_test: Number of test samples.

    Returns:
        The splits, tokens as in `LISTOPS_VOCABULARY`, labels 0..9. About 4 kB of
        memory a sample while it is made. At the default lengths 8 % of the trees are
        kept; thousands of samples a second, on one core.

    Raises:
        ValueError: For a number that is not an integer or too small; if the kept file
            is damaged or foreign; if a million trees in a row bring no new sample.

    References:
        Nikita Nangia, Samuel R. Bowman, *ListOps: A Diagnostic Dataset for Latent Tree
        Learning*, 2018, arXiv:1804.06028.
        Yi Tay et al., *Long Range Arena: A Benchmark for Efficient Transformers*, 2020,
        arXiv:2011.04006.
    """
    seed = checks.count("seed", seed, least=0)
    min_length = checks.count("min_length", min_length, least=0)
    max_length = checks.count("max_length", max_length, least=min_length + 2)
    max_depth = checks.count("max_depth", max_depth)
    max_args = checks.count("max_args", max_args, least=2)
    num_train = checks.count("num_train", num_train)
    num_valid = checks.count("num_valid", num_valid)
    num_test = checks.count("num_test", num_test)
    config = json.dumps(
        {
            "format": 1,
            "seed": seed,
            "lengths": [min_length, max_length],
            "tree": [max_depth, max_args],
            "samples": [num_train, num_valid, num_test],
        }
    )
    digest = hashlib.blake2b(config.encode(), digest_size=8).hexdigest()
    path = None if directory is None else Path(directory) / f"listops-{digest}.npz"
    if path is not None and path.exists():
        return _load(path, config)

    total, num_idle = num_train + num_valid + num_test, 0
    trees: dict[bytes, None] = {}  # in order, each once
    stream = np.random.PCG64(seed)
    while len(trees) < total:
        before = len(trees)
        for tree in _grow(stream, max_length, max_depth, max_args):
            if len(tree) > min_length:
                trees[tree] = None
        num_idle = num_idle + _BATCH if len(trees) == before else 0
        if num_idle >= _PATIENCE:
            raise ValueError(
                f"Found {len(trees)} of {total} expressions with {min_length} < length "
                f"< {max_length}, none in the last {num_idle} trees: ask for fewer, or "
                "change `min_length`, `max_length`, `max_depth` or `max_args`."
            )
    rows, splits = list(trees), []
    starts = (0, num_test, num_test + num_valid, total)
    for start, stop in itertools.pairwise(starts):
        part = rows[start:stop]
        labels = np.array([listops_value(row) for row in part], np.int32)
        splits.append(Tokens(*pack(part, max_length), labels))
    data = ListOpsSplits(*reversed(splits))
    if path is not None:
        _save(path, config, data)
    return data


def root_operator_accuracy(train: Tokens, test: Tokens) -> float:
    """Accuracy of the best rule that sees the root alone: what a model must beat.

    The rule answers with the most frequent training label among samples with the same
    first token (the smallest such label; 0 if the token never came).

    Args:
        train: ListOps samples that the rule is fitted on.
        test: ListOps samples that it is scored on.

    Returns:
        Share of right answers [1]: .36 at LRA's lengths, where more than half of the
        [MIN come to 0 and of the [MAX to 9.
    """
    counts = np.zeros((len(LISTOPS_VOCABULARY), 10), np.int64)
    np.add.at(counts, (train.tokens[:, 0], train.labels), 1)
    return float(np.mean(counts.argmax(1)[test.tokens[:, 0]] == test.labels))
