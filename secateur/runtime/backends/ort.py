# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime, on the CPU or on a CUDA device: buffers are bound in place by address."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from secateur.bundle.manifest import GraphSpec, TensorSpec, WeightSpec
from secateur.bundle.reader import Bundle
from secateur.errors import BackendMissing, BadBundle, InputError, SecateurError, first_line
from secateur.machine import free_memory
from secateur.runtime.backends import base
from secateur.runtime.backends.base import BF16, Array, check_buffers, check_device, check_slices
from secateur.runtime.device.ort_stream import Cuda
from secateur.runtime.receipt import Stopwatch

TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": BF16,
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}
NUMBERS = {BF16: 16}
"""ONNX type numbers of dtypes that numpy does not have."""


class HostBuffer:
    """A numpy array as a buffer."""

    def __init__(self, array: Array) -> None:
        self._array = array

    @property
    def shape(self) -> tuple[int, ...]:
        return self._array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._array.dtype

    @property
    def contiguous(self) -> bool:
        """Whether there are no gaps between rows, as graphs require."""
        return bool(self._array.flags.c_contiguous)

    @property
    def address(self) -> int:
        return int(self._array.__array_interface__["data"][0])

    def view(self, *index: slice) -> HostBuffer:
        check_slices(index)
        return HostBuffer(self._array[index])

    def write(self, source: base.Buffer | Array) -> None:
        array = source if isinstance(source, np.ndarray) else source.numpy()
        if array.shape != self.shape or array.dtype != self.dtype:
            raise InputError(
                f"cannot write {array.dtype} {list(array.shape)} into a buffer of {self.dtype} {list(self.shape)}"
            )
        np.copyto(self._array, array)

    def numpy(self) -> Array:
        return self._array


class Host:
    """The CPU: buffers are numpy arrays."""

    device = "cpu"
    buffers = HostBuffer

    def __init__(self, ort: ModuleType) -> None:
        self.providers: list[Any] = ["CPUExecutionProvider"]

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any] | type | str) -> HostBuffer:
        return HostBuffer(np.zeros(shape, dtype))

    def weight(self, path: Path, weight: WeightSpec) -> HostBuffer:
        """Return the buffer of a weight: a memory map of its file."""
        mapped = np.memmap(path, mode="r", offset=weight.offset, shape=(weight.nbytes,))
        return HostBuffer(mapped.view(weight.dtype).reshape(weight.shape))

    def check(self, session: Any) -> None:
        """Do nothing: this provider is always available."""

    def run(self, session: Any, binding: Any) -> None:
        session.run_with_iobinding(binding)

    def clock(self, watch: Stopwatch, stage: str) -> AbstractContextManager[None]:
        return watch(stage)

    def describe(self) -> dict[str, str]:
        return {}

    def wait(self) -> None:
        """Do nothing: a run returns when it has finished."""

    def close(self) -> None:
        """Do nothing: Python frees the buffers."""


@dataclass
class _Session:
    """An open graph.

    bound    address and shape of each bound tensor, so that only changes are bound again
    weights  buffers of the weights, which ONNX Runtime knows by address only
    """

    session: Any
    binding: Any
    bound: dict[str, tuple[int, tuple[int, ...]]] = field(default_factory=dict)
    weights: list[Any] = field(default_factory=list)


class Backend(base.Backend):
    """One InferenceSession per graph.

    threads   CPU threads; None: ONNX Runtime decides
    resident  False: open a session for each run and drop it afterwards; slow, but only one graph is in memory
    mapped    True: weights are memory-mapped from the files and shared by the sessions; runs are slightly slower.
              None: mapped if the copies for the kernels would fill more than half of the free memory
    device    "cpu" (also None) or "cuda"

    Raises:
        BackendMissing: onnxruntime, or its CUDA provider, is not installed.
    """

    places: Mapping[str, type[Any]] = {"cpu": Host, "cuda": Cuda}

    def __init__(
        self,
        bundle: Bundle,
        threads: int | None = None,
        resident: bool = True,
        device: str | None = None,
        mapped: bool | None = None,
    ) -> None:
        place = self.places[check_device("ort", device, tuple(self.places))]
        self._ort = _import()
        self._place = place(self._ort)
        self._bundle = bundle
        self._resident = resident
        if mapped is None:
            mapped = self._place.device == Host.device and _is_large(bundle)
        self._options = self.options(threads, mapped)
        self._graphs: dict[str, GraphSpec] = {}
        self._sessions: dict[str, _Session] = {}

    def options(self, threads: int | None, mapped: bool = False) -> Any:
        """Return session options."""
        options = self._ort.SessionOptions()
        options.log_severity_level = 4  # errors are raised as exceptions
        options.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        if threads is not None:
            options.intra_op_num_threads = threads
        # Every session has its own threads; idle ones must not use the cores of the running session.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # DequantizeLinear and MatMul become MatMulNBits, by default of level 4, which rounds its rows to 8 bits.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        # A memory pattern is stored for each input shape, and every decode step has a new shape.
        options.enable_mem_pattern = False
        if mapped:
            options.add_session_config_entry("session.disable_prepacking", "1")
            # Above this level ONNX Runtime makes fp32 copies of fp16 weights when it opens a graph, not when it runs a
            # node; in its default order it would make the copies of all weights first.
            options.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
            options.execution_order = self._ort.ExecutionOrder.PRIORITY_BASED
        return options

    def check_files(self) -> None:
        self._bundle.check_unchanged()  # graphs and weights may be mapped

    def load(self, graph: GraphSpec) -> None:
        if graph.name in self._graphs:
            return
        self._graphs[graph.name] = graph
        opened = self._open(graph)
        if self._resident:
            self._sessions[graph.name] = opened

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any] | type | str) -> base.Buffer:
        buffer: base.Buffer = self._place.allocate(shape, dtype)
        return buffer

    def run(self, graph: str, inputs: Mapping[str, base.Buffer], outputs: Mapping[str, base.Buffer]) -> None:
        spec = self._graphs.get(graph)
        if spec is None:
            raise SecateurError(f"graph '{graph}' is not loaded, or the backend was closed")
        check_buffers(spec, inputs, outputs, self._place.buffers)
        opened = self._sessions[graph] if self._resident else self._open(spec)
        for name, buffer in inputs.items():
            self._bind(opened, opened.binding.bind_input, name, buffer)
        for name, buffer in outputs.items():
            self._bind(opened, opened.binding.bind_output, name, buffer)
        try:
            self._place.run(opened.session, opened.binding)
        except Exception as problem:
            raise SecateurError(f"graph '{graph}' failed in ONNX Runtime: {first_line(problem)}") from problem

    def clock(self, watch: Stopwatch, stage: str) -> AbstractContextManager[None]:
        timer: AbstractContextManager[None] = self._place.clock(watch, stage)
        return timer

    def describe(self) -> dict[str, str]:
        described: dict[str, str] = self._place.describe()
        return described

    def close(self) -> None:
        self._place.wait()  # a session must not be freed while it runs
        self._sessions.clear()
        self._graphs.clear()
        self._place.close()

    def _open(self, graph: GraphSpec) -> _Session:
        path = self._bundle.path(graph.file)
        try:
            session = self._ort.InferenceSession(str(path), self._options, providers=self._place.providers)
        except Exception as problem:
            raise BadBundle(f"{path} cannot be opened ({first_line(problem)}); export the bundle again") from None
        self._place.check(session)
        compare(graph, graph.all_inputs, session.get_inputs())
        compare(graph, graph.outputs, session.get_outputs())
        opened = _Session(session, session.io_binding())
        for weight in graph.weights:
            buffer = self._place.weight(self._bundle.path(weight.file), weight)
            self._bind(opened, opened.binding.bind_input, weight.name, buffer)
            opened.weights.append(buffer)
        return opened

    def _bind(self, opened: _Session, bind: Any, name: str, buffer: Any) -> None:
        now = (address, shape) = buffer.address, buffer.shape
        if opened.bound.get(name) != now:
            kind = NUMBERS.get(buffer.dtype.name, buffer.dtype.type)
            bind(name, self._place.device, 0, kind, shape, address)
            opened.bound[name] = now


def compare(graph: GraphSpec, specs: Iterable[TensorSpec], nodes: Iterable[Any]) -> None:
    """Check that a file has the tensors of the manifest: names, dtypes, ranks and fixed sizes.

    Raises:
        BadBundle: names the graph and the tensor.
    """
    declared, found = {spec.name: spec for spec in specs}, {node.name: node for node in nodes}
    if declared.keys() != found.keys():
        name = min(declared.keys() ^ found.keys())
        raise BadBundle(f"{graph.file} and the manifest differ in the tensor '{name}'; export the bundle again")
    for name, spec in declared.items():
        shape = found[name].shape
        fixed = len(shape) == len(spec.shape) and all(
            a == b or not (isinstance(a, int) and isinstance(b, int)) for a, b in zip(spec.shape, shape, strict=True)
        )
        if not fixed or TYPES.get(found[name].type) != spec.dtype:
            raise BadBundle(
                f"{graph.file}: '{name}' is {found[name].type} {shape}, the manifest says {spec.dtype} "
                f"{list(spec.shape)}; export the bundle again"
            )


def _is_large(bundle: Bundle) -> bool:
    """Return whether the weights in fp32, as the CPU kernels use them, would fill more than half of the free memory."""
    free = free_memory()
    if free is None:
        return False
    stored = sum(bundle.path(name).stat().st_size for name in bundle.manifest.files)
    return stored * (1 if bundle.manifest.dtype == "fp32" else 2) > free // 2


def _import() -> ModuleType:
    try:
        return importlib.import_module("onnxruntime")
    except ImportError:
        raise BackendMissing("backend 'ort' needs ONNX Runtime; pip install onnxruntime") from None
