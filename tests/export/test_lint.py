# SPDX-License-Identifier: Apache-2.0
"""The graphs of every method, as exported for both TensorRT targets, against the tables of operators."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from secateur.bundle.manifest import GraphSpec, TensorSpec
from secateur.engines.version import FLOORS, Version
from secateur.errors import Unparsable
from secateur.export.bundle import Exported, ExportPlan, export
from secateur.export.graphs import Graph, build_graphs, sized_model
from secateur.export.lint import lint, lint_bundle, operators_used
from secateur.export.targets import target
from secateur.export.to_onnx import to_onnx
from secateur.families.llava import Family
from secateur.runtime import Bundle
from secateur.selection.budget import BudgetRequest
from tests.conftest import COMPRESSION, METHODS, OPTIONS, VARIANTS, method, schedules

FUSED = {"Attention", "RMSNormalization", "RotaryEmbedding"}
VERSIONS = {
    "tensorrt": [Version(10, 3), Version(10, 13), Version(11, 1)],
    "tensorrt-10.15": [Version(10, 15), Version(10, 16), Version(11, 1)],
}


@pytest.fixture(scope="module", params=VERSIONS)
def graphs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Path]]:
    """A target and its graphs of a tiny model, without the third and later gates of a schedule, which are similar."""
    kind = target(request.param)
    family = Family.tiny()
    chosen = {name: method(name) for name in METHODS} | {n: method(OPTIONS[n][0], **OPTIONS[n][1]) for n in VARIANTS}
    made = schedules(family, chosen, BudgetRequest(compression=COMPRESSION))
    family.to(kind.torch_dtype)
    folder = tmp_path_factory.mktemp(kind.name)
    bucket = sized_model(family, family.layout, made)
    repeated = {placed.name for gates in bucket.gates.values() for placed in gates[2:]}
    paths = []
    for graph in build_graphs([bucket], kind):
        if graph.spec.name not in repeated:
            paths.append(folder / graph.spec.file)
            to_onnx(graph, paths[-1], kind.opset)
    return kind.name, paths


@pytest.mark.slow
def test_the_graphs_of_every_method_pass(graphs: tuple[str, list[Path]]) -> None:
    name, paths = graphs
    assert {path.name.partition(".")[0] for path in paths} >= {*METHODS} - {"downsample"}
    for version in VERSIONS[name]:
        assert [str(finding) for path in paths for finding in lint(path, version)] == []


@pytest.mark.slow
def test_fused_graphs_are_refused_by_versions_that_cannot_parse_them(graphs: tuple[str, list[Path]]) -> None:
    name, paths = graphs
    findings = [finding for path in paths for finding in lint(path, Version(10, 3))]
    assert {x.operator for x in findings} == ({"opset"} | FUSED if name == "tensorrt-10.15" else set())
    assert all(x.graph and x.node and "--target tensorrt" in x.mend for x in findings)


def test_operators_of_a_bundle(trt_bundle: tuple[Path, Exported]) -> None:
    bundle = Bundle.load(trt_bundle[0])
    assert lint_bundle(bundle) == lint_bundle(bundle, Version(10, 13)) == lint_bundle(bundle, Version(11, 1)) == ()
    used = {x.operator: x for x in operators_used(bundle)}
    assert used["TopK"].ok and used["TopK"].count > 0 and "NvInfer.h" in used["TopK"].source
    assert all(x.ok and x.source for x in used.values()) and list(used) == sorted(used)
    assert not FUSED & set(used)


def test_a_bundle_for_another_target_is_checked_only_for_a_given_version(trt_bundle: tuple[Path, Exported]) -> None:
    bundle = Bundle.load(trt_bundle[0], verify=False)
    bundle = replace(bundle, manifest=replace(bundle.manifest, target="cpu"))
    assert lint_bundle(bundle) == () and operators_used(bundle) == []
    assert lint_bundle(bundle, Version(10, 3)) == () and operators_used(bundle, Version(10, 3))


class Norm(nn.Module):
    """A norm in fp32 of rows in fp16, as in a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = LlamaRMSNorm(8)

    def forward(self, rows: Tensor) -> Tensor:
        out: Tensor = self.norm(rows.float())
        return out


def test_a_norm_takes_rows_of_the_dtype_of_its_weights(tmp_path: Path) -> None:
    tensors = (TensorSpec("rows", "float16", ("B", 8)),), (TensorSpec("out", "float32", ("B", 8)),)
    path, module = tmp_path / "norm.onnx", Norm()
    to_onnx(Graph(GraphSpec("norm", "gate", path.name, *tensors), module), path, 23)
    assert [node.op_type for node in onnx.load(path).graph.node] == ["Cast", "RMSNormalization"]
    assert lint(path, Version(10, 15)) == ()
    rows = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float16)
    found = onnxruntime.InferenceSession(path).run(None, {"rows": rows})[0]
    assert np.allclose(found, module(torch.from_numpy(rows)).detach().numpy(), atol=1e-6)


def test_an_export_that_tensorrt_would_refuse_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FLOORS, "tensorrt-10.15", Version(10, 3))
    problem = r"TensorRT 10\.3 does not support a graph of the bundle: graph 'vision'.*more in this graph\)$"
    with pytest.raises(Unparsable, match=problem):
        export([ExportPlan(Family.tiny(), ())], target("tensorrt-10.15", "fp32"), tmp_path / "out", verify=False)
    assert list(tmp_path.iterdir()) == []
