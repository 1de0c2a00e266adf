# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXPORT = """
import json, resource, sys
from pathlib import Path
from transformers import CLIPVisionConfig, LlamaConfig
from secateur.calibration.capture import capture
from secateur.export.bundle import export
from secateur.export.targets import target
from secateur.methods.base import BudgetRequest
from secateur.methods.random import Method
from secateur.models.llava import Family

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def make(width, layers):
    vision = CLIPVisionConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                              image_size=48, patch_size=8)
    text = LlamaConfig(hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
                       num_attention_heads=width // 64, num_key_value_heads=width // 64, vocab_size=512,
                       max_position_embeddings=512)
    return Family.random(vision, text)

def write(family, name):
    schedule = Method().calibrate(capture(family, [], frozenset()), BudgetRequest(keep=(0.5,), layers=(4,)))
    return export(family, [schedule], target("cpu"), Path(sys.argv[1]) / name)

write(make(64, 8), "small")  # the tracer's own memory
before = peak()
large = make(1536, 8)
checkpoint = sum(p.numel() * p.element_size() for p in large.model.parameters())
write(large, "large")
folder = Path(sys.argv[1]) / "large" / "onnx"
segment = max(p.stat().st_size for p in folder.glob("segment_*.data"))
print(json.dumps({"checkpoint": checkpoint, "segment": segment, "peak": peak() - before}))
"""


@pytest.mark.slow
def test_an_export_needs_little_more_than_the_checkpoint(tmp_path: Path) -> None:
    """Peak memory with the check against torch, over what an export of next to nothing needs."""
    done = subprocess.run([sys.executable, "-c", EXPORT, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["checkpoint"] > 800e6
    assert found["peak"] < 1.5 * found["checkpoint"] + found["segment"], found
