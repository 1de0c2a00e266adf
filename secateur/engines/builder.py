# SPDX-License-Identifier: Apache-2.0
"""Parses and builds one graph with TensorRT or TensorRT for RTX.

Uses only calls that TensorRT 10.3 to 11.x and TensorRT for RTX have in common; `library` has the others.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from secateur.engines.library import TensorRT
from secateur.engines.manifest import BuilderSettings, Profile
from secateur.errors import BuildFailed

ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+) bytes")
INT64 = re.compile(r"Make sure (in|out)put .* has Int64 binding")
"""The parser warns of every int64 input and output; the runtime binds int64."""


class Build:
    """A parsed graph, strongly typed, ready to be built.

    trt      module of the library
    log      BuildLog of the library
    network  trt.INetworkDefinition
    config   trt.IBuilderConfig with all settings and profiles

    Raises:
        BuildFailed: the parser refuses the graph, or the builder a profile; the message contains theirs.
    """

    def __init__(
        self,
        library: TensorRT,
        onnx: Path,
        profiles: Sequence[Profile],
        capabilities: Sequence[str],
        settings: BuilderSettings,
    ) -> None:
        self._library, self._title, self.trt = library, library.title, library.trt
        trt, self._profiles = self.trt, len(profiles)
        self._empty = any(0 in shapes.min for made in profiles for shapes in made.ranges.values())
        self.log = build_log(trt)
        self.log.clear()
        self._builder = trt.Builder(self.log)
        self.network = self._builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        self._parser = trt.OnnxParser(self.network, self.log)
        if not self._parser.parse_from_file(str(onnx)):
            found = [self._parser.get_error(number) for number in range(self._parser.num_errors)]
            reason = one_line(found) or one_line(self.log.errors) or "no reason given"
            raise BuildFailed(f"{self._title} cannot parse it: {reason}; `secateur inspect` shows which versions can")
        self.config = self._builder.create_builder_config()
        self.config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mib << 20)
        self.config.max_aux_streams = settings.max_aux_streams
        self.config.clear_flag(trt.BuilderFlag.TF32)  # on by default; it rounds fp32 products to 10 bits
        self.config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # and the log has the steps
        library.configure(self.config, settings, capabilities)
        for made in profiles:
            profile = self._builder.create_optimization_profile()
            for name, shapes in made.ranges.items():
                profile.set_shape(name, shapes.min, shapes.opt, shapes.max)
            if self.config.add_optimization_profile(profile) < 0:
                raise BuildFailed(f"{self._title} refuses the optimization profile '{made.name}'")

    def plan(self) -> Any:
        """Build, and return the plan as a buffer.

        Raises:
            BuildFailed: the message contains that of the builder.
        """
        plan = self._builder.build_serialized_network(self.network, self.config)
        if plan is None:
            hint = "; if this TensorRT does not support empty tensors, build with --masked-past" if self._empty else ""
            reason = one_line(self.log.errors) or "no reason given"
            raise BuildFailed(f"{self._title} could not build it: {reason}{hint}")
        return plan

    def activations(self) -> tuple[int, ...]:
        """Return the bytes of activations of each profile, from the log of the build (TensorRT for RTX).

        Raises:
            BuildFailed: the log does not have them.
        """
        if len(self.log.scratch) != self._profiles:
            raise BuildFailed(
                f"the log of {self._title} {self._library.version} has no memory of activations for each profile; "
                "use another version, in a process without another logger"
            )
        return tuple(self.log.scratch)


@functools.cache
def build_log(trt: Any) -> Any:
    """Create the logger of all builds of a library. It prints warnings and errors, and keeps what builds tell:

    steps     lines about the kernels of the engine (TensorRT for RTX)
    scratch   bytes of activations of each profile (TensorRT for RTX)
    warnings  without the expected ones
    errors

    There is one, because the library uses the first logger of a process until all of its objects are gone. A build has
    no error recorder: in TensorRT for RTX 1.7, the parser of its network crashes when it is deleted.
    """

    class BuildLog(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.clear()

        def clear(self) -> None:
            self.steps: list[str] = []
            self.scratch: list[int] = []
            self.warnings: list[str] = []
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if "LayerType" in msg:
                self.steps.append(msg)
            elif found := ACTIVATIONS.search(msg):
                self.scratch.append(int(found[1]))
            elif int(severity) <= int(trt.ILogger.WARNING) and not INT64.search(msg):
                print(f"[{severity.name}] {msg}", file=sys.stderr)
                (self.errors if int(severity) <= int(trt.ILogger.ERROR) else self.warnings).append(msg)

    return BuildLog()


def one_line(messages: Iterable[object]) -> str:
    """Return messages as one line without repetitions; "" if there are none."""
    return "; ".join(dict.fromkeys(" ".join(str(message).split()) for message in messages))
