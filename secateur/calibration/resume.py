# SPDX-License-Identifier: Apache-2.0
"""Save the state of a measurement between two layers, so that a killed calibration can resume.

The state is one file, replaced atomically: the input rows of a layer, and the measurements so far.
"""

from __future__ import annotations

import errno
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from secateur.bundle.atomic import write_with

FORMAT = 3
EVERY = 30.0
"""Minimum seconds between two writes; a small model finishes earlier."""


class MeasuringState(NamedTuple):
    """Input rows [1, S, D] of layer `layer` for each sample, and measured tensors by name."""

    layer: int
    rows: list[Tensor]
    measured: dict[str, Tensor]


class Resume:
    """State file in `folder`; with None nothing is saved."""

    def __init__(
        self, folder: Path | None, key: Sequence[object], rows: Sequence[Tensor], every: float | None = None
    ) -> None:
        """`key` and the input rows of layer 0 identify the calibration."""
        digest = hashlib.sha256(json.dumps([FORMAT, torch.__version__, *key], default=str).encode())
        for each in rows:
            digest.update(each.contiguous().view(torch.uint8).numpy().tobytes())
        self._name, self._written = digest.hexdigest(), time.monotonic()
        self._every = EVERY if every is None else every
        self._path = None if folder is None else folder / f"measure-{self._name[:16]}.safetensors"

    def read(self) -> MeasuringState | None:
        """Return the state that an earlier run saved, or None if there is none or it is damaged."""
        if self._path is None:
            return None
        try:
            tensors = load_file(self._path)
            layer, count, name = int(tensors.pop("layer")), int(tensors.pop("samples")), tensors.pop("name")
        except (OSError, KeyError, SafetensorError):
            return None
        if bytes(name.tolist()).hex() != self._name:
            return None
        return MeasuringState(layer, [tensors.pop(f"rows.{i}") for i in range(count)], tensors)

    def write(self, layer: int, rows: Sequence[Tensor], measured: Mapping[str, Tensor]) -> None:
        """Save the state before layer `layer`, unless the last write was less than `every` seconds ago.

        Raises:
            BadOutput: the folder cannot be written.
        """
        if self._path is None or time.monotonic() - self._written < self._every:
            return
        own = {f"rows.{i}": each.contiguous() for i, each in enumerate(rows)}
        name = torch.tensor(list(bytes.fromhex(self._name)), dtype=torch.uint8)
        head = {"layer": torch.tensor(layer), "samples": torch.tensor(len(rows)), "name": name}
        tensors = own | head | {n: t.contiguous() for n, t in measured.items()}
        write_with(self._path, lambda partial: _save(tensors, partial))
        self._written = time.monotonic()

    def done(self) -> None:
        """Delete the state: the measurement is complete."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    """Write the tensors without copying them; any failure is raised as OSError."""
    try:
        save_file(tensors, path)
    except SafetensorError as problem:
        raise OSError(errno.EIO, str(problem)) from None
