# SPDX-License-Identifier: Apache-2.0
"""A build for compute capabilities."""

from __future__ import annotations

from typing import Any

from simulated import settings
from simulated.faults import Fault
from tensorrt import _builder, _config, _plan
from tensorrt._config import ITimingCache
from tensorrt._logging import Reporter, Severity
from tensorrt._network import INetworkDefinition
from tensorrt._values import Enumeration, IHostMemory, integer

DEFAULT = (80, 86, 89, 120, 121)


class NetworkDefinitionCreationFlag(Enumeration):
    STRONGLY_TYPED = 0


class BuilderFlag(Enumeration):
    TF32 = 6
    REQUIRE_USER_ALLOCATION = 28


class ComputeCapability(Enumeration):
    NONE = 0
    SM75 = 75
    SM80 = 80
    SM86 = 86
    SM89 = 89
    SM120 = 120
    SM121 = 121


class IBuilderConfig(_config.IBuilderConfig):
    __slots__ = ("_capabilities",)

    def __init__(self, reporter: Reporter) -> None:
        super().__init__(reporter)
        self._flags: set[Any] = {BuilderFlag.TF32}
        self._capabilities: list[ComputeCapability] = []

    def create_timing_cache(self, serialized_timing_cache: Any) -> ITimingCache | None:
        raise Fault("a timing cache does nothing")

    def set_flag(self, flag: BuilderFlag) -> None:
        self._flags.add(_checked(flag, BuilderFlag, "flag"))

    def clear_flag(self, flag: BuilderFlag) -> None:  # type: ignore[override]
        self._flags.discard(_checked(flag, BuilderFlag, "flag"))

    @property
    def num_compute_capabilities(self) -> int:
        return len(self._capabilities)

    @num_compute_capabilities.setter
    def num_compute_capabilities(self, count: int) -> None:
        self._capabilities = [ComputeCapability.NONE] * integer(count, "num_compute_capabilities")

    def set_compute_capability(self, compute_capability: ComputeCapability, index: int) -> bool:
        kind = _checked(compute_capability, ComputeCapability, "compute_capability")
        if kind == ComputeCapability.NONE or not 0 <= integer(index, "index") < len(self._capabilities):
            return False
        self._capabilities[index] = kind
        return True

    def _platform(self) -> tuple[str, str, str]:
        numbers = [int(kind) for kind in self._capabilities] or DEFAULT
        return settings.rtx_version(), "", ",".join(map(str, numbers))

    def _told(self) -> dict[str, int]:
        told = {name: value for name, value in super()._told().items() if name != "level"}
        return told | {
            "tf32": int(BuilderFlag.TF32 in self._flags),
            "user_allocation": int(BuilderFlag.REQUIRE_USER_ALLOCATION in self._flags),
        }


class Builder(_builder.Builder):
    __slots__ = ()
    _typed = 1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    _needs_device = False

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig(self._reporter)

    def build_serialized_network(
        self, network: INetworkDefinition, config: _config.IBuilderConfig
    ) -> IHostMemory | None:
        """Also tell the activations of each profile, which cannot be read from a plan without a device."""
        plan = super().build_serialized_network(network, config)
        for size in _plan.Plan.unpack(bytes(plan)).memory if plan is not None else ():
            self._reporter.logger.log(Severity.VERBOSE, f"Total Activation Memory: {size} bytes")
        return plan


def _checked(value: Any, kind: type[Any], name: str) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"incompatible function arguments: {name}")
    return value
