# SPDX-License-Identifier: Apache-2.0
"""The bytes of a plan: a header that a damaged or foreign file does not have, what was built, and the ONNX model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from simulated import settings

MAGIC = b"simulated plan\n"
CACHE = b"simulated timing cache\n"


@dataclass(frozen=True)
class Tensor:
    """An input or output: mode and dtype are values of the enumerations; -1 and a symbol where a size is dynamic."""

    name: str
    mode: int
    dtype: int
    shape: tuple[int, ...]
    symbols: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A network that was built.

    profiles  (min, opt, max) of each dynamic input
    memory    bytes of activations of each profile
    config    what the builder was told: level, aux_streams, workspace in bytes, and whether products of fp32 may be
              rounded (tf32)
    """

    version: str
    gpu: str
    sm: str
    name: str
    tensors: tuple[Tensor, ...]
    profiles: tuple[dict[str, tuple[tuple[int, ...], ...]], ...]
    memory: tuple[int, ...]
    verbosity: int
    config: dict[str, int]
    model: bytes

    def pack(self) -> bytes:
        described = asdict(self)
        del described["model"]
        head = json.dumps(described).encode() + b"\n"
        return MAGIC + hashlib.sha256(head + self.model).digest() + head + self.model

    @classmethod
    def unpack(cls, data: bytes) -> Plan:
        """The plan.

        Raises:
            ValueError: these bytes are not one, or not all of one.
        """
        digest, rest = data[len(MAGIC) : len(MAGIC) + 32], data[len(MAGIC) + 32 :]
        if not data.startswith(MAGIC) or hashlib.sha256(rest).digest() != digest:
            raise ValueError("Serialization assertion stdArchiveReader.cpp failed: magic tag or checksum do not match")
        head, _, model = rest.partition(b"\n")
        described: dict[str, Any] = json.loads(head)
        tensors = tuple(
            Tensor(t["name"], t["mode"], t["dtype"], tuple(t["shape"]), tuple(t["symbols"]))
            for t in described.pop("tensors")
        )
        profiles = tuple(
            {name: tuple(tuple(shape) for shape in shapes) for name, shapes in profile.items()}
            for profile in described.pop("profiles")
        )
        memory = tuple(described.pop("memory"))
        return cls(tensors=tensors, profiles=profiles, memory=memory, model=model, **described)


def version() -> str:
    return ".".join(str(part) for part in settings.version())


def device() -> tuple[str, str]:
    """GPU and SM."""
    return settings.gpu(), ".".join(str(part) for part in settings.capability())


def pack_cache(entries: set[str], made_on: tuple[str, ...]) -> bytes:
    return CACHE + json.dumps({"made_on": made_on, "entries": sorted(entries)}).encode()


def unpack_cache(data: bytes) -> tuple[set[str], tuple[str, ...]]:
    """Entries, and version and device.

    Raises:
        ValueError: it is damaged.
    """
    if not data.startswith(CACHE):
        raise ValueError("the header does not match")
    described = json.loads(data[len(CACHE) :])
    return set(described["entries"]), tuple(described["made_on"])
