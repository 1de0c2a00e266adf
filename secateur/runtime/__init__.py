# SPDX-License-Identifier: Apache-2.0
"""Run a bundle on a device: numpy, Pillow, tokenizers and one backend; no torch, no transformers.

with Pipeline.load("build/demo-btp") as vlm:
    print(vlm.ask("scene.png", "what color is the seven ?").text)
"""

from secateur.bundle.reader import Bundle
from secateur.bundle.sampling import Sampling
from secateur.runtime.chat import Chat
from secateur.runtime.pipeline import Pipeline
from secateur.runtime.receipt import Answer, GateReceipt, Receipt

__all__ = ["Answer", "Bundle", "Chat", "GateReceipt", "Pipeline", "Receipt", "Sampling"]
