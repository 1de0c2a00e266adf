# SPDX-License-Identifier: Apache-2.0
"""Debug check of all graph outputs: find the first value outside of the safe range of its dtype.

The check waits for each graph and copies its outputs to the host, so it is slow. Answers do not change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from secateur.bundle.manifest import GraphSpec, Manifest, TensorSpec
from secateur.errors import SecateurError
from secateur.runtime.backends import base
from secateur.runtime.observed_backend import Buffers, ObservedBackend

SAFE = 0.5
"""Safe share of a dtype's range: the sum of two such values still fits."""
ROWLESS = ("logits", "query", "text_query")
"""Outputs without a row axis, of the last row or of a mean over rows."""
OWN = ("vision", "gate")
"""Kinds of graphs that each image size has its own of."""


@dataclass(frozen=True)
class OutOfRange:
    """The first value outside of the safe range.

    row      name of the row, such as "vision token 17" (counted over all images of the sample) or "text row 3";
             "" for a tensor without rows
    worst    the value: inf, NaN, or a magnitude above the limit
    largest  largest finite magnitude in the tensor; 0 if there is none
    """

    graph: str
    tensor: str
    sample: int
    row: str
    worst: float
    largest: float
    limit: float
    dtype: str

    def __str__(self) -> str:
        where = f"'{self.tensor}' at {self.row}" if self.row else f"'{self.tensor}'"
        mend = "--dtype fp32" if self.dtype == "bfloat16" else "--dtype fp32, or bf16 if the target supports it"
        return (
            f"graph '{self.graph}' gives {self.worst:g} in {where} (sample {self.sample}; the largest finite value is "
            f"{self.largest:g}, the safe limit of {self.dtype} is {self.limit:g}); export with {mend}"
        )


class RangeCheck(ObservedBackend):
    """Runs another backend, and stops at the first output that is not finite or above `share` of its dtype's range.

    largest  largest finite magnitude in the outputs of each graph so far
    found    the value that stopped the run; None: no such value
    """

    def __init__(self, backend: base.Backend, manifest: Manifest, share: float = SAFE) -> None:
        super().__init__(backend, self._check)
        self._share = share
        self._graphs = {graph.name: graph for graph in manifest.graphs}
        self._layouts = {
            graph.name: size.layout for size in manifest.buckets for graph in size.graphs if graph.kind in OWN
        }
        self._layout = manifest.layout
        self._seen: base.Array | None = None  # kept vision tokens of each image after the encoder [B*I,k]; None: all
        self._alive: base.Array | None = None  # kept vision tokens of each sample in the decoder [B,I*k]
        self.largest: dict[str, float] = {}
        self.found: OutOfRange | None = None

    def _check(self, graph: str, inputs: Buffers, outputs: Buffers) -> None:
        """Check every output of a run.

        Raises:
            SecateurError: an output is outside of the safe range; names the graph, the tensor and the row.
        """
        spec = self._graphs[graph]
        self._track(spec, outputs)
        for tensor in spec.outputs:
            self._check_tensor(spec, tensor, inputs, outputs[tensor.name].numpy())

    def _track(self, spec: GraphSpec, outputs: Buffers) -> None:
        """Track the kept vision tokens, and the layout of the current image size."""
        self._layout = self._layouts.get(spec.name, self._layout)
        index = next((outputs[x.name].numpy() for x in spec.outputs if x.flows_to == "vision_index"), None)
        if spec.kind == "vision":
            self._seen = None
        elif spec.kind == "embed":
            self._alive = None if self._seen is None else self._layout.of_samples(self._seen)
        elif index is not None and _in_encoder(spec):
            self._seen = index.copy()
        elif index is not None:
            self._alive = index.copy()

    def _check_tensor(self, spec: GraphSpec, tensor: TensorSpec, inputs: Buffers, array: base.Array) -> None:
        if not array.size or not is_float(array.dtype):
            return
        sizes = np.abs(array.astype(np.float32 if array.dtype.itemsize < 4 else array.dtype))
        limit = self._share * largest(array.dtype)
        bad = ~(sizes <= limit)
        finite = float(np.max(sizes, where=np.isfinite(sizes), initial=0.0))
        self.largest[spec.name] = max(self.largest.get(spec.name, 0.0), finite)
        if not bad.any():
            return
        has_rows = array.ndim > 1 and tensor.flows_to not in ROWLESS
        if has_rows and tensor.shape[0] == "B":  # keys and values have rows on the first axis
            array, bad = array.swapaxes(0, 1), bad.swapaxes(0, 1)
        at = np.unravel_index(int(np.argmax(bad)), bad.shape)  # the first row, and its first sample
        row, sample = (int(at[0]), int(at[1])) if has_rows else (0, int(at[0]))
        where = ""
        if _in_encoder(spec):
            sample, where = self._token_name(spec, row, sample)
        elif has_rows:
            where = self._row_name(spec, tensor, inputs, row, sample, len(array))
        self.found = OutOfRange(
            spec.name, tensor.name, sample, where, float(array[at]), finite, limit, array.dtype.name
        )
        raise SecateurError(str(self.found))

    def _token_name(self, spec: GraphSpec, row: int, image: int) -> tuple[int, str]:
        """Return the sample of an image, and the name of the original vision token of a row."""
        token = row if spec.kind == "vision" or self._seen is None else int(self._seen[image][row])
        sample, number = divmod(image, self._layout.images)
        return sample, f"vision token {number * self._layout.image_tokens + token}"

    def _row_name(self, spec: GraphSpec, tensor: TensorSpec, inputs: Buffers, row: int, sample: int, rows: int) -> str:
        """Return the name of a row: a vision token, a text row of the prompt, or a row of a follow-up question."""
        tokens = {place: token for token, place in enumerate(self._layout.vision_rows)}
        dropped: set[int] = set()
        if self._alive is not None and not tensor.name.startswith("full_"):
            left = set(self._alive[min(sample, len(self._alive) - 1)].tolist())  # a whole batch may share one prompt
            dropped = {place for place, token in tokens.items() if token not in left}
        past = next((x.shape[0] for name, x in inputs.items() if name.startswith("past_")), 0)
        if past > self.masked_past or spec.kind == "embed" and rows + len(dropped) <= self._layout.rows:
            return f"new row {row} of {rows}"
        original = [n for n in range(rows + len(dropped)) if n not in dropped][row]
        return f"vision token {tokens[original]}" if original in tokens else f"text row {original}"


def _in_encoder(spec: GraphSpec) -> bool:
    """Return whether the rows of all outputs are vision tokens of one image each."""
    return spec.kind in ("vision", "projector") or any(x.flows_to == "features" for x in spec.outputs)


def is_float(dtype: np.dtype[Any]) -> bool:
    """Return whether `dtype` is a floating-point type; for bf16, numpy's `kind` is not 'f'."""
    return dtype.kind == "f" or dtype.name == base.BF16


def largest(dtype: np.dtype[Any]) -> float:
    """Return the largest finite number of a floating-point dtype."""
    if dtype.name == base.BF16:
        return float(2.0**127 * (2 - 2**-7))
    return float(np.finfo(dtype).max)
