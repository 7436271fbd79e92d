"""Digits, Fourier modes, and readers on files made here in the official formats."""

import io
import pickle
import struct
import sys
from typing import Any

from matplotlib.image import imsave
import numpy as np
import pytest

from jaxlr.data import (
    listops_value,
    LISTOPS_VOCABULARY,
    read_cifar,
    read_listops,
    read_pathfinder,
    read_retrieval,
    read_text,
)


BasePickler: Any = pickle._Pickler


class Python2Pickler(BasePickler):
    """Writes bytes as Python 2 wrote its strings, as the official files have them."""

    def save_bytes(self, text):
        self.write(pickle.BINSTRING + struct.pack("<i", len(text)) + text)
        self.memoize(text)

    dispatch = {**BasePickler.dispatch, bytes: save_bytes}  # noqa: RUF012


def python2_pickle(content):
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(content)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


@pytest.fixture
def cifar(tmp_path):
    """A directory in CIFAR-10's format, three images a file, and what it holds."""
    rng = np.random.default_rng(0)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    pixels = rng.integers(0, 256, (6, 3, 3072)).astype(np.uint8)
    labels = rng.integers(0, 10, (6, 3))
    for name, data, batch_labels in zip(names, pixels, labels, strict=True):
        content = {
            b"data": data,
            b"labels": batch_labels.tolist(),
            b"filenames": [b"x"],
        }
        (tmp_path / name).write_bytes(python2_pickle(content))
    return tmp_path, pixels, labels


def test_cifar_is_read_pixel_by_pixel(cifar):
    directory, pixels, labels = cifar
    train = read_cifar(str(directory))
    test = read_cifar(directory, "test", is_gray=True)
    assert train.x.shape == (15, 1024, 3)
    assert train.x.dtype == test.x.dtype == np.float32
    np.testing.assert_array_equal(train.labels, labels[:5].ravel())
    np.testing.assert_array_equal(test.labels, labels[5])
    for n, l, channel in [(0, 0, 0), (4, 33, 1), (14, 1023, 2)]:
        byte = pixels[:5].reshape(15, 3072)[n, channel * 1024 + l]
        assert train.x[n, l, channel] == np.float32(byte) / np.float32(255)
    red, green, blue = pixels[5].reshape(3, 3, 1024).swapaxes(0, 1) / 255
    gray = 0.299 * red + 0.587 * green + 0.114 * blue
    np.testing.assert_allclose(test.x[..., 0], gray, rtol=1e-5)


class Evil:
    def __reduce__(self):
        return exec, ("import sys; sys.modules['has_run'] = sys",)


@pytest.mark.misuse
def test_cifar_runs_no_code_and_names_a_bad_file(cifar):
    directory, pixels, labels = cifar
    path = directory / "test_batch"
    good = {b"data": pixels[5], b"labels": labels[5].tolist()}
    for content in (
        good | {b"labels": Evil()},
        good | {b"labels": [1]},
        good | {b"data": pixels[5, :, 1:]},
        good | {b"data": pixels[5].astype(np.int8)},
        {b"labels": [1]},
    ):
        path.write_bytes(python2_pickle(content))
        with pytest.raises(ValueError, match="test_batch is not a batch of CIFAR-10"):
            read_cifar(directory, "test")
    assert "has_run" not in sys.modules
    path.write_bytes(b"no pickle")
    with pytest.raises(ValueError, match="test_batch is not a batch"):
        read_cifar(directory, "test")


def test_listops_files_are_read_in_the_vocabulary_of_the_generator(tmp_path):
    for name, digit in (("train", 4), ("val", 5), ("test", 6)):
        (tmp_path / f"basic_{name}.tsv").write_text(
            "Source\tTarget\n"
            f"( ( ( [MAX {digit} ) ( ( ( [SM 1 ) 2 ) ] ) ) ] )\t{digit}\n"
            "( ( ( [MIN 0 ) 9 ) ] )\t0\n"
        )
    for split, digit in (("train", 4), ("valid", 5), ("test", 6)):
        data = read_listops(tmp_path, split, max_length=9)
        words = [LISTOPS_VOCABULARY[token] for token in data.tokens[0]]
        assert words == [
            "[MAX",
            str(digit),
            "[SM",
            "1",
            "2",
            "]",
            "]",
            "<pad>",
            "<pad>",
        ]
        np.testing.assert_array_equal(data.lengths, [7, 4])
        np.testing.assert_array_equal(data.labels, [digit, 0])
        assert [listops_value(row) for row in data.tokens] == [digit, 0]


@pytest.mark.misuse
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1\t2\n", "columns Source and Target"),
        ("", "columns Source and Target"),
        ("Source\tTarget\n( [MUL 1 2 ] )\t2\n", r"line 2, .*\[MUL"),
        ("Source\tTarget\n[SM 1 2 ]\t3\n[SM 1 2 ]\n", "line 3, is no expression"),
        ("Source\tTarget\n[SM 1 2 3 ]\t6\n", "`max_length` must be at least 5"),
    ],
)
def test_a_bad_listops_file_is_named(tmp_path, text, words):
    (tmp_path / "basic_test.tsv").write_text(text)
    with pytest.raises(ValueError, match=words):
        read_listops(tmp_path, "test", max_length=4)


def reviews(directory):
    for split in ("train", "test"):
        for kind in ("neg", "pos"):
            folder = directory / split / kind
            folder.mkdir(parents=True)
            (folder / "1_9.txt").write_text(f"{split} {kind} ü", encoding="utf-8")
            (folder / "0_9.txt").write_bytes(b"\x00ab")


def test_reviews_are_read_byte_by_byte(tmp_path):
    reviews(tmp_path)
    for split in ("train", "test"):
        data = read_text(tmp_path, split, max_length=12)
        np.testing.assert_array_equal(data.labels, [0, 0, 1, 1])
        texts = [b"\x00ab"] + [f"{split} {k} ü".encode()[:12] for k in ("neg", "pos")]
        for row, text in zip((0, 1, 3), texts, strict=True):
            np.testing.assert_array_equal(
                data.tokens[row], [b + 1 for b in text] + [0] * (12 - len(text))
            )
            assert data.lengths[row] == len(text)


def test_pairs_of_papers_are_read(tmp_path):
    lines = [b"1.0\tP1\tP2\tb'one'\tb'second'", b"0.0\tP3\tP1\tx\t"]
    (tmp_path / "new_aan_pairs.eval.tsv").write_bytes(b"\n".join(lines) + b"\n")
    data = read_retrieval(tmp_path, "valid", max_length=7)
    assert data.tokens.shape == (2, 2, 7)
    np.testing.assert_array_equal(data.labels, [1, 0])
    np.testing.assert_array_equal(data.lengths, [[6, 7], [1, 0]])
    assert bytes(data.tokens[0, 1] - 1) == b"b'secon"
    assert bytes(data.tokens[0, 0, :6] - 1) == b"b'one'"
    assert data.tokens[1, 0, 0] == ord("x") + 1


def pathfinder(directory, shape=(4, 3)):
    """Images of both kinds of channels, an empty one, and what should be read."""
    rng, pixels, lines = np.random.default_rng(0), [], {}
    for number in (2, 10):
        (directory / "imgs" / str(number)).mkdir(parents=True)
        for i in range(2):
            image = rng.integers(0, 256, shape).astype(np.uint8)
            name = f"imgs/{number}/sample_{i}.png"
            imsave(directory / name, np.stack([image] * 3, axis=-1))
            pixels.append(image.ravel() / 255)
            lines.setdefault(number, []).append(
                f"imgs/{number} sample_{i}.png {i} {i} 1.8 6"
            )
    (directory / "imgs" / "2" / "sample_2.png").touch()
    lines[2].insert(0, "imgs/2 sample_2.png 2 1 1.8 6")
    (directory / "metadata").mkdir()
    for number, rows in lines.items():
        (directory / "metadata" / f"{number}.npy").write_text("\n".join(rows) + "\n")
    return np.array(pixels)


def test_pathfinder_is_read_in_the_order_of_its_metadata(tmp_path):
    pixels = pathfinder(tmp_path)
    data = read_pathfinder(tmp_path)
    assert data.x.shape == (4, 12, 1)
    assert data.x.dtype == np.float32
    np.testing.assert_allclose(data.x[..., 0], pixels, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(data.labels, [0, 1, 0, 1])


def test_pathfinder_reads_images_of_one_channel(tmp_path):
    image = pytest.importorskip("PIL.Image")
    pixels = pathfinder(tmp_path)
    for path in tmp_path.glob("imgs/*/sample_[01].png"):
        image.open(path).convert("L").save(path)
    data = read_pathfinder(tmp_path)
    np.testing.assert_allclose(data.x[..., 0], pixels, rtol=0, atol=1e-6)


READERS = [
    (read_cifar, "data_batch_1"),
    (read_listops, "basic_train.tsv"),
    (read_text, "neg"),
    (read_retrieval, "new_aan_pairs.train.tsv"),
    (read_pathfinder, "imgs"),
]


@pytest.mark.misuse
@pytest.mark.parametrize(("reader", "name"), READERS, ids=[n for _, n in READERS])
def test_what_is_missing_is_named(tmp_path, reader, name):
    with pytest.raises(FileNotFoundError, match=f"`directory` must hold '{name}'"):
        reader(tmp_path / "nowhere")
    if reader is not read_pathfinder:
        with pytest.raises(ValueError, match=r"Unknown `split` 'tests'.*'test'"):
            reader(tmp_path, "tests")


@pytest.mark.misuse
def test_damage_to_texts_and_images_is_named(tmp_path):
    reviews(tmp_path)
    (tmp_path / "test" / "pos" / "0_9.txt").write_bytes(b"a\xff")
    with pytest.raises(ValueError, match=r"0_9\.txt has a byte 255"):
        read_text(tmp_path, "test")
    for path in (tmp_path / "train" / "pos").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="`directory` must hold reviews"):
        read_text(tmp_path)
    for line in (
        b"1.0\ta\tb\tc",
        b"2.0\ta\tb\tc\td",
        b"1.0\ta\tb\tc\td\te",
        b"x\t\t\t\t",
    ):
        (tmp_path / "new_aan_pairs.test.tsv").write_bytes(b"0\ta\tb\tc\td\n" + line)
        with pytest.raises(ValueError, match="line 2, must have a label"):
            read_retrieval(tmp_path, "test")
    pathfinder(tmp_path)
    imsave(tmp_path / "imgs" / "10" / "sample_0.png", np.zeros((5, 5)))
    with pytest.raises(ValueError, match=r"sample_0\.png is \(5, 5\), not \(4, 3\)"):
        read_pathfinder(tmp_path)
    (tmp_path / "imgs" / "10" / "sample_1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"sample_1\.png"):
        read_pathfinder(tmp_path)
    (tmp_path / "metadata" / "2.npy").write_text("imgs/2 sample_0.png 0 7\n")
    with pytest.raises(ValueError, match="must name images and labels"):
        read_pathfinder(tmp_path)
    for path in (tmp_path / "metadata").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="must hold metadata"):
        read_pathfinder(tmp_path)
