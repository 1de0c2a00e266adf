# SPDX-License-Identifier: Apache-2.0
"""The one place of a bundle's weights: data files beside the graphs, each written once, tensor by tensor.

One file for each part of the model (embed, layer_00, layer_01, ..., head, projector, vision). What a file holds, in
which order and where, follows from the model and the dtype alone: not from where segments are cut, nor from target or
opset. So graphs share bytes, and so do bundles. Offsets are multiples of a page, for memory maps.

A weight of nn.Linear lies as MatMul and Gemm read it, [in, out]; turned in a graph it would become a copy in memory.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
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
    """Where a weight lies: `size` bytes from `offset` on in a file beside the graphs; transposed: [in, out]."""

    file: str
    offset: int
    size: int
    transposed: bool


class Store:
    """Data files of `parts` in `folder`; a weight of several parts lies with the first of them.

    parts   modules by the name of their file
    shared  files of another bundle's folder of graphs, with their sha256: those that are equal are linked (on another
            file system: copied) and not written. The caller knows that model and dtype are the same.
    replaced  weights that no graph reads, since it has integers in their place
    """

    def __init__(
        self,
        folder: Path,
        parts: Mapping[str, nn.Module],
        shared: Mapping[Path, str] | None = None,
        progress: Progress = silent,
        replaced: frozenset[nn.Parameter] = frozenset(),
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
            self._parts[file] = [weight for weight in own if weight not in replaced]
            for weight in self._parts[file]:
                start = -(-end // PAGE) * PAGE
                end = start + weight.nbytes
                self._places[weight] = WeightPlace(file, start, weight.nbytes, weight in self._linear)
        self._there: set[str] = set()

    @classmethod
    def of(
        cls,
        family: Family,
        folder: Path,
        shared: Mapping[Path, str] | None = None,
        progress: Progress = silent,
        replaced: frozenset[nn.Parameter] = frozenset(),
    ) -> Store:
        """The store of a whole model."""
        return cls(folder, parts(family), shared, progress, replaced)

    def is_transposed(self, weight: nn.Parameter) -> bool:
        """Whether the graphs get this weight as [in, out]."""
        return weight in self._linear

    def place(self, weight: nn.Parameter) -> WeightPlace | None:
        """Where `weight` lies, and now does: the first weight of a file writes it. None: the store does not have it."""
        place = self._places.get(weight)
        if place is not None and place.file not in self._there:
            if not self._link(place.file):
                self._write(place.file)
            self._there.add(place.file)
        return place

    def _write(self, file: str) -> None:
        weights = self._parts[file]
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / file).open("xb") as out:
            for done, weight in enumerate(weights):
                self._progress("weights", file, done, len(weights))
                write(out, self._places[weight].offset, value(weight).T if weight in self._linear else value(weight))

    def _link(self, file: str) -> bool:
        """Take the file from the other bundle, if it has one of this size.

        Raises:
            BadBundle: it is not the file that the other bundle was exported with.
        """
        source, digest = self._shared.get(file, (None, ""))
        last = self._places[self._parts[file][-1]]
        if source is None or not source.is_file() or source.stat().st_size != last.offset + last.size:
            return False
        if sha256(source) != digest.removeprefix("sha256:"):
            raise BadBundle(f"{source} is damaged, so it cannot be shared; export that bundle again")
        self._folder.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):
            os.link(source, self._folder / file)
            return True
        shutil.copyfile(source, self._folder / file)
        return True


def parts(family: Family) -> dict[str, nn.Module]:
    """The parts of a model by the names of their files."""
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
    """Put the values of a tensor into a file at `offset`; a gap in front of them is filled with zeros."""
    flat = tensor.contiguous().reshape(-1)
    out.seek(offset)
    out.write(memoryview(flat.view(torch.uint8).numpy()))  # type: ignore[arg-type]


def _linear(modules: Iterable[nn.Module]) -> frozenset[nn.Parameter]:
    """Weights that nothing but linear layers has; an embedding that is the head as well stays as it is."""
    linear, other = set[nn.Parameter](), set[nn.Parameter]()
    for module in _every(modules):
        for name, weight in module.named_parameters(recurse=False):
            (linear if isinstance(module, nn.Linear) and name == "weight" else other).add(weight)
    return frozenset(linear - other)


def _every(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    for module in modules:
        yield from module.modules()
