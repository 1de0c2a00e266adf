# SPDX-License-Identifier: Apache-2.0
"""The graphs of every method, as exported for TensorRT, against the tables of operators."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from secateur.engines.version import Version
from secateur.errors import Unparsable
from secateur.export.bundle import Exported, ExportPlan, export
from secateur.export.graphs import build_graphs, sized_model
from secateur.export.lint import lint, lint_bundle, operators_used
from secateur.export.operators import TABLES
from secateur.export.targets import target
from secateur.export.to_onnx import to_onnx
from secateur.families.llava import Family
from secateur.runtime import Bundle
from secateur.selection.budget import BudgetRequest
from tests.conftest import COMPRESSION, METHODS, OPTIONS, VARIANTS, method, schedules

FUSED = {"Attention", "RMSNormalization", "RotaryEmbedding"}


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The graphs of a tiny model, without the third and later gates of a schedule, which are similar."""
    kind = target("tensorrt")
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
    return paths


@pytest.mark.slow
def test_the_graphs_of_every_method_pass(graphs: list[Path]) -> None:
    assert {path.name.partition(".")[0] for path in graphs} >= {*METHODS} - {"downsample"}
    for table in TABLES:
        assert [str(finding) for path in graphs for finding in lint(path, table.version)] == []


def test_fused_graphs_are_refused(tiny_bundle: tuple[Path, Exported]) -> None:
    bundle = Bundle.load(tiny_bundle[0], verify=False)
    for version in (Version(10, 3), Version(11, 1)):
        findings = lint_bundle(bundle, version)
        assert {x.operator for x in findings} == FUSED | ({"opset"} if version < Version(10, 15) else set())
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


def test_an_export_that_tensorrt_would_refuse_leaves_nothing(tmp_path: Path) -> None:
    fused = replace(target("tensorrt", "fp32"), opset=23, decomposed=False)
    problem = r"TensorRT 10\.15 does not support a graph of the bundle: graph 'vision'.*more in this graph\)$"
    with pytest.raises(Unparsable, match=problem):
        export([ExportPlan(Family.tiny(), ())], fused, tmp_path / "out", verify=False)
    assert list(tmp_path.iterdir()) == []
