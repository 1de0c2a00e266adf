# SPDX-License-Identifier: Apache-2.0
"""Backend torch on a CUDA device: what can be tested without one, and a run on one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from secateur import families, methods, plugins
from secateur.calibration.samples import Sample
from secateur.calibration.schedules import make_schedules
from secateur.checkpoints.streaming import is_streamed, stream, to_device
from secateur.demo.scenes import samples
from secateur.errors import BackendMissing
from secateur.export.graphs import build_graphs, move, sized_model
from secateur.export.targets import target
from secateur.families.base import Family
from secateur.runtime import Pipeline
from secateur.selection.budget import BudgetRequest


def test_no_device_is_one_line(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendMissing, match="^backend 'torch' needs a CUDA device, .*; .* or use --device cpu$"):
        Pipeline.load(bundle_path, backend="torch", device="cuda", verify=False)


@pytest.mark.parametrize("name", plugins.names(families))
def test_graphs_move_as_a_whole(name: str) -> None:
    """On the device "meta", which has no values, operators refuse tensors of the CPU, and reads by the host fail.

    So nothing of a graph is left behind, and nothing in it waits for a GPU.
    """
    family: Family = plugins.load(families, name, "model family").Family.tiny()
    wanted = plugins.names(methods) if name == "llava" else ("alvts", "fastv")
    chosen = [plugins.load(methods, method, "method").Method() for method in wanted]
    few = [Sample(s.image, "w1 w2 w3") for s in samples("calibration", 2, 0)]
    made = make_schedules(family, chosen, [BudgetRequest(compression=0.5)], few)
    made = [replace(schedule, name=method) for schedule, method in zip(made, wanted, strict=True)]
    graphs = build_graphs([sized_model(family, family.layout, made)], target("cpu"))
    move(family, graphs, "meta")
    for graph in graphs:
        found = graph.module(*(x.to("meta") for x in graph.example()))
        assert all(x.is_meta for x in (found if isinstance(found, tuple) else (found,))), graph.spec.name


def test_weights_in_files_are_read_once(tiny: Family, tmp_path: Path) -> None:
    tiny.model.save_pretrained(tmp_path)
    model: Any = stream(type(tiny).architecture, tmp_path)
    assert is_streamed(model)
    to_device(model, "cpu")
    assert not is_streamed(model)
    for name, weight in tiny.model.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name
    to_device(model, "meta")
    assert model.device == model.get_decoder().device == torch.device("meta")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
@pytest.mark.parametrize("schedule", ["full", "prune", "early", "none"])
def test_on_a_real_device(schedule: str, bundle_path: Path, picture: Any) -> None:
    answers = []
    for device in ("cpu", "cuda"):
        with Pipeline.load(bundle_path, backend="torch", verify=False, device=device) as vlm:
            answers.append(vlm.ask(picture(0), "what color is the seven ?", schedule, max_new_tokens=4))
            assert bool(vlm.describe()) == (device == "cuda")
    want, got = answers
    assert got.kept == want.kept
    np.testing.assert_allclose(got.first_logits, want.first_logits, rtol=1e-2, atol=1e-2)
