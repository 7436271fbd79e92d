"""Photographs against scikit-learn's own pixels."""

import sys

import numpy as np
import pytest

from jaxlr.data import photograph


@pytest.mark.parametrize("name", ["china", "flower"])
def test_photograph_is_grey_and_its_own(name):
    pytest.importorskip("sklearn")
    image = np.asarray(photograph(name, 256))
    assert image.shape == (256, 256)
    assert image.min() >= 0
    assert image.max() <= 1
    assert image.std() > 0.1  # a picture, not a constant
    from sklearn.datasets import load_sample_image

    color = load_sample_image(f"{name}.jpg")[:, 106:533] / 255
    luma = color @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(photograph(name, 427), luma, atol=1e-6)
    np.testing.assert_allclose(image.mean(), luma.mean(), atol=1e-3)


@pytest.mark.misuse
def test_misuse_is_named(monkeypatch):
    with pytest.raises(ValueError, match=r"photograph 'chian'.*'china'.*flower"):
        photograph("chian")
    with pytest.raises(ValueError, match=r"`size` must be in 1\.\.427, got 428"):
        photograph("china", 428)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'sklearn.*pip install "jaxlr\[data\]"'):
        photograph("china")
