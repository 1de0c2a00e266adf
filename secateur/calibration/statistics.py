# SPDX-License-Identifier: Apache-2.0
"""What calibration measures on a model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secateur.artifacts import Dimensions, Layout, ModelIdentity


@dataclass(frozen=True)
class Statistics:
    """Measurements over a calibration set, L decoder layers, C samples, N vision tokens.

    similarity  [L, C, N] float32: cosine between a vision token's hidden state before and after layer l
    attention   [L, C] float32: attention of the last prompt row to all vision tokens, softmax, mean over heads

    Either is empty (zero samples) where no method asked for it.
    """

    model: ModelIdentity
    dimensions: Dimensions
    layout: Layout
    samples: int
    seed: int
    similarity: NDArray[np.float32]
    attention: NDArray[np.float32]
