# SPDX-License-Identifier: Apache-2.0
"""Weights of a bundle: data files next to the graphs, each written once, tensor by tensor.

One file for each part of the model (embed, layer_00, layer_01, ..., head, projector, vision). The weights of a file,
their order and their offsets depend on the model and the dtype only, not on the cuts between segments, the target or
the opset, so graphs and bundles can share files. Offsets are multiples of a page, for memory maps.

A weight of nn.Linear is stored as MatMul and Gemm read it, [in, out]; a Transpose in the graph would copy it in memory.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

from secateur.bundle.reader import sha256
from secateur.checkpoints.streaming import value
from secateur.errors import BadBundle
from secateur.families.base import Family
from secateur.progress import Progress, silent

PAGE = 4096
SUFFIX = ".data"


@dataclass(frozen=True)
class WeightPlace:
    """Position of a weight: `size` bytes from `offset` in a file next to the graphs; transposed: [in, out]."""

    file: str
    offset: int
    size: int
    transposed: bool


class WeightStore:
    """Data files of `parts` in `folder`; a weight of several parts is stored with the first of them.

    parts      modules by the name of their file
    shared     weight files of another bundle of the same model and dtype, with their sha256; they are linked (or
               copied to another file system) instead of written
    quantized  weights that are left out, because graphs store integers in their place
    """

    def __init__(
        self,
        folder: Path,
        parts: Mapping[str, nn.Module],
        shared: Mapping[Path, str] | None = None,
        progress: Progress = silent,
        quantized: frozenset[nn.Parameter] = frozenset(),
    ) -> None:
        self._folder = folder
        self._shared = {path.name: (path, digest) for path, digest in (shared or {}).items()}
        self._progress = progress
        self._linear = _linear(parts.values())
        self._places: dict[nn.Parameter, WeightPlace] = {}
        self._parts: dict[str, list[nn.Parameter]] = {}
        for name, module in parts.items():
            file, end = f"{name}{SUFFIX}", 0
            own = (weight for weight in module.parameters() if weight not in self._places)
            self._parts[file] = [weight for weight in own if weight not in quantized]
            for weight in self._parts[file]:
                start = -(-end // PAGE) * PAGE
                end = start + weight.nbytes
                self._places[weight] = WeightPlace(file, start, weight.nbytes, weight in self._linear)
        self._written: set[str] = set()

    def is_transposed(self, weight: nn.Parameter) -> bool:
        """Return whether this weight is stored as [in, out]."""
        return weight in self._linear

    def place(self, weight: nn.Parameter) -> WeightPlace | None:
        """Return the position of a weight, None if it is not in the store; writes its file at the first call."""
        place = self._places.get(weight)
        if place is not None and place.file not in self._written:
            if not self._link(place.file):
                self._write(place.file)
            self._written.add(place.file)
        return place

    def _write(self, file: str) -> None:
        weights = self._parts[file]
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / file).open("xb") as out:
            for done, weight in enumerate(weights):
                self._progress("weights", file, done, len(weights))
                write(out, self._places[weight].offset, value(weight).T if weight in self._linear else value(weight))

    def _link(self, file: str) -> bool:
        """Link a file of the other bundle, if it has one of this name and size; returns whether it has.

        Raises:
            BadBundle: the file does not have the hash in the other bundle's manifest.
        """
        source, digest = self._shared.get(file, (None, ""))
        last = self._places[self._parts[file][-1]]
        if source is None or not source.is_file() or source.stat().st_size != last.offset + last.size:
            return False
        if sha256(source) != digest.removeprefix("sha256:"):
            raise BadBundle(f"{source} is damaged and cannot be shared; export that bundle again")
        self._folder.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):
            os.link(source, self._folder / file)
            return True
        shutil.copyfile(source, self._folder / file)
        return True


def model_parts(family: Family) -> dict[str, nn.Module]:
    """Return the parts of a model by the names of their files."""
    decoder = family.decoder
    digits = max(2, len(str(len(decoder.layers) - 1)))
    layers = {f"layer_{number:0{digits}}": layer for number, layer in enumerate(decoder.layers)}
    head = nn.ModuleList([decoder.norm, decoder.head])
    return {
        "embed": decoder.embed,
        **layers,
        "head": head,
        "projector": family.projector(),
        "vision": family.vision(),
    }


def write(out: BinaryIO, offset: int, tensor: Tensor) -> None:
    """Write the values of a tensor to a file at `offset`; a gap before them is filled with zeros."""
    flat = tensor.contiguous().reshape(-1)
    out.seek(offset)
    out.write(memoryview(flat.view(torch.uint8).numpy()))  # type: ignore[arg-type]


def _linear(parts: Iterable[nn.Module]) -> frozenset[nn.Parameter]:
    """Return the weights used by linear layers only, so not an embedding that is tied to the head."""
    linear, other = set[nn.Parameter](), set[nn.Parameter]()
    for module in (module for part in parts for module in part.modules()):
        for name, weight in module.named_parameters(recurse=False):
            (linear if isinstance(module, nn.Linear) and name == "weight" else other).add(weight)
    return frozenset(linear - other)
