# SPDX-License-Identifier: Apache-2.0
"""A bundle with the sizes of LLaVA-1.5-7B, random weights and three decoder layers: the dry run of its build."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig

from secateur.calibration.capture import capture
from secateur.calibration.samples import Sample
from secateur.cli import main
from secateur.demo.scenes import samples
from secateur.export.bundle import ExportPlan, export
from secateur.export.targets import target
from secateur.families.llava import Family
from secateur.methods.fastv import Method
from secateur.selection.budget import BudgetRequest


@pytest.mark.slow
def test_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    family = Family.random(
        CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
        ),
        LlamaConfig(
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=3,
            num_attention_heads=32,
            num_key_value_heads=32,
            vocab_size=32064,
            max_position_embeddings=4096,
        ),
    )
    few = [Sample(sample.image, "w1 w2 w3") for sample in samples("calibration", 1, 0)]
    method = Method()
    schedule = method.calibrate(capture(family, few, method.statistics)[0], BudgetRequest(keep=(0.25,), layers=(2,)))
    family.to(torch.float16)
    export([ExportPlan(family, (schedule,))], target("tensorrt"), tmp_path / "bundle", verify=False)
    assert main(["build", str(tmp_path / "bundle"), "--dry-run", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    layout = family.layout
    rows = layout.image_start + layout.vision_tokens
    assert layout.vision_tokens == 576
    (gate,) = [name for name in result["build"] if name.startswith("fastv")]
    assert set(result["build"]) == {"vision", "projector", "embed", "rotary", "segment_0", "segment_1", gate}
    prefill, decode = (word for word in result["build"]["segment_1"] if word.startswith("--optShapes"))
    kept = layout.image_start + 144 + 32
    assert f"hidden_states:1x{kept}x4096" in prefill and "past_key.2:0x1x32x128" in prefill
    assert f"past_key.2:{rows + 256 + 128}x1x32x128" in decode, "a recorded step reads the whole cache"
    assert "hidden_states:1x1x4096" in decode
    assert f"--maxShapes=input_ids:1x{rows + 256}" in result["build"]["embed"]
