# SPDX-License-Identifier: Apache-2.0
"""Valid and invalid engines.json and cases.json, and keys of plans. Two graphs share a weight file."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from secateur.bundle.manifest import GraphSpec
from secateur.bundle.strict_json import read_json, to_json
from secateur.engines.cases import CASES_FILE, Case, Cases
from secateur.engines.manifest import EnginePlan, Engines, Limits, Profile, Range, graph_files, identity, plan_key
from secateur.engines.platforms import Device, Platform
from secateur.errors import BadEngine, BadMeasurement
from secateur.export.bundle import Exported

PLATFORM = Platform("trt", "10.3.0.30", ("87",), Device("Orin", "8.7", 16, "12.6", "12.6", "Linux-aarch64"))
PLAN = EnginePlan("embed", "embed.plan", "00", "00", (), 1, 0.5)
ENGINES = Engines(PLATFORM, Limits(), {"tf32": False}, (PLAN,))
WEIGHTS = {"vision": "vision.onnx.data", "small.0": "vision.onnx.data", "segment_1": "segment_1.onnx.data"}
CASE = Case("embed.decode", "embed", "decode", 1, {"x": (1, 0)}, ("full",))


def test_the_options_of_the_same_build() -> None:
    assert ENGINES.options == ""
    masked = Profile("prefill", {"past_key.0": Range((1, 1), (1, 1), (9, 1))})
    plan = dataclasses.replace(PLAN, profiles=(masked,))
    other = dataclasses.replace(ENGINES, limits=Limits(4, 256, 64), plans=(plan,))
    assert other.options == " --max-batch 4 --max-new-tokens 64 --masked-past"
    bundle = Path("b")
    assert PLATFORM.mend(bundle, other.options).endswith(
        "`secateur build b --max-batch 4 --max-new-tokens 64 --masked-past`"
    )
    assert (
        Platform("rtx", "1.7", ("86",), None)
        .mend(bundle, " --x")
        .endswith("`secateur build b --engine rtx --sm 86 --x`")
    )


def test_a_written_file_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "engines.json").write_text(to_json(ENGINES))
    assert read_json(Engines, tmp_path / "engines.json", BadEngine) == ENGINES
    (tmp_path / CASES_FILE).write_text(to_json(Cases("00", (CASE,))))
    assert Cases.read(tmp_path) == Cases("00", (CASE,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plans": (PLAN, PLAN)}, "a graph has several plans"),
        ({"schema": 1}, "engines schema 1 is not known"),
    ],
)
def test_engines_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadEngine, match=message):
        dataclasses.replace(ENGINES, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": "../embed.plan"}, "'../embed.plan', which is outside its folder"),
        ({"memory": -1}, "needs -1 bytes"),
        ({"seconds": float("nan")}, "took nan s"),
    ],
)
def test_plans_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadEngine, match=re.escape(message)):
        dataclasses.replace(PLAN, **change)


@pytest.mark.parametrize("name", ["batch", "text", "new_tokens"])
def test_limits_refused(name: str) -> None:
    with pytest.raises(BadEngine, match=f"the limit '{name}' is 0; it must be at least 1"):
        Limits(**{name: 0})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../x"}, "must be letters, digits"),
        ({"kind": "other"}, "use one of encode, prefill, decode"),
        ({"profile": 2}, "has the profile 2; it must be 0 or 1"),
        ({"shapes": {"x": (1, -1)}}, "a shape with a negative size"),
    ],
)
def test_cases_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadMeasurement, match=message):
        dataclasses.replace(CASE, **change)


def test_cases_of_one_name_refused() -> None:
    with pytest.raises(BadMeasurement, match="two cases have the same name"):
        Cases("00", (CASE, CASE))


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
        dataclasses.replace(manifest, model=dataclasses.replace(manifest.model, fingerprint="another")),
        dataclasses.replace(manifest, target="another"),
        dataclasses.replace(manifest, files=manifest.files | {"onnx/embed.onnx": "another"}),
    )
    assert len({identity(one) for one in (manifest, *others)}) == 4
    assert identity(dataclasses.replace(manifest, schedules={})) == identity(manifest)
