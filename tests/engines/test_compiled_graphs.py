# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's compiler takes every graph, fuses the attention of segments and copies no weight.

Families (tiles, windows, M-RoPE), dtypes, two images; tests/export/test_gate_kernels.py has the gates of all methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from secateur import families, plugins
from secateur.bundle.reader import Bundle
from secateur.engines.compiler import compile_graph
from secateur.engines.manifest import Limits
from secateur.engines.shapes import profiles
from secateur.export.bundle import Exported
from secateur.export.graphs import Graph
from secateur.export.targets import target
from secateur.families.base import Family
from secateur.selection.budget import BudgetRequest
from tests.conftest import method, schedules, tiny_family
from tests.model_fixtures.compiled import check, compiled

pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
FIRST = BudgetRequest(keep=(0.5,), layers=(1,))
"""A gate after the first layer."""
BUNDLED = ("alvts", "btp", "visionzip", "vtw")


def gates(graphs: Sequence[Graph]) -> list[Graph]:
    return [graph for graph in graphs if graph.spec.kind == "gate"]


def test_every_graph_of_a_bundle(trt_bundle: tuple[Path, Exported]) -> None:
    bundle = Bundle.load(trt_bundle[0], verify=False)
    assert set(BUNDLED) < set(bundle.manifest.schedules)
    shapes = profiles(bundle.manifest, Limits(1, 20, 10), "btp")
    for spec in bundle.manifest.graphs:
        weights = [weight.name for weight in spec.weights]
        check(spec, compile_graph(bundle.path(spec.file), shapes[spec.name], weights=weights))


@pytest.mark.parametrize("name", plugins.names(families))
def test_every_family(name: str, tmp_path: Path) -> None:
    family = tiny_family(name)
    made = schedules(family, {"fastv": method("fastv")}, FIRST)
    assert len(compiled(family, made, target("tensorrt"), tmp_path)) == 2


def test_bf16(tiny: Family, tmp_path: Path) -> None:
    made = schedules(tiny, {"fastv": method("fastv")}, FIRST)
    assert len(compiled(tiny, made, target("tensorrt", "bf16"), tmp_path)) == 2


def test_two_images(tiny: Family, tmp_path: Path) -> None:
    family = tiny.at(images=2)
    made = schedules(family, {"fastv": method("fastv")}, FIRST)
    assert compiled(family, made, target("tensorrt"), tmp_path, gates)
