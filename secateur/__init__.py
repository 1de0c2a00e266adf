# SPDX-License-Identifier: Apache-2.0
"""Secateur: calibrated vision-token pruning, exported as ONNX graphs and TensorRT engines.

schedule = secateur.calibrate("demo", method="btp", compression=0.78)
secateur.export_bundle("demo", [schedule], target="cpu", out="build/demo-btp")
with secateur.Pipeline.load("build/demo-btp") as vlm:
    print(vlm.ask("scene.png", "what color is the seven ?").text)

Names are imported when they are first used: the runtime works without the packages that calibration and export need.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from secateur.version import __version__

if TYPE_CHECKING:
    from secateur.api import Calibration, calibrate, export_bundle, load
    from secateur.bundle.reader import Bundle
    from secateur.bundle.sampling import Sampling
    from secateur.bundle.schedule import Schedule
    from secateur.runtime.chat import Chat
    from secateur.runtime.pipeline import Pipeline
    from secateur.runtime.receipt import Answer

__all__ = [
    "Answer",
    "Bundle",
    "Calibration",
    "Chat",
    "Pipeline",
    "Sampling",
    "Schedule",
    "__version__",
    "calibrate",
    "export_bundle",
    "load",
]

_MODULES = {
    "Answer": "secateur.runtime.receipt",
    "Bundle": "secateur.bundle.reader",
    "Calibration": "secateur.api",
    "Chat": "secateur.runtime.chat",
    "Pipeline": "secateur.runtime.pipeline",
    "Sampling": "secateur.bundle.sampling",
    "Schedule": "secateur.bundle.schedule",
    "calibrate": "secateur.api",
    "export_bundle": "secateur.api",
    "load": "secateur.api",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module 'secateur' has no attribute '{name}'")
    return getattr(importlib.import_module(_MODULES[name]), name)
