# SPDX-License-Identifier: Apache-2.0
"""Handwritten digits of the demo, 8x8 pixels.

Source: "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository (E. Alpaydin, C. Kaynak, 1998,
https://doi.org/10.24432/C50P49), license CC BY 4.0, as bundled with scikit-learn (`load_digits`, 1797 images
of 13 writers, in the order of their forms). `digits.npz` in this folder is a copy with unchanged pixels, so that the
demo runs without scikit-learn:

    images  uint8 [1797, 8, 8]   ink, 0 (paper) .. 16
    labels  uint8 [1797]         0 .. 9
"""

from functools import lru_cache
from importlib import import_module
from pathlib import Path

import numpy as np
import numpy.typing as npt

from secateur.errors import UnknownName

__all__ = ["BLOCKS", "digit_images", "write_digits"]

FILE = Path(__file__).parent / "digits.npz"

# Contiguous blocks, because the images are ordered by writer (about 138 each): the writers of test digits do not occur
# in training. The validation block contains the two writers that its borders would split.
BLOCKS: dict[str, tuple[int, int]] = {
    "train": (0, 1317),
    "calibration": (0, 1317),
    "validation": (1317, 1437),
    "test": (1437, 1797),
}


def digit_images(split: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return images uint8 [n, 8, 8] (ink 0 .. 16) and labels uint8 [n] of one split."""
    if split not in BLOCKS:
        raise UnknownName("split", split, BLOCKS)
    first, end = BLOCKS[split]
    images, labels = _arrays()
    return images[first:end], labels[first:end]


def write_digits(path: Path = FILE) -> None:
    """Write digits.npz from scikit-learn's copy of the data set (the only use of scikit-learn in the demo)."""
    bundled = import_module("sklearn.datasets").load_digits()
    np.savez_compressed(path, images=bundled.images.astype(np.uint8), labels=bundled.target.astype(np.uint8))


@lru_cache(maxsize=1)
def _arrays() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    with np.load(FILE, allow_pickle=False) as stored:
        return stored["images"], stored["labels"]
