# SPDX-License-Identifier: Apache-2.0
"""OpenVINO, on the CPU or on an Intel GPU or NPU: graphs read and write the buffers in place."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from secateur.bundle.manifest import GraphSpec, TensorSpec
from secateur.bundle.reader import Bundle
from secateur.errors import BackendMissing, BadBundle, InputError, SecateurError, first_line
from secateur.runtime.backends import base
from secateur.runtime.backends.base import BF16, Array, check_buffers
from secateur.runtime.backends.ort import HostBuffer

TYPES = {
    "float32": "f32",
    "float16": "f16",
    BF16: "bf16",
    "float64": "f64",
    "int64": "i64",
    "int32": "i32",
    "uint8": "u8",
    "bool": "boolean",
}
"""Dtypes of a manifest, and their names in OpenVINO."""


@dataclass
class _Request:
    """A compiled graph.

    ports    its inputs and outputs, by name
    bound    address and shape of each tensor that was set, so that only changes are set again
    weights  memory maps of the weights, which OpenVINO knows by address only
    """

    request: Any
    ports: dict[str, Any]
    bound: dict[str, tuple[int, tuple[int, ...]]] = field(default_factory=dict)
    weights: list[HostBuffer] = field(default_factory=list)


class Backend(base.Backend):
    """One compiled graph and one infer request per graph. Weights that the kernels need not repack stay mapped.

    threads   CPU threads; None: OpenVINO decides
    device    "cpu" (also None), "gpu" or "npu"; with several GPUs "gpu.0", "gpu.1", ...
    bf16      True: kernels calculate in bf16, on devices that have it; False: in fp32, as in backend ort

    Raises:
        BackendMissing: openvino is not installed.
        InputError: there is no such device here, or it has no bf16.
    """

    def __init__(
        self, bundle: Bundle, threads: int | None = None, device: str | None = None, bf16: bool = False
    ) -> None:
        self._openvino = _import()
        self._core = self._openvino.Core()
        self._device = _find_device(self._core, device)
        if bf16 and "BF16" not in self._core.get_property(self._device, "OPTIMIZATION_CAPABILITIES"):
            raise InputError(f"the device '{self._device.lower()}' has no bf16; leave bf16 out")
        self._bundle = bundle
        self._options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            # In its other mode OpenVINO rounds the rows before integer weights to 8 bits.
            "EXECUTION_MODE_HINT": "ACCURACY",
        }
        if threads is not None and self._device == "CPU":
            self._options["INFERENCE_NUM_THREADS"] = threads
        self._graphs: dict[str, GraphSpec] = {}
        self._requests: dict[str, _Request] = {}

    def check_files(self) -> None:
        self._bundle.check_unchanged()  # graphs and weights may be mapped

    def load(self, graph: GraphSpec) -> None:
        if graph.name not in self._graphs:
            self._requests[graph.name] = self._open(graph)
            self._graphs[graph.name] = graph

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any] | type | str) -> HostBuffer:
        return HostBuffer(np.zeros(shape, dtype))

    def run(self, graph: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        spec = self._graphs.get(graph)
        if spec is None:
            raise SecateurError(f"graph '{graph}' is not loaded, or the backend was closed")
        check_buffers(spec, inputs, outputs, HostBuffer)
        opened = self._requests[graph]
        try:
            for name, buffer in (*inputs.items(), *outputs.items()):
                self._set(opened, name, buffer)
            opened.request.infer()
        except Exception as problem:
            raise SecateurError(f"graph '{graph}' failed in OpenVINO: {_reason(problem)}") from problem

    def describe(self) -> dict[str, str]:
        if self._device == "CPU":
            return {}
        name = self._core.get_property(self._device, "FULL_DEVICE_NAME")
        return {"device": str(name), "OpenVINO": str(self._openvino.__version__)}

    def close(self) -> None:
        self._requests.clear()
        self._graphs.clear()

    def _open(self, graph: GraphSpec) -> _Request:
        path = self._bundle.path(graph.file)
        try:
            # By name, because Core.read_model tries the readers of other formats on a damaged file.
            reader = importlib.import_module("openvino.frontend").FrontEndManager().load_by_framework("onnx")
            model = reader.convert(reader.load(str(path)))
            self._mend(graph, model)
            compiled = self._core.compile_model(model, self._device, self._options)
        except Exception as problem:
            raise BadBundle(
                f"OpenVINO cannot open {path} ({_reason(problem)}); export the bundle again, or use --backend ort"
            ) from None
        ports = self._compare(graph, graph.all_inputs, compiled.inputs)
        ports |= self._compare(graph, graph.outputs, compiled.outputs)
        opened = _Request(compiled.create_infer_request(), ports)
        for weight in graph.weights:
            # Copy on write, because OpenVINO refuses read-only memory; nothing writes to an input.
            mapped = np.memmap(self._bundle.path(weight.file), mode="c", offset=weight.offset, shape=(weight.nbytes,))
            buffer = HostBuffer(mapped.view(weight.dtype).reshape(weight.shape))
            self._set(opened, weight.name, buffer)
            opened.weights.append(buffer)
        return opened

    def _mend(self, graph: GraphSpec, model: Any) -> None:
        """Give a graph what ONNX defines and OpenVINO 2026.4 leaves out when it reads one.

        - TopK: ties go to the lower index.
        - Attention: query heads share keys and values, also if the number of query heads is not in the graph.
        """
        ops = importlib.import_module("openvino.opset13")
        heads, kv_heads = self._bundle.manifest.dimensions.heads, self._bundle.manifest.dimensions.kv_heads
        own = np.repeat(np.arange(kv_heads), heads // kv_heads)
        for node in model.get_ordered_ops():
            kind = node.get_type_name()
            if kind == "TopK" and node.output(1).get_target_inputs():
                how = {**node.get_attributes(), "stable": True}
                stable = ops.topk(node.input_value(0), node.input_value(1), **how)
                for old, new in zip(node.outputs(), stable.outputs(), strict=True):
                    old.replace(new)
            elif kind == "ScaledDotProductAttention" and graph.kind == "segment" and heads != kv_heads:
                for place in node.inputs()[1:3]:
                    if place.get_partial_shape()[1] == kv_heads:
                        repeated = ops.gather(place.get_source_output(), own, 1)
                        place.replace_source_output(repeated.output(0))
        model.validate_nodes_and_infer_types()

    def _set(self, opened: _Request, name: str, buffer: HostBuffer) -> None:
        now = buffer.address, buffer.shape
        if opened.bound.get(name) != now:
            opened.request.set_tensor(opened.ports[name], self._tensor(buffer.numpy()))
            opened.bound[name] = now

    def _tensor(self, array: Array) -> Any:
        """Return a tensor that shares the memory of `array`, also for bf16, which OpenVINO does not convert."""
        kind = getattr(self._openvino.Type, TYPES[array.dtype.name])
        return self._openvino.Tensor(array.view(np.uint16) if array.dtype.name == BF16 else array, array.shape, kind)

    def _compare(self, graph: GraphSpec, specs: Iterable[TensorSpec], ports: Iterable[Any]) -> dict[str, Any]:
        """Return the ports by tensor name, after checking that a file has the tensors of the manifest.

        Raises:
            BadBundle: names the graph and the tensor.
        """
        declared = {spec.name: spec for spec in specs}
        found = {name: port for port in ports for name in port.names & declared.keys() or port.names}
        if declared.keys() != found.keys():
            name = min(declared.keys() ^ found.keys())
            raise BadBundle(f"{graph.file} and the manifest differ in the tensor '{name}'; export the bundle again")
        for name, spec in declared.items():
            shape, kind = found[name].partial_shape, found[name].element_type
            wanted = self._openvino.PartialShape([size if isinstance(size, int) else -1 for size in spec.shape])
            if not wanted.compatible(shape) or kind.get_type_name() != TYPES.get(spec.dtype):
                raise BadBundle(
                    f"{graph.file}: '{name}' is {kind.get_type_name()} {shape}, the manifest says {spec.dtype} "
                    f"{list(spec.shape)}; export the bundle again"
                )
        return {name: found[name] for name in declared}


def _find_device(core: Any, device: str | None) -> str:
    """Return OpenVINO's name of the requested device; "cpu" if None.

    Raises:
        InputError: it is not here.
    """
    wanted = "cpu" if device is None else device
    available = [name.lower() for name in core.available_devices]
    if not any(wanted in (name, name.partition(".")[0]) for name in available):
        here = ", ".join(available)
        raise InputError(f"backend 'openvino' finds no device '{device}' here; choose one of: {here}")
    return wanted.upper()


def _reason(problem: Exception) -> str:
    """Return the last line of an OpenVINO error, which says what is wrong; the others say where it was raised."""
    lines = [line.strip(" -") for line in str(problem).splitlines() if line.strip()]
    return first_line(RuntimeError(lines[-1])) if lines else first_line(problem)


def _import() -> ModuleType:
    try:
        return importlib.import_module("openvino")
    except ImportError:
        raise BackendMissing("backend 'openvino' needs OpenVINO; pip install openvino") from None
