# SPDX-License-Identifier: Apache-2.0
"""Saved state of a calibration, to resume it after a kill: one file with the candidates of each finished layer.

The folder's name is a hash of everything that the candidates depend on: model, samples and options, but not the budget.
A truncated or altered file counts as absent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from secateur.bundle.atomic import write_bytes
from secateur.selection.alignment import Candidates, Options
from secateur.selection.low_rank import Factors
from secateur.selection.statistics import LayerRows, Statistics

FORMAT = 1


class AlignmentState:
    """Finished layers in a folder; without a folder nothing is saved."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    @classmethod
    def of(cls, statistics: Statistics, first: LayerRows, options: Options) -> AlignmentState:
        """Return the state of a calibration; the samples are hashed by the rows that enter the `first` layer."""
        if statistics.work is None:
            return cls(None)
        digest = hashlib.sha256()
        layout = asdict(statistics.layout)
        key = [FORMAT, torch.__version__, statistics.model.fingerprint, layout, statistics.seed, asdict(options)]
        digest.update(json.dumps(key).encode())
        for rows in first.rows:
            digest.update(f"{tuple(rows.shape)} {rows.dtype}".encode())
            digest.update(rows.contiguous().view(torch.uint8).numpy().tobytes())
        return cls(statistics.work / f"alvts-{digest.hexdigest()[:16]}")

    def read(self, layer: int) -> Candidates | None:
        """Return the candidates of a layer; None if they are absent or damaged."""
        if self.folder is None:
            return None
        try:
            with safe_open(self._path(layer), framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}
                digest = (file.metadata() or {}).get("sha256")
        except (OSError, SafetensorError):
            return None
        if digest != self._digest(layer, tensors):
            return None
        passes = tensors["scores"].shape[0]
        factors = [Factors(*(tensors[f"{number}.{name}"] for name in Factors._fields)) for number in range(passes)]
        return Candidates(factors, tensors["scores"], tensors["truth"])

    def write(self, layer: int, candidates: Candidates) -> None:
        """Save the candidates of a layer atomically.

        Raises:
            BadOutput: the folder cannot be written.
        """
        if self.folder is None:
            return
        tensors = {"scores": candidates.scores, "truth": candidates.truth}
        for number, factors in enumerate(candidates.factors):
            tensors |= {f"{number}.{name}": tensor for name, tensor in factors._asdict().items()}
        write_bytes(self._path(layer), save(tensors, {"sha256": self._digest(layer, tensors)}))

    def _path(self, layer: int) -> Path:
        assert self.folder is not None
        return self.folder / f"layer_{layer:02}.safetensors"

    def _digest(self, layer: int, tensors: Mapping[str, Tensor]) -> str:
        """Hash the values and the file's path, so that a file of another layer or calibration is rejected."""
        digest = hashlib.sha256("/".join(self._path(layer).parts[-2:]).encode())
        for name, tensor in sorted(tensors.items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()
