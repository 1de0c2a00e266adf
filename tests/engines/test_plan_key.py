# SPDX-License-Identifier: Apache-2.0
"""Keys of plans. Two graphs with equal weights share one weight file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from secateur.bundle.manifest import GraphSpec
from secateur.engines.manifest import graph_files, identity, plan_key
from secateur.export.bundle import Exported

WEIGHTS = {"vision": "vision.onnx.data", "small.0": "vision.onnx.data", "segment_1": "segment_1.onnx.data"}


class Listed:
    """Manifest with only the fields that `plan_key` reads."""

    def __init__(self, names: list[str]) -> None:
        self.files = {name: f"hash of {name}" for name in names}


def graph(name: str) -> GraphSpec:
    return GraphSpec(name, "gate", f"onnx/{name}.onnx", (), ())


@pytest.fixture
def bundle(tmp_path: Path) -> tuple[Path, Any]:
    """Write graphs with the weight files of the table; `plain` has none."""
    (tmp_path / "onnx").mkdir()
    for name in (*WEIGHTS, "plain"):
        made = numpy_helper.from_array(np.ones(4, np.float32), "w")
        if name in WEIGHTS:
            set_external_data(made, WEIGHTS[name], 0, 16)
            made.ClearField("raw_data")
        x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [4]) for n in "xy")
        body = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], name, [x], [y], [made])
        (tmp_path / "onnx" / f"{name}.onnx").write_bytes(helper.make_model(body).SerializeToString())
    data = [f"onnx/{file}" for file in {*WEIGHTS.values(), "segment_2.onnx.data"}]
    return tmp_path, Listed([*data, "elsewhere/vision.onnx.data", *(graph(n).file for n in (*WEIGHTS, "plain"))])


@pytest.mark.parametrize(("name", "weights"), [*((n, [f"onnx/{w}"]) for n, w in WEIGHTS.items()), ("plain", [])])
def test_the_files_of_a_graph(bundle: tuple[Path, Any], name: str, weights: list[str]) -> None:
    root, manifest = bundle
    assert graph_files(manifest, root, graph(name)) == (graph(name).file, *weights)


def test_a_change_of_shared_weights_changes_both_keys(bundle: tuple[Path, Any]) -> None:
    root, manifest = bundle
    before = {name: plan_key(manifest, root, graph(name), (), {}) for name in (*WEIGHTS, "plain")}
    manifest.files["onnx/vision.onnx.data"] = "another"
    changed = {name for name, made in before.items() if plan_key(manifest, root, graph(name), (), {}) != made}
    assert changed == {"vision", "small.0"}


def test_the_identity_of_a_timed_bundle(trt_bundle: tuple[Path, Exported]) -> None:
    """The identity depends on model, target and graphs, not on schedules or other weights."""
    manifest = trt_bundle[1].manifest
    others = (
        replace(manifest, model=replace(manifest.model, fingerprint="another")),
        replace(manifest, target="tensorrt-10.15"),
        replace(manifest, files=manifest.files | {"onnx/embed.onnx": "another"}),
    )
    assert len({identity(one) for one in (manifest, *others)}) == 4
    assert identity(replace(manifest, schedules={})) == identity(manifest)
