# SPDX-License-Identifier: Apache-2.0
"""The number of kernels that NVIDIA's compiler makes of a gate of every method, for 576 vision tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig

from secateur.bundle.manifest import TensorSpec
from secateur.bundle.schedule import Gate
from secateur.bundle.symbolic_shape import resolve
from secateur.calibration.schedules import calibrate, measure
from secateur.engines.compiler import compile_graph
from secateur.engines.manifest import Profile, Range
from secateur.export.first_maximum import replace_single_topk
from secateur.export.graphs import build_graphs, sized_model
from secateur.export.targets import target
from secateur.export.to_onnx import to_onnx
from secateur.families.llava import Family
from secateur.selection.budget import BudgetRequest
from tests.conftest import METHODS, method

ONCE, PICK, GREEDY = 15, 2, 20
"""Most kernels of a gate that scores once; of one that picks token by token: for each pick, and for the rest."""
TEXT = 40
FEW = {"btp": BudgetRequest(keep=(40,), layers=(2,)), "divprune": BudgetRequest(keep=(24,))}
"""Smaller requests of methods whose graphs grow with the number of picks."""


@pytest.fixture(scope="module")
def family() -> Family:
    """LLaVA-1.5's 24 x 24 patches with random weights."""
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=336, patch_size=14
    )
    text = LlamaConfig(
        hidden_size=512,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=64,
        max_position_embeddings=1024,
    )
    made = Family.random(vision, text)
    made.to(torch.float16)
    return made


def picks(name: str, gate: Gate) -> int:
    """Number of steps that each wait for the one before: tokens of DivPrune and BTP, pivots of DART."""
    if name == "divprune":
        return gate.keep
    steps = ("diversity", "fills", "image_pivots", "text_pivots")
    return sum(gate.selector.get(step, 0) for step in steps)


@pytest.mark.parametrize("name", METHODS)
def test_kernels(name: str, family: Family, tmp_path: Path) -> None:
    """The last of the first two gates, since the second routing gate has more to do than the first.

    Its sizes are fixed before the export, which is several times faster so.
    """
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed: pip install 'secateur[rtx]'")
    made = method(name)
    schedule = calibrate(made, family, measure(family, [], made.statistics), FEW.get(name, BudgetRequest()))
    gate = schedule.gates[:2][-1] if schedule.gates[0].kind == "route" else schedule.gates[0]
    if gate.kind == "downsample":
        pytest.skip("chooses nothing: the image is made smaller")
    wanted = target("tensorrt")
    graphs = build_graphs([sized_model(family, family.layout, [schedule])], wanted)
    (graph,) = [g for g in graphs if g.spec.name == f"{schedule.name}.{schedule.gates.index(gate)}"]
    assert family.layout.vision_tokens == 576
    sizes = {"B": 1, "S": 576 + TEXT}

    def fixed(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(replace(x, shape=tuple(resolve(d, sizes) for d in x.shape)) for x in specs)

    spec = replace(graph.spec, inputs=fixed(graph.spec.inputs), outputs=fixed(graph.spec.outputs))
    path = tmp_path / "gate.onnx"
    to_onnx(replace(graph, spec=spec), path, wanted.opset, change=replace_single_topk)
    shapes = {x.name: tuple(resolve(d, sizes) for d in x.shape) for x in spec.inputs}
    profile = Profile("prefill", {n: Range(s, s, s) for n, s in shapes.items()})
    kernels = compile_graph(path, [profile]).kernels[0]
    steps = picks(name, gate)
    bound = PICK * steps + GREEDY if steps else ONCE
    assert len(kernels) <= bound, "\n".join(kernel.name for kernel in kernels)
