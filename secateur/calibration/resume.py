# SPDX-License-Identifier: Apache-2.0
"""The state of a long measurement between two layers, so that a killed calibration goes on where it was.

One file, replaced as a whole: what the samples have become up to a layer, and what was measured so far.
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
"""Seconds between two writes at least: a small model is done before."""


class MeasuringState(NamedTuple):
    """Rows [1, S, D] of each sample that enter layer `layer`, and measured tensors by name."""

    layer: int
    rows: list[Tensor]
    measured: dict[str, Tensor]


class Resume:
    """The state in a file of `folder`; None: nothing is kept."""

    def __init__(
        self, folder: Path | None, key: Sequence[object], rows: Sequence[Tensor], every: float | None = None
    ) -> None:
        """`key` and the rows that enter layer 0 tell one calibration from another."""
        digest = hashlib.sha256(json.dumps([FORMAT, torch.__version__, *key], default=str).encode())
        for each in rows:
            digest.update(each.contiguous().view(torch.uint8).numpy().tobytes())
        self._name, self._written = digest.hexdigest(), time.monotonic()
        self._every = EVERY if every is None else every
        self._path = None if folder is None else folder / f"measure-{self._name[:16]}.safetensors"

    def read(self) -> MeasuringState | None:
        """What an earlier run left; None if there is nothing, or nothing whole."""
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
        """Keep the state before layer `layer`, if the last time is long enough ago.

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
        """The measurement is complete: nothing is to be resumed."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    """Write straight from the tensors' own memory.

    Raises:
        OSError: whatever went wrong.
    """
    try:
        save_file(tensors, path)
    except SafetensorError as problem:
        raise OSError(errno.EIO, str(problem)) from None
