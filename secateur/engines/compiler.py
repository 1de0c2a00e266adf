# SPDX-License-Identifier: Apache-2.0
"""Compiles one ONNX file with TensorRT for RTX, which needs neither a GPU nor a driver.

Networks are strongly typed and builds use the settings of `secateur build`. TensorRT for RTX has NVIDIA's ONNX parser
and compiler, so it also tells what TensorRT makes of a graph on devices for which it has no plans: see `library`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secateur.engines.device import ACTIVATIONS
from secateur.engines.kernels import Kernel, bound, kernels
from secateur.engines.library import TensorRTForRTX
from secateur.engines.manifest import BuilderSettings, Profile
from secateur.errors import BuildFailed

EXPECTED = re.compile(r"Make sure (in|out)put .* has Int64 binding")
"""The parser warns of every int64 input and output; the runtime binds int64."""


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
    library = TensorRTForRTX()
    trt = library.trt
    log = _log(trt)
    log.clear()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx)):
        found = [" ".join(str(parser.get_error(i)).split()) for i in range(parser.num_errors)]
        raise BuildFailed(f"TensorRT for RTX cannot parse it: {'; '.join(found) or 'no reason given'}")
    config = builder.create_builder_config()
    _configure(library, config, capabilities, settings or BuilderSettings())
    for made in profiles:
        profile = builder.create_optimization_profile()
        for name, shapes in made.ranges.items():
            profile.set_shape(name, shapes.min, shapes.opt, shapes.max)
        if config.add_optimization_profile(profile) < 0:
            raise BuildFailed(f"TensorRT for RTX refuses the optimization profile '{made.name}'")
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildFailed(f"TensorRT for RTX could not build it: {'; '.join(log.errors) or 'no reason given'}")
    if len(log.scratch) != len(profiles):
        raise BuildFailed("another logger of TensorRT for RTX is in use in this process; compile in a new process")
    text = "\n".join(log.steps)
    return Compiled(
        bytes(plan),
        tuple(dict.fromkeys(log.warnings)),
        kernels(text, len(profiles), weights),
        tuple(log.scratch),
        _constants(trt, network),
        bound(text, "Input"),
        bound(text, "Output"),
    )


def _configure(library: TensorRTForRTX, config: Any, capabilities: Sequence[str], settings: BuilderSettings) -> None:
    trt = library.trt
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mib << 20)
    config.max_aux_streams = settings.max_aux_streams
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # without it, the log has no steps
    library.configure(config, settings, capabilities)


def _constants(trt: Any, network: Any) -> int:
    """Return the bytes of the constants of a parsed network."""
    found = []
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


@functools.cache
def _log(trt: Any) -> Any:
    """Create the logger: it keeps the steps of the finished engine, warnings, errors, and memory for activations.

    There is one, because the library uses the first logger of a process until all of its objects are gone.
    """

    class StepLog(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.clear()

        def clear(self) -> None:
            self.steps: list[str] = []
            self.warnings: list[str] = []
            self.errors: list[str] = []
            self.scratch: list[int] = []

        def log(self, severity: Any, message: str) -> None:
            if "LayerType" in message:
                self.steps.append(message)
            elif found := ACTIVATIONS.search(message):
                self.scratch.append(int(found[1]))
            elif severity <= trt.ILogger.ERROR:
                self.errors.append(" ".join(message.split()))
            elif severity == trt.ILogger.WARNING and not EXPECTED.search(message):
                self.warnings.append(" ".join(message.split()))

    return StepLog()
