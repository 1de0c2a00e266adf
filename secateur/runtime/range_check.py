# SPDX-License-Identifier: Apache-2.0
"""A debug run: every output of every graph is looked at, and the first that leaves its dtype's range is named.

Each graph is waited for and its outputs are copied to the host, so a guarded run is slow; it answers the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from secateur.bundle.manifest import GraphSpec, Manifest, TensorSpec
from secateur.errors import SecateurError
from secateur.runtime.backends import base
from secateur.runtime.dtypes import is_float, largest
from secateur.runtime.receipt import Stopwatch

SAFE = 0.5
"""Share of a dtype's range that is safe: a sum of two such values still fits."""
ROWLESS = ("logits", "query", "text_query")
"""Outputs without an axis of rows: of the last row, or of a mean over rows."""
OWN = ("vision", "gate")
"""Kinds of graphs of which every image size has its own."""


@dataclass(frozen=True)
class OutOfRange:
    """Where values first left the range.

    row      what the row stands for, such as "vision token 17" (counted over all images of the sample) or "text row 3";
             "" for a tensor without rows
    worst    the value there: inf, NaN, or a magnitude beyond the limit
    largest  magnitude of the largest finite value in the tensor; 0 if there is none
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
        mend = "--dtype fp32" if self.dtype == "bfloat16" else "--dtype fp32, or bf16 where the target has it"
        return (
            f"graph '{self.graph}' gives {self.worst:g} in {where} (sample {self.sample}; the largest finite value is "
            f"{self.largest:g}, {self.limit:g} is safe in {self.dtype}); export with {mend}"
        )


class RangeCheck(base.Backend):
    """Runs another backend; stops at the first output that is not finite, or beyond `share` of its dtype's range.

    largest  magnitude of the largest value that each graph has given so far
    found    what stopped the run, if something did

    Steps are not recorded, for a recorded step cannot be looked at.
    """

    def __init__(self, backend: base.Backend, manifest: Manifest, share: float = SAFE) -> None:
        self._backend, self._share = backend, share
        self._graphs = {graph.name: graph for graph in manifest.graphs}
        self._layouts = {
            graph.name: size.layout for size in manifest.buckets for graph in size.graphs if graph.kind in OWN
        }
        self._layout = manifest.layout
        self._seen: base.Array | None = None  # vision tokens of each image behind the encoder [B*I, k]; None: all
        self._alive: base.Array | None = None  # those of each sample in the decoder [B, I*k]
        self.largest: dict[str, float] = {}
        self.found: OutOfRange | None = None
        for name in ("masked_past", "most_rows", "most_batch", "most_text"):
            setattr(self, name, getattr(backend, name))

    def load(self, graph: GraphSpec) -> None:
        self._backend.load(graph)

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any] | type | str) -> base.Buffer:
        return self._backend.allocate(shape, dtype)

    def run(self, graph: str, inputs: Mapping[str, base.Buffer], outputs: Mapping[str, base.Buffer]) -> None:
        """As the other backend.

        Raises:
            SecateurError: an output leaves the range; one line with the graph, the tensor and the row.
        """
        self._backend.run(graph, inputs, outputs)
        spec = self._graphs[graph]
        self._follow(spec, outputs)
        for tensor in spec.outputs:
            self._look(spec, tensor, inputs, outputs[tensor.name].numpy())

    def clock(self, watch: Stopwatch, stage: str) -> AbstractContextManager[None]:
        return self._backend.clock(watch, stage)

    def describe(self) -> dict[str, str]:
        return self._backend.describe()

    def close(self) -> None:
        self._backend.close()

    def _follow(self, spec: GraphSpec, outputs: Mapping[str, base.Buffer]) -> None:
        """Keep in mind which vision tokens are left, and of which image size."""
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

    def _look(self, spec: GraphSpec, tensor: TensorSpec, inputs: Mapping[str, base.Buffer], array: base.Array) -> None:
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
        if has_rows and tensor.shape[0] == "B":  # keys and values have their rows first
            array, bad = array.swapaxes(0, 1), bad.swapaxes(0, 1)
        at = np.unravel_index(int(np.argmax(bad)), bad.shape)  # the first row, and of it the first sample
        row, sample = (int(at[0]), int(at[1])) if has_rows else (0, int(at[0]))
        where = ""
        if _in_encoder(spec):
            sample, where = self._token(spec, row, sample)
        elif has_rows:
            where = self._row(spec, tensor, inputs, row, sample, len(array))
        self.found = OutOfRange(
            spec.name,
            tensor.name,
            sample,
            where,
            float(array[at]),
            finite,
            limit,
            array.dtype.name,
        )
        raise SecateurError(str(self.found))

    def _token(self, spec: GraphSpec, row: int, image: int) -> tuple[int, str]:
        """The sample of an image of a batch, and which of the sample's original vision tokens a row stands for."""
        token = row if spec.kind == "vision" or self._seen is None else int(self._seen[image][row])
        sample, number = divmod(image, self._layout.images)
        return sample, f"vision token {number * self._layout.image_tokens + token}"

    def _row(
        self,
        spec: GraphSpec,
        tensor: TensorSpec,
        inputs: Mapping[str, base.Buffer],
        row: int,
        sample: int,
        rows: int,
    ) -> str:
        """What a row stands for: an original vision token, a text row of the prompt, or a row of a later question."""
        tokens = {place: token for token, place in enumerate(self._layout.vision_rows)}
        dropped: set[int] = set()
        if self._alive is not None and not tensor.name.startswith("full_"):
            left = set(self._alive[min(sample, len(self._alive) - 1)].tolist())  # one prompt may serve a whole batch
            dropped = {place for place, token in tokens.items() if token not in left}
        past = next((x.shape[0] for name, x in inputs.items() if name.startswith("past_")), 0)
        if past > self._backend.masked_past or spec.kind == "embed" and rows + len(dropped) <= self._layout.rows:
            return f"new row {row} of {rows}"
        original = [n for n in range(rows + len(dropped)) if n not in dropped][row]
        return f"vision token {tokens[original]}" if original in tokens else f"text row {original}"


def _in_encoder(spec: GraphSpec) -> bool:
    """Whether the rows of all its outputs are vision tokens, image by image."""
    return spec.kind in ("vision", "projector") or any(x.flows_to == "features" for x in spec.outputs)
