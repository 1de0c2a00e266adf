# SPDX-License-Identifier: Apache-2.0
"""Compiles one ONNX file with TensorRT for RTX, which needs neither a GPU nor a driver.

Networks are strongly typed and builds use the settings of `secateur build`. TensorRT for RTX has NVIDIA's ONNX parser
and compiler, so it also tells what TensorRT makes of a graph on devices for which it has no plans: see `library`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from secateur.engines.builder import Build, one_line
from secateur.engines.kernels import Kernel, bound, kernels
from secateur.engines.library import TensorRTForRTX
from secateur.engines.manifest import BuilderSettings, Profile


@dataclass(frozen=True)
class Compiled:
    """A compiled graph.

    plan             the serialized engine
    warnings         of the parser and the builder, one line each, without the expected ones and without repetitions
    kernels          of each profile, in the order of execution
    scratch          bytes of memory for activations of each profile, at its largest shapes
    weights          bytes of the constants in the graph
    inputs, outputs  bytes of each by name; None if the size varies within the profiles
    """

    plan: bytes = field(repr=False)
    warnings: tuple[str, ...]
    kernels: tuple[tuple[Kernel, ...], ...]
    scratch: tuple[int, ...]
    weights: int
    inputs: dict[str, int | None]
    outputs: dict[str, int | None]


def compile_graph(
    onnx: Path,
    profiles: Sequence[Profile],
    capabilities: Sequence[str] = ("86",),
    settings: BuilderSettings | None = None,
    weights: Collection[str] = (),
) -> Compiled:
    """Parse and build a graph.

    onnx          file, with its external weights beside it
    profiles      ranges of the inputs with a dynamic dimension, at least one profile
    capabilities  compute capabilities of the plan, from CAPABILITIES
    settings      default: those of `secateur build`
    weights       names of the inputs that are weights

    Raises:
        BackendMissing: TensorRT for RTX is not installed.
        BuildFailed: the parser or the builder fails; the message contains theirs.
    """
    making = Build(TensorRTForRTX(), onnx, profiles, capabilities, settings or BuilderSettings())
    plan, log = making.plan(), making.log
    text = "\n".join(log.steps)
    return Compiled(
        bytes(plan),
        tuple(dict.fromkeys(one_line([warning]) for warning in log.warnings)),
        kernels(text, len(profiles), weights),
        making.activations(),
        _constants(making),
        bound(text, "Input"),
        bound(text, "Output"),
    )


def _constants(made: Build) -> int:
    """Return the bytes of the constants of a parsed network."""
    trt, network, found = made.trt, made.network, []
    for number in range(network.num_layers):
        layer = network.get_layer(number)  # returned as ILayer
        if layer.type == trt.LayerType.CONSTANT:
            layer.__class__ = trt.IConstantLayer
            found.append(layer.weights)
        elif layer.type == trt.LayerType.CONVOLUTION:
            layer.__class__ = trt.IConvolutionLayer
            found += [layer.kernel, layer.bias]
    # nbytes is wrong for int4
    return sum(w.size // 2 if w.dtype == trt.DataType.INT4 else w.nbytes for w in found)
