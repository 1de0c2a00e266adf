# SPDX-License-Identifier: Apache-2.0
"""What plans are valid for: a library in one version, and one device or all GPUs of some compute capabilities."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Device:
    """A GPU and its software.

    gpu              CUDA's name of the GPU, "Orin" or "NVIDIA H200"
    sm               compute capability, "8.7"
    multiprocessors  their number: 16 on a Jetson AGX Orin, 8 on an Orin Nano, which are both called "Orin"
    cuda             runtime version, "12.6"
    driver           CUDA version that the driver supports, "12.6"
    os               system and machine, "Linux-aarch64"
    """

    gpu: str
    sm: str
    multiprocessors: int
    cuda: str
    driver: str
    os: str

    @property
    def name(self) -> str:
        """Name for files of this device, such as "orin-sm8.7-16mp"."""
        gpu = "".join(c if c.isalnum() else "-" for c in self.gpu.lower())
        return f"{'-'.join(part for part in gpu.split('-') if part)}-sm{self.sm}-{self.multiprocessors}mp"

    def differs(self, other: Device) -> str:
        """Return the first difference that keeps plans from running on `other`, as "SM 8.7, not 11.0"; else "".

        GPU and system must be the same. Driver and CUDA runtime may differ from those at build time.
        """
        for label, mine, theirs in (
            ("GPU", self.gpu, other.gpu),
            ("SM", self.sm, other.sm),
            ("multiprocessors", self.multiprocessors, other.multiprocessors),
            ("system", self.os, other.os),
        ):
            if mine != theirs:
                return f"{label} {mine}, not {theirs}"
        return ""


@dataclass(frozen=True)
class Platform:
    """What plans are valid for.

    engine                "trt" (TensorRT) or "rtx" (TensorRT for RTX)
    version               version of that library, "10.3.0.30"
    compute_capabilities  ("86", "89"), ascending; one if there is a device
    device                the only device that can run the plans; None: all GPUs of these compute capabilities
    """

    engine: str
    version: str
    compute_capabilities: tuple[str, ...]
    device: Device | None

    def differs(self, here: Platform) -> str:
        """Return the first difference that keeps plans from running on the platform `here`; else ""."""
        if self.engine != here.engine:
            return f"--engine {self.engine}, not {here.engine}"
        if self.device is not None and here.device is not None and (found := self.device.differs(here.device)):
            return found
        if self.version != here.version:
            return f"version {self.version}, not {here.version}"
        missing = [sm for sm in here.compute_capabilities if sm not in self.compute_capabilities]
        return f"SM {', '.join(self.compute_capabilities)}, not {', '.join(missing)}" if missing else ""

    @property
    def folder(self) -> str:
        """Folder name for these plans, such as "orin-sm8.7-16mp-trt10.3.0.30" or "rtx-1.7.1.116-sm86-sm89"."""
        if self.device is not None:
            return f"{self.device.name}-{self.engine}{self.version}"
        return "-".join((self.engine, self.version, *(f"sm{sm}" for sm in self.compute_capabilities)))

    @property
    def folders(self) -> str:
        """Pattern of the folders whose plans may run on this platform."""
        return self.folder if self.device is not None else f"{self.engine}-{self.version}-*"

    def mend(self, bundle: Path, options: str = "") -> str:
        """Return what to do if a bundle has no plans for this platform, or wrong ones; `options` each after a space."""
        if self.device is not None:
            return f"build the engines on this device with `secateur build {bundle}{options}`"
        numbers = ",".join(self.compute_capabilities)
        return f"build the engines with `secateur build {bundle} --engine {self.engine} --sm {numbers}{options}`"
