# SPDX-License-Identifier: Apache-2.0
"""Contents of a bundle: graphs and their tensors, schedules, image sizes (manifest.json)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from secateur.bundle.layout import Dimensions, Layout, ModelIdentity
from secateur.bundle.names import check_file, check_names, check_tensor
from secateur.bundle.size_limits import MOST_LISTED, check_sizes
from secateur.errors import BadBundle, InputError, UnknownName

SCHEMA = 2
BITS = {"int8": 8, "int4": 4}
BLOCKS = (16, 32, 64, 128, 256)
OPERATOR, DEQUANTIZED = "MatMulNBits", "DequantizeLinear"
FLOAT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a graph. A dimension is a number, or a sum of symbols such as "P+S" or "S-72".

    In ONNX an output cannot have the name of an input, so an output that is passed on is named like
    "hidden_states.out"; `flows_to` is its name as an input of the next graph.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @property
    def flows_to(self) -> str:
        return self.name.removesuffix(".out")


@dataclass(frozen=True)
class WeightSpec:
    """A constant input of a graph: a weight [1, N, K] or a table [N, K], `offset` bytes after the start of a file.

    Several graphs, and several weights of a graph, may refer to the same bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int

    def __post_init__(self) -> None:
        if self.dtype not in FLOAT_BYTES or not self.shape or min(self.shape) < 1 or self.offset < 0:
            raise BadBundle(f"weight '{self.name}' is {self.dtype} {list(self.shape)} at {self.offset} of {self.file}")

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * FLOAT_BYTES[self.dtype]


@dataclass(frozen=True)
class GraphSpec:
    """An ONNX graph of a bundle; `kind` is vision, projector, embed, rotary, segment or gate.

    `layers` is the half-open range of decoder layers of a segment; (layer, layer) for a gate. The graph's inputs are
    `inputs` and, after them, `weights`.
    """

    name: str
    kind: str
    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    layers: tuple[int, int] | None = None
    weights: tuple[WeightSpec, ...] = ()

    @property
    def all_inputs(self) -> tuple[TensorSpec, ...]:
        return (*self.inputs, *(TensorSpec(weight.name, weight.dtype, weight.shape) for weight in self.weights))


@dataclass(frozen=True)
class GateRef:
    """A gate of a schedule in a bundle: `graph` runs before decoder layer `layer`, or in the encoder.

    views  kept tokens of each view, if there are several views
    """

    layer: int
    graph: str
    keep: int
    kind: str = "prune"
    views: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.views and sum(self.views) != self.keep:
            raise BadBundle(f"gate '{self.graph}' keeps {self.keep} tokens, but {sum(self.views)} over its views")

    @property
    def of_views(self) -> tuple[int, ...]:
        """Kept tokens of each view."""
        return self.views or (self.keep,)


@dataclass(frozen=True)
class ScheduleRef:
    """A schedule of a bundle: its file, its gate graphs in order, and its position policy."""

    file: str
    gates: tuple[GateRef, ...]
    positions: str = "original"


@dataclass(frozen=True)
class Quantization:
    """Integers of type `name`, with a scale for each block of consecutive inputs of one output.

    symmetric       True: the zero point is fixed; False: every block has its own zero point
    operator        "MatMulNBits" (ONNX Runtime), or "DequantizeLinear" before a MatMul (ONNX)
    accuracy_level  of MatMulNBits: 0 multiplies in the dtype of the activations, 4 rounds these to 8 bits first
    """

    name: str
    block_size: int = 32
    symmetric: bool = False
    operator: str = OPERATOR
    accuracy_level: int = 0

    def __post_init__(self) -> None:
        if self.name not in BITS:
            raise InputError(f"quantization '{self.name}' is not known; use one of {', '.join(BITS)}")
        if self.block_size not in BLOCKS:
            raise InputError(f"block size {self.block_size} is not known; use one of {', '.join(map(str, BLOCKS))}")
        if self.operator not in (OPERATOR, DEQUANTIZED):
            raise InputError(f"quantized weights are read by {OPERATOR} or {DEQUANTIZED}, not by '{self.operator}'")
        if self.accuracy_level not in (0, 4):
            raise InputError(f"accuracy level {self.accuracy_level} is not known; use 0 (exact) or 4 (8-bit rows)")
        if self.operator == DEQUANTIZED and (self.name, self.symmetric, self.accuracy_level) != ("int4", True, 0):
            raise InputError(f"{DEQUANTIZED} reads symmetric int4 at accuracy level 0, not {self}")

    @property
    def bits(self) -> int:
        return BITS[self.name]

    def __str__(self) -> str:
        level = f", accuracy level {self.accuracy_level}" if self.accuracy_level else ""
        return f"{self.name} ({'symmetric' if self.symmetric else 'asymmetric'}, blocks of {self.block_size}{level})"


@dataclass(frozen=True)
class Bucket:
    """Another image size of a bundle, with its own vision encoder and gates, and the same segments."""

    layout: Layout
    schedules: dict[str, ScheduleRef]


@dataclass(frozen=True)
class Manifest:
    """Contents of a bundle (manifest.json).

    source        value of --model
    layout        of the first image size, as are `schedules` and the vision tokens of `model`
    files         sha256 of each file
    others        the other image sizes
    quantization  format of the decoder weights; None: `dtype`
    """

    model: ModelIdentity
    source: str
    target: str
    dtype: str
    opset: int
    dimensions: Dimensions
    layout: Layout
    graphs: tuple[GraphSpec, ...]
    schedules: dict[str, ScheduleRef]
    files: dict[str, str]
    versions: dict[str, str]
    others: tuple[Bucket, ...] = ()
    quantization: Quantization | None = field(default=None, metadata={"key": "quantisation"})
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise BadBundle(f"manifest schema {self.schema} is not known; this version reads schema {SCHEMA}")
        sizes = [self.layout.size, *(other.layout.size for other in self.others)]
        if len(set(sizes)) != len(sizes):
            raise BadBundle("the manifest has an image size twice; export the bundle again")
        for other in self.others:
            known, own = (
                {"schedules": sorted(schedules), "images": layout.images, "axes": layout.axes}
                for layout, schedules in ((self.layout, self.schedules), (other.layout, other.schedules))
            )
            if name := next((name for name in known if own[name] != known[name]), None):
                raise BadBundle(
                    f"in the manifest the image size {other.layout.size} has {name} {own[name]}, the first one has "
                    f"{known[name]}; export the bundle again"
                )
        schedules = [*self.schedules.items(), *(s for other in self.others for s in other.schedules.items())]
        self._check_names([name for name, _ in schedules], [schedule.file for _, schedule in schedules])
        graphs = {g.name for g in self.graphs}
        if len(graphs) != len(self.graphs):
            raise BadBundle("the manifest has a graph twice; export the bundle again")
        for name, schedule in schedules:
            for gate in schedule.gates:
                if gate.graph not in graphs:
                    raise BadBundle(f"schedule '{name}' needs the graph '{gate.graph}', which is not in the manifest")

    def _check_names(self, schedules: Sequence[str], files: Sequence[str]) -> None:
        counts = {"graphs": len(self.graphs), "schedules": len(self.schedules), "files": len(self.files)}
        check_sizes("the number of ", counts | {"image sizes": 1 + len(self.others)}, MOST_LISTED)
        weights = self.weights
        check_names("graph", [graph.name for graph in self.graphs])
        check_names("schedule", schedules)
        for file in (*self.files, *(g.file for g in self.graphs), *files, *(w.file for w in weights)):
            check_file(file)
        for graph in self.graphs:
            for tensor in graph.all_inputs + graph.outputs:
                check_tensor(graph.name, tensor.name)

    def graph(self, name: str) -> GraphSpec:
        """Return the graph named `name`.

        Raises:
            UnknownName: there is no such graph.
        """
        found = {g.name: g for g in self.graphs}
        if name not in found:
            raise UnknownName("graph", name, found)
        return found[name]

    @property
    def weights(self) -> tuple[WeightSpec, ...]:
        """Weights that are inputs of graphs."""
        return tuple(weight for graph in self.graphs for weight in graph.weights)

    @property
    def segments(self) -> tuple[GraphSpec, ...]:
        """Decoder segments in order."""
        return tuple(g for g in self.graphs if g.kind == "segment")

    @property
    def vision(self) -> GraphSpec:
        """The vision encoder of the first image size."""
        return self.graph(self.layout.vision)

    @property
    def buckets(self) -> tuple[Manifest, ...]:
        """A manifest for each image size, with only that size."""
        every: tuple[Bucket, ...] = (Bucket(self.layout, self.schedules), *self.others)
        own = [{b.layout.vision, *(gate.graph for s in b.schedules.values() for gate in s.gates)} for b in every]
        return tuple(
            replace(
                self,
                model=replace(self.model, vision_tokens=bucket.layout.vision_tokens, image_size=bucket.layout.size),
                layout=bucket.layout,
                schedules=bucket.schedules,
                graphs=tuple(g for g in self.graphs if g.name in names or g.kind not in ("vision", "gate")),
                others=(),
            )
            for bucket, names in zip(every, own, strict=True)
        )
