# SPDX-License-Identifier: Apache-2.0
"""TensorRT, TensorRT for RTX, and what differs between them. All other code that uses one is the same for both.

TensorRT for RTX has the Python API of TensorRT. Its builder compiles for compute capabilities instead of one device,
and needs no GPU. The last step is done when a plan runs, by its runtime, which can keep the compiled kernels.
Source: https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/ (porting, cpu-engines, work-with-runtime-cache,
timing-cache-migration, release notes 1.2, support matrix), and the docstrings of its bindings.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from typing import Any, ClassVar

from secateur.bundle.manifest import Manifest
from secateur.engines.manifest import BuilderSettings
from secateur.engines.runtime_cache import RuntimeCache
from secateur.engines.version import Version, check_target
from secateur.errors import BackendMissing, BadBundle, BuildFailed, InputError, first_line

Flags = dict[str, int | str | bool]


class TensorRT:
    """TensorRT: a plan is built on the device that runs it.

    trt      the imported module
    version  its version, "10.3.0"

    Raises:
        BackendMissing: the module, or a library that it loads, is not installed.
    """

    name: ClassVar[str] = "trt"
    title: ClassVar[str] = "TensorRT"
    module: ClassVar[str] = "tensorrt"
    mend: ClassVar[str] = (
        "install JetPack's or apt's python3-libnvinfer, or pip install tensorrt-cu12 or tensorrt-cu13; "
        "`--backend ort` runs the bundle without it; `secateur build --dry-run` prints the commands for another device"
    )
    portable: ClassVar[bool] = False
    """Whether a build needs no GPU, and its plans are for all GPUs of some compute capabilities."""

    def __init__(self) -> None:
        try:
            self.trt: Any = importlib.import_module(self.module)
        except (ImportError, OSError) as problem:
            raise BackendMissing(f"{self.title} cannot be loaded ({first_line(problem)}); {self.mend}") from None
        self.version = str(self.trt.__version__)

    def check(self, manifest: Manifest, capabilities: Sequence[str]) -> None:
        """Check that this library can build and run a bundle, on GPUs of these compute capabilities.

        Raises:
            BadBundle: it cannot; the message has the mend.
        """
        check_target(manifest, Version.parse(self.version))

    @staticmethod
    def flags(settings: BuilderSettings) -> Flags:
        """Return all flags of a build, for engines.json and the keys of plans."""
        every = {"strongly_typed": True, "tf32": False, "profiling_verbosity": "detailed"}
        return {**dataclasses.asdict(settings), **every}

    def configure(self, config: Any, settings: BuilderSettings, capabilities: Sequence[str]) -> None:
        """Set what only this builder has."""
        config.builder_optimization_level = settings.optimization_level

    def create_context(self, engine: Any, profile: str, cache: RuntimeCache) -> Any:
        """Return an execution context without activation memory; None, and a message in the log, if there is none.

        profile  name of the optimization profile that it will have
        cache    kernels that the runtime compiled
        """
        return engine.create_execution_context(self.trt.ExecutionContextAllocationStrategy.USER_MANAGED)

    def recordable(self, context: Any, stream: int) -> bool:
        """Return whether a CUDA graph can record the next run of a context, which has run once with these shapes."""
        return True


class TensorRTForRTX(TensorRT):
    """TensorRT for RTX: plans are built on any machine, for RTX cards, A100 and DGX Spark."""

    name = "rtx"
    title = "TensorRT for RTX"
    module = "tensorrt_rtx"
    mend = "pip install 'secateur[rtx]'; `--backend ort` runs the bundle without it"
    portable = True
    oldest: ClassVar[Version] = Version(1, 7)
    """Names and signatures are checked for this version."""

    def __init__(self) -> None:
        super().__init__()
        if Version.parse(self.version) < self.oldest:
            raise BackendMissing(f"{self.title} is {self.version}, and {self.oldest} is the oldest; {self.mend}")

    def check(self, manifest: Manifest, capabilities: Sequence[str]) -> None:
        check_target(manifest)
        if unknown := [sm for sm in capabilities if sm not in CAPABILITIES]:
            raise BackendMissing(
                f"{self.title} does not support SM {unknown[0]}, only {', '.join(CAPABILITIES)}; use `--backend trt`"
            )
        kind = manifest.quantization.name if manifest.quantization else manifest.dtype
        if TURING in capabilities and kind in ("bf16", "int4"):
            raise BadBundle(f"SM {TURING} has no {kind}; export with --dtype fp16, or leave out SM {TURING}")

    @staticmethod
    def flags(settings: BuilderSettings) -> Flags:
        every = TensorRT.flags(settings)
        return {name: value for name, value in every.items() if name != "optimization_level"}

    def configure(self, config: Any, settings: BuilderSettings, capabilities: Sequence[str]) -> None:
        """Set the compute capabilities, and let the plan be recorded: it allocates no memory when it runs.

        There is no timing cache, and a build does not depend on the optimization level.
        """
        config.set_flag(self.trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        if tuple(capabilities) == DEFAULT:
            return
        config.num_compute_capabilities = len(capabilities)
        for index, sm in enumerate(capabilities):
            if not config.set_compute_capability(getattr(self.trt.ComputeCapability, f"SM{sm}"), index):
                raise BuildFailed(f"{self.title} does not accept SM {sm} among {', '.join(capabilities)}")

    def create_context(self, engine: Any, profile: str, cache: RuntimeCache) -> Any:
        """Create a context that uses the cache.

        Kernels for the shapes of decode steps are compiled in the first step, which is recorded afterwards. Those for
        other shapes are compiled in the background, while kernels for all shapes run.
        """
        trt = self.trt
        runtime_config = engine.create_runtime_config()
        runtime_config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        runtime_config.dynamic_shapes_kernel_specialization_strategy = (
            trt.DynamicShapesKernelSpecializationStrategy.EAGER
            if profile == "decode"
            else trt.DynamicShapesKernelSpecializationStrategy.LAZY
        )
        cache.attach(runtime_config)
        return engine.create_execution_context(runtime_config)

    def recordable(self, context: Any, stream: int) -> bool:
        return bool(context.is_stream_capturable(stream))


LIBRARIES: dict[str, type[TensorRT]] = {kind.name: kind for kind in (TensorRT, TensorRTForRTX)}
"""By the value of --engine."""
TURING = "75"
CAPABILITIES = (TURING, "80", "86", "89", "120", "121")
"""Compute capabilities that TensorRT for RTX compiles for: Turing, A100, Ampere, Ada, RTX Blackwell, DGX Spark.

There is none for Orin (8.7), Hopper (9.0) or Thor (11.0); 8.6 is nearest to Orin.
"""
DEFAULT = CAPABILITIES[1:]
"""Those of a build without --sm: 8.0, 8.6, 8.9, 12.0 and 12.1."""


def capabilities(text: str) -> tuple[str, ...]:
    """Parse compute capabilities, "86" or "86,89,120", also written as "8.6" or "SM86"; return them ascending.

    Raises:
        InputError: TensorRT for RTX does not compile for one of them.
    """
    found = set()
    for word in text.split(","):
        number = word.strip().upper().removeprefix("SM").replace(".", "")
        if number not in CAPABILITIES:
            near = "; 86 is nearest to Orin" if number == "87" else ""
            raise InputError(
                f"TensorRT for RTX does not compile for SM '{word}'; choose from {', '.join(CAPABILITIES)}{near}"
            )
        found.add(number)
    return tuple(number for number in CAPABILITIES if number in found)
