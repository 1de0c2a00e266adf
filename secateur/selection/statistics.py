# SPDX-License-Identifier: Apache-2.0
"""Statistics of a model that calibration measures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from secateur.bundle.layout import Dimensions, Layout, ModelIdentity

if TYPE_CHECKING:
    from torch import Tensor
Floats = NDArray[np.float32]


def _nothing() -> Floats:
    return np.zeros(0, np.float32)


class Projections(Protocol):
    """Input side of a decoder layer's attention. B batch, S rows, D width, H / Hkv heads of dh.

    query, key  weights [H * dh, D] and [Hkv * dh, D], and their biases or None
    """

    query: Tensor
    key: Tensor
    query_bias: Tensor | None
    key_bias: Tensor | None

    def normalize(self, rows: Tensor) -> Tensor:
        """The layer's own norm before attention: [B, S, D] -> [B, S, D]."""

    def heads(self, query: Tensor, key: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Projected rows [B, S, H * dh] and [B, S, Hkv * dh] as heads after RoPE: [B, H, S, dh], [B, Hkv, S, dh]."""


class LayerRows(NamedTuple):
    """Input of one decoder layer of the unpruned model, for each sample; prompts differ in length.

    number       of the layer
    rows         C tensors [1, S, D]
    projections  the layer's norm, query and key projections
    """

    number: int
    rows: list[Tensor]
    projections: Projections


@dataclass(frozen=True)
class Statistics:
    """Measurements over a calibration set, L decoder layers, C samples, N vision tokens.

    similarity       [L, C, N]  cosine between a vision token's hidden state before and after layer l
    attention        [L, C]     attention of the last prompt row to all vision tokens, softmax, mean over heads
    drop_divergence  [L, C]     KL(full || dropped) of the next token when no vision token enters layer l or later, nats
                                (the first 20 samples at most)
    cross_attention  [L, C, N]  attention of the rows after the image to a vision token: largest head, sum over rows
    self_attention   [L, C, N]  the same of the vision rows
    encoder_variance [C, 2]     variance over patches of received.-2 and of given.-2, see `selector.Selector`
    layers           walk through the unpruned model layer by layer, with all samples

    Statistics that are not measured are empty, `layers` is None. `work` is a folder for the state from which a killed
    calibration resumes; `progress` is called with (step, steps done, steps in all).
    """

    model: ModelIdentity
    dimensions: Dimensions
    layout: Layout
    samples: int
    seed: int
    similarity: Floats = field(default_factory=_nothing)
    attention: Floats = field(default_factory=_nothing)
    drop_divergence: Floats = field(default_factory=_nothing)
    cross_attention: Floats = field(default_factory=_nothing)
    self_attention: Floats = field(default_factory=_nothing)
    encoder_variance: Floats = field(default_factory=_nothing)
    layers: Callable[[], Iterator[LayerRows]] | None = None
    work: Path | None = None
    progress: Callable[[str, int, int], None] = lambda step, done, total: None
