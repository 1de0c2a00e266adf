# SPDX-License-Identifier: Apache-2.0
"""Which decoder layers to prune, from how much each layer changes the vision tokens (arXiv 2505.22038, section 4.3).

The paper says: prune immediately before and immediately after the layers that change the meaning of vision tokens.
It gives the statistic and, for LLaVA-1.5, the layers, but no rule between the two; the rule here is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secateur.selection.budget import increasing

LLAVA_LAYERS = (3, 6, 14)  # of 32, released constants
LLAVA_DROP = 22
LLAVA_SHARES = (1 / 2, 1 / 4, 1 / 12)
TAU = 0.93  # the paper's, for LLaVA-1.5


@dataclass(frozen=True)
class Stages:
    """What the rule found. `layers` are the entries to prune, empty when `problem` says why there are none.

    `drop` is the layer from which nothing changes any more, if there is one.
    """

    onset: int | None
    peak: int
    layers: tuple[int, ...]
    drop: int | None
    problem: str = ""


def changed(similarity: NDArray[np.float32], tau: float) -> list[float]:
    """Share of vision tokens below `tau` in each layer: similarity [L, C, N] -> L values."""
    return [float(share) for share in (similarity < tau).mean((1, 2))]


def tuned_tau(similarity: NDArray[np.float32]) -> float:
    """The threshold, in steps of 0.001, at which the most changed layer changes nearest to half of the tokens.

    For LLaVA-1.5 the paper's 0.93 gives 0.56. The last layer does not count, see `stages`.
    """
    ordered = np.sort(similarity[:-1].reshape(len(similarity) - 1, -1), axis=1)
    taus = (np.arange(1, 1000) / 1000).astype(ordered.dtype)
    most = np.stack([np.searchsorted(row, taus, side="left") for row in ordered]).max(0) / ordered.shape[1]
    return (1 + int(np.abs(most - 0.5).argmin())) / 1000


def stages(change: Sequence[float], epsilon: float) -> Stages:
    """Prune early, on entry to the first changing layer, and after the change has passed its first low.

    Args:
        change: share of tokens that each of the L layers changes. The last layer prepares the output rather than
            the meaning, and always changes much: it is left out.
        epsilon: a share up to this counts as no change.
    """
    inner = list(change[:-1])
    peak = int(np.argmax(inner))
    onset = next((i for i, share in enumerate(inner) if share > epsilon), None)
    if onset is None:
        return Stages(None, peak, (), None, f"no layer changes more than {epsilon:g} of the vision tokens")
    first = max(2, min(3, onset - 2))
    second = max(onset, first + 2)
    low = next((i for i in range(peak + 1, len(inner)) if _is_low(inner, i, epsilon)), None)
    if low is None:
        return Stages(onset, peak, (), None, f"the change does not fall to a low after its peak at layer {peak}")
    layers = (first, second, low + 1)
    if not first < second < low + 1 < len(change):
        return Stages(onset, peak, (), None, f"the rule gives layers {layers} of {len(change)}, which do not increase")
    quiet = (i for i in range(low + 2, len(inner)) if max(inner[i:]) <= epsilon)
    return Stages(onset, peak, layers, next(quiet, None))


def _is_low(inner: Sequence[float], i: int, epsilon: float) -> bool:
    """A local minimum, or a fall to nothing, which is one whatever comes after."""
    rises = i + 1 < len(inner) and inner[i] < inner[i + 1]
    return inner[i] <= inner[i - 1] and (rises or inner[i] <= epsilon)


def scaled_layers(model_layers: int) -> tuple[int, ...]:
    """The released LLaVA-1.5 layers, scaled by depth and kept apart: for a model that was not measured."""
    room = max(1, min(len(LLAVA_LAYERS), model_layers - 1))
    return increasing([layer * model_layers / 32 for layer in LLAVA_LAYERS[:room]], model_layers)


def scaled_drop(model_layers: int, after: int) -> int | None:
    """The released layer of the final drop, scaled by depth, behind layer `after`; None if there is no room."""
    layer = max(round(LLAVA_DROP * model_layers / 32), after + 1)
    return layer if layer < model_layers else None
