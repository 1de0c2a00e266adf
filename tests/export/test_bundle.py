# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from secateur.bundle.schedule import Schedule
from secateur.bundle.strict_json import read_json, to_json
from secateur.errors import BadBundle, BadOutput, BadSchedule, ExportMismatch, InputError, UnknownName
from secateur.evaluation.precision import compare
from secateur.export import bundle as module
from secateur.export.bundle import Exported, ExportPlan, export, full
from secateur.export.parity import Parity
from secateur.export.targets import TARGETS, target
from secateur.export.to_onnx import FORBIDDEN
from secateur.families.base import Family
from secateur.runtime import Bundle, Pipeline
from secateur.selection.budget import budget
from tests.conftest import tiny_family

FUSED = {"Attention", "RMSNormalization", "RotaryEmbedding"}


def test_a_bundle_is_checked_and_loads(tiny_bundle: tuple[Path, Exported]) -> None:
    folder, exported = tiny_bundle
    assert all(p.passed and p.error <= 1e-4 for p in exported.parity)
    names = {p.name for p in exported.parity}
    assert names >= {g.name for g in exported.manifest.graphs}
    assert names >= {f"chain, {name}" for name in exported.manifest.schedules}
    assert Bundle.load(folder).manifest == exported.manifest


def test_an_fp32_bundle_equals_its_checkpoint(tiny_bundle: tuple[Path, Exported], tiny: Family) -> None:
    found = compare(Bundle.load(tiny_bundle[0]), 2, family=tiny)
    assert not found.failures and len(found.schedules) == len(tiny_bundle[1].manifest.schedules)
    assert all(s.overlap == s.same_token == 1 and s.relative_error < 1e-4 for s in found.schedules)


def test_no_file_contains_local_paths(tiny_bundle: tuple[Path, Exported]) -> None:
    folder, _ = tiny_bundle
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"site-packages" not in content and str(folder.parent).encode() not in content, path


def test_gates_are_static_and_no_graph_has_a_forbidden_operator(tiny_bundle: tuple[Path, Exported]) -> None:
    folder, exported = tiny_bundle
    for spec in exported.manifest.graphs:
        graph = onnx.load(folder / spec.file, load_external_data=False)
        assert not {node.op_type for node in graph.graph.node} & FORBIDDEN, spec.name
        if spec.kind != "gate":
            continue
        constants = {x.name for x in graph.graph.initializer}
        constants |= {node.output[0] for node in graph.graph.node if node.op_type == "Constant"}
        for node in graph.graph.node:
            if node.op_type == "TopK":
                assert node.input[1] in constants, f"{spec.name}: TopK with a K that is no constant"
                assert all(a.i == 1 for a in node.attribute if a.name == "sorted")
        assert all(isinstance(x.shape[1], int) for x in (*spec.inputs, *spec.outputs) if "vision_index" in x.name)


def test_weights_are_stored_once(tiny_bundle: tuple[Path, Exported], tiny: Family) -> None:
    folder, exported = tiny_bundle
    stored = sum((folder / name).stat().st_size for name in exported.manifest.files if name.startswith("onnx/segment"))
    decoder = sum(p.numel() * 4 for layer in tiny.decoder.layers for p in layer.parameters())
    head = sum(p.numel() * 4 for p in tiny.decoder.head.parameters())
    assert stored < 1.6 * (decoder + head)  # graphs of this size are not negligible


def test_the_decomposed_target(tiny: Family, tiny_bundle: tuple[Path, Exported], tmp_path: Path) -> None:
    """In fp32; the fixture trt_bundle is in fp16."""
    folder, full_exported = tiny_bundle
    file = folder / full_exported.manifest.schedules["btp-text"].file
    schedules = [read_json(Schedule, file, BadSchedule)]
    exported = export([ExportPlan(tiny, tuple(schedules))], target("tensorrt", "fp32"), tmp_path / "out")
    assert exported.manifest.opset == 20
    for spec in exported.manifest.graphs:
        graph = onnx.load(tmp_path / "out" / spec.file, load_external_data=False)
        assert [o.version for o in graph.opset_import if not o.domain] == [20]
        assert not {node.op_type for node in graph.graph.node} & FUSED, spec.name
    with Pipeline.load(tmp_path / "out") as vlm:
        for schedule in ("full", "btp-text"):
            blank = torch.zeros(24, 24, 3, dtype=torch.uint8).numpy()
            assert vlm.ask(blank, "w1 w2", schedule=schedule, max_new_tokens=2).tokens


def test_gates_have_metadata(tiny_bundle: tuple[Path, Exported]) -> None:
    folder, _ = tiny_bundle
    notes = {p.key: p.value for p in onnx.load(folder / "onnx" / "gates" / "btp.0.onnx").metadata_props}
    constants = json.loads(notes["secateur.gate"])
    assert (constants["method"], constants["layer"], constants["before"], constants["keep"]) == ("btp", 1, 36, 21)
    assert {"attention", "over", "early", "score"} <= set(constants)
    assert notes["secateur.calibration"].startswith("sha256:")


def test_a_scoring_gate_at_layer_0_is_refused(tiny: Family, tiny_bundle: tuple[Path, Exported], tmp_path: Path) -> None:
    folder, exported = tiny_bundle
    made = read_json(Schedule, folder / exported.manifest.schedules["btp"].file, BadSchedule)
    gates = (dataclasses.replace(made.gates[0], layer=0),)
    early = dataclasses.replace(made, gates=gates, budget=budget(tiny.dimensions, tiny.layout.vision_tokens, gates))
    with pytest.raises(BadSchedule, match="scores by the previous layer"):
        export([ExportPlan(tiny, (early,))], target("cpu"), tmp_path / "out")


def test_a_budget_that_is_not_that_of_the_gates_is_refused(
    tiny: Family, tiny_bundle: tuple[Path, Exported], tmp_path: Path
) -> None:
    folder, exported = tiny_bundle
    made = read_json(Schedule, folder / exported.manifest.schedules["btp"].file, BadSchedule)
    fewer = dataclasses.replace(made, gates=(*made.gates[:-1], dataclasses.replace(made.gates[-1], keep=1)))
    with pytest.raises(BadSchedule, match="the budget of schedule 'btp' is not that of its gates"):
        export([ExportPlan(tiny, (fewer,))], target("cpu"), tmp_path / "out")


def test_a_decoder_that_does_more_than_its_layers_fails_the_check(
    tiny: Family, tiny_bundle: tuple[Path, Exported]
) -> None:
    """As in Granite or Gemma, where the inputs of the layers are scaled outside of the layers."""
    from secateur.export.parity import check

    def scaled(module: object, args: tuple[object, ...], given: dict[str, Any]) -> tuple[object, dict[str, Any]]:
        return args, given | {"inputs_embeds": given["inputs_embeds"] * 3}

    hook = tiny.model.model.language_model.register_forward_pre_hook(scaled, with_kwargs=True)
    try:
        found = {p.name: p for p in check(Bundle.load(tiny_bundle[0]), tiny)}
    finally:
        hook.remove()
    assert not found["segments against the model"].passed
    assert found["chain, full"].passed


def test_targets() -> None:
    assert {t.opset for t in TARGETS.values()} == {20, 23}
    for name in ("tensorr", "tensorrt-10.15"):
        with pytest.raises(UnknownName, match=f"unknown target '{name}'.*Did you mean 'tensorrt'"):
            target(name)
    with pytest.raises(InputError, match="fp32, fp16"):
        target("cpu", "int3")


def test_a_mismatch_fails_and_leaves_nothing(tiny: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = Parity("segment_0", 0.5, 1e-4, False)
    monkeypatch.setattr(module, "to_onnx", lambda graph, path, *_: _touch(path))
    monkeypatch.setattr(module, "check", lambda *_: (bad,))
    with pytest.raises(ExportMismatch, match="segment_0, error 5.00e-01"):
        export([ExportPlan(tiny, ())], target("cpu"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def _touch(path: Path) -> tuple[()]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(onnx.ModelProto(ir_version=8).SerializeToString())
    return ()


def test_a_wrong_weight_fails_the_check(tiny: Family, tiny_bundle: tuple[Path, Exported], tmp_path: Path) -> None:
    """The check compares numbers, so a bundle of another model with the same fingerprint fails."""
    from secateur.export.parity import check

    folder, _ = tiny_bundle
    other = type(tiny).tiny()
    with torch.no_grad():
        next(other.decoder.layers[2].parameters())[0] += 0.5
    other.__dict__["fingerprint"] = tiny.fingerprint
    found = {p.name: p for p in check(Bundle.load(folder), other)}
    assert not found["chain, full"].passed
    assert found["projector"].passed


def test_schedules_of_other_models_and_repeated_names_are_refused(tiny: Family, tmp_path: Path) -> None:
    own = full(tiny)
    foreign = dataclasses.replace(own, name="x", model=dataclasses.replace(own.model, fingerprint="sha256:0"))
    with pytest.raises(BadSchedule, match=r"made for weights sha256:0 instead of sha256:\w{12}; calibrate it again$"):
        export([ExportPlan(tiny, (foreign,))], target("cpu"), tmp_path / "out")
    twice = dataclasses.replace(own, name="x")
    with pytest.raises(BadSchedule, match="two schedules are called 'x'"):
        export([ExportPlan(tiny, (twice, twice))], target("cpu"), tmp_path / "out")
    with pytest.raises(BadSchedule, match="two schedules are called 'full'"):
        export([ExportPlan(tiny, (own,))], target("cpu"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_schedule_for_another_prompt_is_refused_with_the_differences(tmp_path: Path) -> None:
    family = tiny_family("qwen2_5_vl")
    made = dataclasses.replace(full(family.at((32, 56))), name="wide")
    with pytest.raises(
        BadSchedule, match="'wide' does not fit .* made for image size 56x32 instead of 40x48, vision tok"
    ):
        export([ExportPlan(family, (made,))], target("cpu"), tmp_path / "out")
    made = dataclasses.replace(full(family.at(family.bucket, images=2)), name="two")
    with pytest.raises(
        BadSchedule, match="'two' does not fit .* made for images 2 instead of 1, vision tokens 60 inst"
    ):
        export([ExportPlan(family, (made,))], target("cpu"), tmp_path / "out")


def test_weights_of_another_version_are_not_shared(tiny: Family, tmp_path: Path) -> None:
    """Files of the same name and size may have the weights in another order."""
    made = export([ExportPlan(tiny, ())], target("cpu"), tmp_path / "first", verify=False)
    shared = export([ExportPlan(tiny, ())], target("cpu"), tmp_path / "second", verify=False, share=tmp_path / "first")
    assert shared.manifest == made.manifest
    for package in ("secateur", "transformers"):
        older = dataclasses.replace(made.manifest, versions=made.manifest.versions | {package: "0.0.9"})
        (tmp_path / "first" / "manifest.json").write_text(to_json(older))
        with pytest.raises(BadBundle, match=rf"written by .*{package} 0.0.9.*this is secateur .* leave --share out$"):
            export([ExportPlan(tiny, ())], target("cpu"), tmp_path / "third", verify=False, share=tmp_path / "first")
        assert not (tmp_path / "third").exists()


def test_every_image_size_has_every_schedule(tmp_path: Path) -> None:
    """The runtime chooses the size, so each size needs every schedule."""
    family = tiny_family("qwen2_5_vl")
    wide = family.at((32, 56))
    own = dataclasses.replace(full(wide), name="x")
    with pytest.raises(BadSchedule, match=f"schedule 'x' is missing for image size {family.layout.size}; calibrate it"):
        export([ExportPlan(family, ()), ExportPlan(wide, (own,))], target("cpu"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_exists_is_refused_before_any_work(
    tiny: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "to_onnx", lambda *_: pytest.fail("worked"))
    (tmp_path / "out").mkdir()
    with pytest.raises(BadOutput, match="add --force"):
        export([ExportPlan(tiny, ())], target("cpu"), tmp_path / "out")


def test_schedules_are_unchanged_after_reading_and_writing(tiny_bundle: tuple[Path, Exported], tmp_path: Path) -> None:
    folder, exported = tiny_bundle
    for ref in exported.manifest.schedules.values():
        schedule = read_json(Schedule, folder / ref.file, BadSchedule)
        assert (folder / ref.file).read_text() == to_json(schedule)
