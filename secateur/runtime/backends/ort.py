# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime on the CPU: buffers are numpy arrays, bound in place by address."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from secateur.artifacts import GraphSpec, TensorSpec
from secateur.errors import BackendMissing, BadBundle, SecateurError
from secateur.runtime.backends import base
from secateur.runtime.backends.base import Array
from secateur.runtime.bundle import Bundle
from secateur.runtime.dimensions import bind, resolve_shapes

TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


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
        """Rows lie behind each other without gaps, as a graph needs them."""
        return bool(self._array.flags.c_contiguous)

    @property
    def address(self) -> int:
        return int(self._array.__array_interface__["data"][0])

    def view(self, *index: slice) -> HostBuffer:
        if any(part.step not in (None, 1) for part in index):
            raise ValueError("a view takes slices of step 1")
        return HostBuffer(self._array[index])

    def write(self, source: base.Buffer | Array) -> None:
        array = source if isinstance(source, np.ndarray) else source.numpy()
        if array.shape != self.shape or array.dtype != self.dtype:
            raise ValueError(
                f"cannot write {array.dtype} {list(array.shape)} into a buffer of {self.dtype} {list(self.shape)}"
            )
        np.copyto(self._array, array)

    def numpy(self) -> Array:
        return self._array


@dataclass
class _Session:
    """An open graph; `bound` remembers address and shape of each tensor, so that only changes are bound again."""

    session: Any
    binding: Any
    bound: dict[str, tuple[int, tuple[int, ...]]] = field(default_factory=dict)


class Backend(base.Backend):
    """One InferenceSession per graph.

    threads   cores to use; None lets ONNX Runtime decide
    resident  False opens a session for each run and drops it afterwards: slow, but only one graph is in memory

    Another provider is a subclass with its own `device`, `providers`, `buffers` (shape, dtype, contiguous, address,
    view, write, numpy) and `allocate`.

    Raises:
        BackendMissing: onnxruntime is not installed.
    """

    device = "cpu"
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    package = "onnxruntime"
    buffers: type[Any] = HostBuffer

    def __init__(self, bundle: Bundle, threads: int | None = None, resident: bool = True) -> None:
        self._ort = _import(self.package)
        self._bundle = bundle
        self._resident = resident
        self._options = self.options(threads)
        self._graphs: dict[str, GraphSpec] = {}
        self._sessions: dict[str, _Session] = {}

    def options(self, threads: int | None) -> Any:
        """Session options."""
        options = self._ort.SessionOptions()
        options.log_severity_level = 4  # errors come as exceptions
        options.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        if threads is not None:
            options.intra_op_num_threads = threads
        # Every session has its own threads; those that wait must not take the cores of the one that works.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # A memory pattern is kept per input shape, and every decode step has a new one.
        options.enable_mem_pattern = False
        return options

    def load(self, graph: GraphSpec) -> None:
        if graph.name in self._graphs:
            return
        self._graphs[graph.name] = graph
        opened = self._open(graph)
        if self._resident:
            self._sessions[graph.name] = opened

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any] | type | str) -> HostBuffer:
        return HostBuffer(np.zeros(shape, dtype))

    def run(self, graph: str, inputs: Mapping[str, base.Buffer], outputs: Mapping[str, base.Buffer]) -> None:
        spec = self._graphs.get(graph)
        if spec is None:
            raise SecateurError(f"graph '{graph}' is not loaded, or the backend was closed")
        check(spec, inputs, outputs, self.buffers)
        opened = self._sessions[graph] if self._resident else self._open(spec)
        for name, buffer in inputs.items():
            self._bind(opened, opened.binding.bind_input, name, buffer)
        for name, buffer in outputs.items():
            self._bind(opened, opened.binding.bind_output, name, buffer)
        try:
            opened.session.run_with_iobinding(opened.binding)
        except Exception as problem:
            raise SecateurError(f"graph '{graph}' failed in ONNX Runtime: {_line(problem)}") from problem

    def close(self) -> None:
        self._sessions.clear()
        self._graphs.clear()

    def _open(self, graph: GraphSpec) -> _Session:
        path = self._bundle.path(graph.file)
        try:
            session = self._ort.InferenceSession(str(path), self._options, providers=list(self.providers))
        except Exception as problem:
            raise BadBundle(f"{path} cannot be opened ({_line(problem)}); export the bundle again") from None
        compare(graph, graph.inputs, session.get_inputs())
        compare(graph, graph.outputs, session.get_outputs())
        return _Session(session, session.io_binding())

    def _bind(self, opened: _Session, bind: Any, name: str, buffer: Any) -> None:
        now = (address, shape) = buffer.address, buffer.shape
        if opened.bound.get(name) != now:
            bind(name, self.device, 0, buffer.dtype.type, shape, address)
            opened.bound[name] = now


def check(graph: GraphSpec, inputs: Mapping[str, Any], outputs: Mapping[str, Any], kind: type[Any]) -> None:
    """The buffers are of this `kind` and those that `graph` declares: a run gets bare addresses, so it must be sure.

    Raises:
        ValueError: a tensor is missing, unknown, of another dtype or shape, or has gaps.
    """
    for specs, buffers in ((graph.inputs, inputs), (graph.outputs, outputs)):
        if {spec.name for spec in specs} != buffers.keys():
            wanted = ", ".join(spec.name for spec in specs)
            raise ValueError(f"graph '{graph.name}' takes {wanted}; got {', '.join(buffers)}")
        for spec in specs:
            buffer = buffers[spec.name]
            if not isinstance(buffer, kind) or not buffer.contiguous:
                raise ValueError(f"graph '{graph.name}': {spec.name} is no contiguous buffer of this backend")
            if buffer.dtype != np.dtype(spec.dtype):
                raise ValueError(f"graph '{graph.name}': {spec.name} is {buffer.dtype}, not {spec.dtype}")
    symbols = bind(graph.inputs, {name: buffer.shape for name, buffer in inputs.items()})
    for name, shape in resolve_shapes(graph.outputs, symbols).items():
        if shape != outputs[name].shape:
            got = list(outputs[name].shape)
            raise ValueError(f"graph '{graph.name}': {name} needs the shape {list(shape)}, not {got}")


def compare(graph: GraphSpec, specs: Iterable[TensorSpec], nodes: Iterable[Any]) -> None:
    """The file has the tensors of the manifest: names, dtypes, ranks and fixed sizes.

    Raises:
        BadBundle: with the graph and the tensor.
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


def _import(package: str) -> ModuleType:
    try:
        return importlib.import_module("onnxruntime")
    except ImportError:
        raise BackendMissing(f"backend 'ort' needs ONNX Runtime; pip install {package}") from None


def _line(problem: Exception) -> str:
    text = str(problem).strip()
    return text.splitlines()[0] if text else type(problem).__name__
