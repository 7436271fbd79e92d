"""Readers of the official files of sCIFAR and of the Long Range Arena's tasks."""

from collections.abc import Iterable
import os
from pathlib import Path
import pickle
from typing import Any, NamedTuple, TypeVar

from jaxtyping import Float, Int, UInt8
import numpy as np

from jaxlr.core import checks
from jaxlr.data._listops import LISTOPS_VOCABULARY, pack, Tokens


_T = TypeVar("_T")
_NEXT_BYTE = bytes(range(1, 256)) + b"\0"
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


class Signals(NamedTuple):
    """Signals with labels.

    Attributes:
        x: Signals of L steps with `channels` numbers each.
        labels: Class of each signal, counted from 0.
    """

    x: Float[np.ndarray, "n L channels"]
    labels: Int[np.ndarray, " n"]


def _of_split(split: str, files: dict[str, _T]) -> _T:
    return files[checks.choice("`split`", split, files)]


def _held(directory: str | os.PathLike[str], names: Iterable[str]) -> list[Path]:
    """The paths of all of these, before anything is read."""
    paths = [Path(directory).expanduser() / name for name in names]
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(
                f"`directory` must hold {path.name!r}: there is no {path}."
            )
    return paths


class _Inert:
    """Stands for an array, or its dtype, of a pickle: what it was given, no action."""

    def __init__(self, *args: Any):
        self.args = args

    def __setstate__(self, state: Any):
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Runs no code that the file names."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.replace("._core", ".core"), name) not in (
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
        ):
            raise pickle.UnpicklingError(f"{module}.{name} is no part of an array.")
        return _Inert


def _cifar_batch(path: Path) -> tuple[UInt8[np.ndarray, "n 3072"], list[int]]:
    try:
        with open(path, "rb") as file:
            batch = _Unpickler(file, encoding="bytes").load()
        _, shape, dtype, is_fortran, raw = batch[b"data"].state
        if dtype.args[0] not in ("u1", b"u1") or shape[1] != 3072:
            raise ValueError(
                f"Found {shape} of {dtype.args[0]!r}, not (n, 3072) bytes."
            )
        pixels = np.frombuffer(raw, np.uint8)
        pixels = pixels.reshape(shape, order="F" if is_fortran else "C")
        if len(batch[b"labels"]) != len(pixels):
            raise ValueError("Pixels and labels differ in number.")
        return pixels, batch[b"labels"]
    except Exception as error:  # a damaged or foreign pickle raises nearly anything
        raise ValueError(f"{path} is not a batch of CIFAR-10: {error}") from error


def read_cifar(
    directory: str | os.PathLike[str], split: str = "train", *, is_gray: bool = False
) -> Signals:
    """Sequential CIFAR-10: images pixel by pixel, row by row.

    Of the Python version of the data set; no code in its pickles is run.

    Args:
        directory: The folder `cifar-10-batches-py`, with the files `data_batch_1` to
            `data_batch_5` and `test_batch`.
        split: "train" (50 000 images) or "test" (10 000).
        is_gray: One channel of brightness (LRA's Image task), not three of color.

    Returns:
        Pixels from 0 to 1, float32: x (n, 1024, 1 or 3), 0.6 GB for the training
        images in color; labels 0..9.

    Raises:
        ValueError: For an unknown `split` or a file that is not such a batch.
        FileNotFoundError: Without one of the files.

    References:
        Alex Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009.
    """
    names = [f"data_batch_{i}" for i in range(1, 6)]
    names = _of_split(split, {"train": names, "test": ["test_batch"]})
    images, labels = zip(*map(_cifar_batch, _held(directory, names)), strict=True)
    x = np.concatenate(images).reshape(-1, 3, 1024).swapaxes(1, 2)
    x = np.divide(x, 255, dtype=np.float32, order="C")
    x = x @ _LUMA[:, None] if is_gray else x
    return Signals(x, np.concatenate(labels).astype(np.int32))


def read_listops(
    directory: str | os.PathLike[str], split: str = "train", *, max_length: int = 2000
) -> Tokens:
    """LRA's own ListOps files, in the vocabulary of `listops`.

    Args:
        directory: The folder with `basic_train.tsv`, `basic_val.tsv`,
            `basic_test.tsv`: columns Source and Target, words between spaces.
        split: "train", "valid" or "test".
        max_length: Width L of the array, no less than the number of tokens of any
            expression, parentheses not counted.

    Raises:
        ValueError: For an unknown `split`, an unknown word, an expression that is too
            long, or another file than the above.
        FileNotFoundError: Without the file.
    """
    max_length = checks.count("max_length", max_length)
    names = {"train": "basic_train.tsv", "valid": "basic_val.tsv"}
    name = _of_split(split, names | {"test": "basic_test.tsv"})
    [path] = _held(directory, [name])
    tokens = {word: i for i, word in enumerate(LISTOPS_VOCABULARY) if i}
    rows, labels = [], []
    with open(path, encoding="utf-8") as file:
        if next(file, "").split() != ["Source", "Target"]:
            raise ValueError(f"{path} must begin with the columns Source and Target.")
        for number, line in enumerate(file, 2):
            try:
                source, target = line.split("\t")
                words = source.replace("(", " ").replace(")", " ").split()
                rows.append(bytes(tokens[word] for word in words))
                labels.append(int(target))
            except (KeyError, ValueError) as error:
                raise ValueError(
                    f"{path}, line {number}, is no expression and its value: {error}"
                ) from error
            if len(words) > max_length:
                raise ValueError(
                    f"`max_length` must be at least {len(words)}, which {path}, line "
                    f"{number}, has; got {max_length}."
                )
    return Tokens(*pack(rows, max_length), np.array(labels, np.int32))


def _byte_tokens(text: bytes, max_length: int, path: Path) -> bytes:
    """Tokens 1 + byte; one byte is too many for 8 bits, which UTF-8 never has."""
    text = text[:max_length]
    if b"\xff" in text:
        raise ValueError(f"{path} has a byte 255, which UTF-8 never has.")
    return text.translate(_NEXT_BYTE)


def read_text(
    directory: str | os.PathLike[str], split: str = "train", *, max_length: int = 4096
) -> Tokens:
    """LRA's Text task: film reviews, byte by byte, as positive or negative.

    Args:
        directory: The folder `aclImdb` with `train` and `test`, of folders `neg` and
            `pos` of files `*.txt`, which are read in the order of their names.
        split: "train" or "test", 25 000 reviews each; LRA has no third.
        max_length: Width L of the array; what is longer is cut.

    Returns:
        Tokens are 1 + byte: 256 of them with the padding; all negative reviews
        (label 0), then the positive ones (label 1).

    Raises:
        ValueError: For an unknown `split`, a folder without reviews, or a file that
            has a byte 255, which UTF-8 never has.
        FileNotFoundError: Without one of the folders.

    References:
        Andrew L. Maas et al., *Learning Word Vectors for Sentiment Analysis*, 2011,
        ACL.
    """
    max_length = checks.count("max_length", max_length)
    names = _of_split(split, {s: [f"{s}/neg", f"{s}/pos"] for s in ("train", "test")})
    rows, labels = [], []
    for label, folder in enumerate(_held(directory, names)):
        paths = sorted(folder.glob("*.txt"))
        if not paths:
            raise ValueError(f"`directory` must hold reviews: no *.txt in {folder}.")
        rows += [_byte_tokens(path.read_bytes(), max_length, path) for path in paths]
        labels += [label] * len(paths)
    return Tokens(*pack(rows, max_length), np.array(labels, np.int32))


def read_retrieval(
    directory: str | os.PathLike[str], split: str = "train", *, max_length: int = 4000
) -> Tokens:
    """LRA's Retrieval task: whether one of two papers of the AAN cites the other.

    Args:
        directory: The folder with `new_aan_pairs.train.tsv`, `.eval.tsv`, `.test.tsv`:
            columns label, two names, two texts; without a header.
        split: "train", "valid" or "test".
        max_length: Width L of the array; what is longer is cut.

    Returns:
        tokens (n, 2, L) with the token 1 + byte, lengths (n, 2), labels 0 or 1. The
        texts are taken as they stand, with the file's own escapes. The training set
        has 147 086 pairs: 1.2 GB, twice that while it is read.

    Raises:
        ValueError: For an unknown `split`, a line without five columns, a label that
            is not 0 or 1, or a file with a byte 255.
        FileNotFoundError: Without the file.

    References:
        Dragomir R. Radev, Pradeep Muthukrishnan, Vahed Qazvinian, *The ACL Anthology
        Network Corpus*, 2009, ACL.
    """
    max_length = checks.count("max_length", max_length)
    part = _of_split(split, {"train": "train", "valid": "eval", "test": "test"})
    [path] = _held(directory, [f"new_aan_pairs.{part}.tsv"])
    rows, labels = [], []
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            columns = line.rstrip(b"\r\n").split(b"\t")
            try:
                label, _, _, *texts = columns
                labels.append([0.0, 1.0].index(float(label)))
                one, other = texts
            except ValueError as error:
                raise ValueError(
                    f"{path}, line {number}, must have a label of 0 or 1, two names "
                    f"and two texts between tabs: {error}"
                ) from error
            rows += [_byte_tokens(text, max_length, path) for text in (one, other)]
    tokens, lengths = pack(rows, max_length)
    return Tokens(
        tokens.reshape(-1, 2, max_length),
        lengths.reshape(-1, 2),
        np.array(labels, np.int32),
    )


def read_pathfinder(directory: str | os.PathLike[str]) -> Signals:
    """LRA's Pathfinder and Path-X: whether a dashed path joins two circles.

    Args:
        directory: A folder of one difficulty and size, such as
            `pathfinder32/curv_contour_length_14`, with `imgs` and `metadata`, whose
            files `<number>.npy` are text: folder, image, a number, label, ...

    Returns:
        Pixels from 0 to 1, row by row, float32: x (n, height * width, 1), 4 kB a
        sample at 32 x 32; labels 0 or 1. All samples in the files' order: LRA trains on
        80 %, keeps 10 % to validate and 10 % to test. Images without a byte (the
        official files have one) are left out.

    Raises:
        ValueError: Without metadata, for a line that is not such, or if the images
            differ in size.
        FileNotFoundError: Without one of the folders or images.

    References:
        Drew Linsley et al., *Learning long-range spatial dependencies with horizontal
        gated recurrent units*, 2018, arXiv:1805.08315.
    """
    _, folder = _held(directory, ["imgs", "metadata"])
    files = sorted(folder.glob("*.npy"), key=lambda path: (len(path.name), path.name))
    names, labels = [], []
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            match line.split():
                case [where, name, _, ("0" | "1") as label, *_]:
                    names.append(f"{where}/{name}")
                    labels.append(int(label))
                case _:
                    raise ValueError(f"{file} must name images and labels: {line!r}.")
    if not names:
        raise ValueError(f"`directory` must hold metadata: none in {folder}/*.npy.")
    from matplotlib.image import imread  # slow to import

    images, kept = [], []
    for path, label in zip(_held(directory, names), labels, strict=True):
        if path.stat().st_size:
            image = imread(path)
            images.append(image if image.ndim == 2 else image[..., :3] @ _LUMA)
            kept.append(label)
        if images and images[-1].shape != images[0].shape:
            raise ValueError(f"{path} is {images[-1].shape}, not {images[0].shape}.")
    x = np.stack(images).reshape(len(images), -1, 1)
    return Signals(x, np.array(kept, np.int32))
