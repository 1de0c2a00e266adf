# SPDX-License-Identifier: Apache-2.0
"""Handwritten digits of the demo, 8x8 pixels.

Source: "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository (E. Alpaydin, C. Kaynak, 1998,
https://doi.org/10.24432/C50P49), licence CC BY 4.0, in the form bundled with scikit-learn (`load_digits`, 1797 images
of 13 writers, in the order of their forms). `digits.npz` beside this file is a copy without changes to the pixels, so
that the demo runs where scikit-learn is not installed:

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

# Contiguous blocks, because the order of the images is by writer (about 138 each): a test digit is in no handwriting
# seen in training. The validation block takes the two writers whom the borders would cut.
BLOCKS: dict[str, tuple[int, int]] = {
    "train": (0, 1317),
    "calibration": (0, 1317),
    "validation": (1317, 1437),
    "test": (1437, 1797),
}


def digit_images(split: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Images uint8 [n, 8, 8] (ink 0 .. 16) and labels uint8 [n] of one split."""
    if split not in BLOCKS:
        raise UnknownName("split", split, BLOCKS)
    first, end = BLOCKS[split]
    images, labels = _arrays()
    return images[first:end], labels[first:end]


def write_digits(path: Path = FILE) -> None:
    """Make digits.npz from scikit-learn's copy of the data set (the only use of scikit-learn in the demo)."""
    bundled = import_module("sklearn.datasets").load_digits()
    np.savez_compressed(path, images=bundled.images.astype(np.uint8), labels=bundled.target.astype(np.uint8))


@lru_cache(maxsize=1)
def _arrays() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    with np.load(FILE, allow_pickle=False) as stored:
        return stored["images"], stored["labels"]
