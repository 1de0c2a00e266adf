# SPDX-License-Identifier: Apache-2.0
"""Equal backends pass, a changed weight fails in its graph, indices must be equal."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from secateur.bundle.manifest import Quantization
from secateur.bundle.reader import sha256
from secateur.cli import main
from secateur.evaluation.backend_diff import Agreement, Bounds, Output, compare_backends
from secateur.export.bundle import ExportPlan, export
from secateur.export.comparison import ROUNDED_ROWS, TOLERANCE
from secateur.export.targets import target
from secateur.families.base import Family
from secateur.runtime import Bundle
from secateur.runtime.backends import base, ort
from secateur.runtime.backends import torch as eager
from secateur.selection.budget import BudgetRequest
from tests.conftest import COMPRESSION, ONE_METHOD, method, schedules

CHOSEN = ("fastv", "vtw")
"""One method with a gate in the decoder, and one that leaves no vision token at all."""


@pytest.fixture(scope="module")
def folder(tiny: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = schedules(tiny, {name: method(name) for name in CHOSEN}, BudgetRequest(compression=COMPRESSION))
    path = tmp_path_factory.mktemp("agreement") / "bundle"
    export([ExportPlan(tiny, tuple(made))], target("cpu"), path, verify=False)
    return path


@pytest.fixture(scope="module")
def changed(folder: Path) -> Path:
    """Return the bundle with one changed weight in the projector and a correct hash."""
    path = folder.with_name("changed")
    shutil.copytree(folder, path)
    graph = path / "onnx" / "projector.onnx"
    model = onnx.load(graph)
    weight = max(model.graph.initializer, key=lambda tensor: int(np.prod(tensor.dims)))
    values = numpy_helper.to_array(weight).copy()
    values.flat[0] += 1
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    graph.with_name("projector.onnx.data").unlink(missing_ok=True)
    onnx.save(model, graph)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"].pop("onnx/projector.onnx.data", None)
    manifest["files"]["onnx/projector.onnx"] = f"sha256:{sha256(graph)}"
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def compared(path: Path, tiny: Family, candidate: type[ort.Backend] = ort.Backend, **options: Any) -> list[Agreement]:
    """Compare every schedule on ONNX Runtime, or the given backend, with torch."""
    bundle = Bundle.load(path)
    names = list(bundle.manifest.schedules)
    reference, found = eager.Backend(bundle, family=tiny), candidate(bundle)
    return list(compare_backends(bundle, reference, found, names, **options))


def test_onnx_runtime_agrees_with_torch(folder: Path, tiny: Family) -> None:
    found = compared(folder, tiny)
    manifest = Bundle.load(folder).manifest
    assert [graph.graph for graph in found] == [graph.name for graph in manifest.graphs]
    assert all(graph.passed for graph in found)
    outputs = [output for graph in found for output in graph.outputs]
    assert 0 < max(output.relative for output in outputs) <= TOLERANCE["fp32"].values
    assert {output.dtype for output in outputs} == {"float32", "int64"}
    assert all(output.absolute == 0 for output in outputs if output.dtype == "int64")
    runs = {graph.graph: graph.runs for graph in found}
    assert runs["segment_0"] == 2 * len(manifest.schedules), "a prefill and a decode step of each schedule"


def test_a_changed_weight_is_found_in_its_graph(changed: Path, tiny: Family) -> None:
    found = compared(changed, tiny)
    assert [graph.graph for graph in found if not graph.passed] == ["projector"]
    (worst,) = next(graph.outputs for graph in found if graph.graph == "projector")
    assert compared(changed, tiny, bounds=Bounds(atol=worst.absolute))[0].passed
    assert not all(graph.passed for graph in compared(changed, tiny, bounds=Bounds(atol=worst.absolute / 2)))


def test_rows_rounded_to_eight_bits_have_a_larger_bound(tiny: Family, tmp_path: Path) -> None:
    """As in the check after an export: the backends run different models then, and the bound is that of the kernel."""
    how = Quantization("int4", 16, accuracy_level=4)
    export([ExportPlan(tiny, ())], target("cpu"), tmp_path / "bundle", verify=False, quantization=how)
    (segment,) = (graph for graph in compared(tmp_path / "bundle", tiny) if graph.graph == "segment_0")
    assert segment.passed and TOLERANCE["fp32"].values < segment.worst.relative < ROUNDED_ROWS.values


class Swapped(ort.Backend):
    """Backend that returns the indices of kept tokens in another order."""

    def run(self, graph: str, inputs: Mapping[str, base.Buffer], outputs: Mapping[str, base.Buffer]) -> None:
        super().run(graph, inputs, outputs)
        if "vision_index.out" in outputs:
            outputs["vision_index.out"].write(outputs["vision_index.out"].numpy()[:, ::-1].copy())


def test_integers_must_be_equal(folder: Path, tiny: Family) -> None:
    failed = {
        o.name for g in compared(folder, tiny, Swapped, bounds=Bounds(1e6, 1e6)) for o in g.outputs if not o.passed
    }
    assert failed == {"vision_index.out"}


class NotANumber(ort.Backend):
    def run(self, graph: str, inputs: Mapping[str, base.Buffer], outputs: Mapping[str, base.Buffer]) -> None:
        super().run(graph, inputs, outputs)
        if "logits" in outputs:
            outputs["logits"].write(np.full(outputs["logits"].shape, np.nan, np.float32))


def test_nan_never_agrees(folder: Path, tiny: Family) -> None:
    failed = [g for g in compared(folder, tiny, NotANumber, bounds=Bounds(1e6, 1e6)) if not g.passed]
    assert [output.absolute for graph in failed for output in graph.outputs if not output.passed] == [float("inf")]


class Masked(ort.Backend):
    """Backend that does not support an empty past."""

    masked_past = 1

    def run(self, graph: str, inputs: Mapping[str, base.Buffer], outputs: Mapping[str, base.Buffer]) -> None:
        assert all(buffer.shape[0] > 0 for name, buffer in inputs.items() if name.startswith("past_"))
        super().run(graph, inputs, outputs)


def test_a_past_is_as_long_as_the_backend_needs(folder: Path, tiny: Family) -> None:
    assert all(graph.passed for graph in compared(folder, tiny, Masked))


def test_a_gate_without_output_rows_is_not_compared(tiny: Family, tmp_path: Path) -> None:
    made = schedules(tiny, {"cls": method("cls")}, BudgetRequest(keep=(0.0,)))
    export([ExportPlan(tiny, tuple(made))], target("cpu"), tmp_path / "none", verify=False)
    found = compared(tmp_path / "none", tiny)
    assert found and all(graph.passed for graph in found) and not any(graph.graph == "cls.0" for graph in found)


@pytest.fixture(scope="module")
def sizes(sizes_bundle: tuple[Path, tuple[Family, Family]]) -> tuple[Path, Family]:
    """Return a bundle with two image sizes, and its model."""
    return sizes_bundle[0], sizes_bundle[1][0]


def test_every_image_size_is_compared(sizes: tuple[Path, Family]) -> None:
    found = compared(*sizes)
    manifest = Bundle.load(sizes[0]).manifest
    assert [graph.graph for graph in found] == [graph.name for graph in manifest.graphs]
    assert all(graph.passed for graph in found)
    assert {output.walk for graph in found for output in graph.outputs if graph.graph == "vision-56x32"} <= {
        "full@56x32",
        f"{ONE_METHOD}@56x32",
    }
    runs = {graph.graph: graph.runs for graph in found}
    assert runs["segment_0"] == 2 * 2 * len(manifest.buckets), "a prefill and a decode step of each schedule and size"


class Slanted(ort.Backend):
    """Backend that is wrong for one image size."""

    wrong = 0

    def run(self, graph: str, inputs: Mapping[str, base.Buffer], outputs: Mapping[str, base.Buffer]) -> None:
        super().run(graph, inputs, outputs)
        if graph == "projector" and inputs["features"].shape[1] == self.wrong:
            outputs["vision_tokens"].write(outputs["vision_tokens"].numpy() + 1)


def test_the_error_names_the_image_size(
    sizes: tuple[Path, Family], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Slanted, "wrong", Bundle.load(sizes[0]).manifest.buckets[1].layout.image_tokens)
    monkeypatch.setattr(eager, "load_again", lambda bundle, dtype: sizes[1])
    monkeypatch.setattr(ort, "Backend", Slanted)
    code, out, err = call(capsys, "check", sizes[0], "--against", "torch")
    assert code == 1 and "ort differs from torch in projector (full@56x32)" in err
    assert "full@56x32" in out


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    return code, *capsys.readouterr()


def test_the_command(
    folder: Path, changed: Path, tiny: Family, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(eager, "load_again", lambda bundle, dtype: tiny)
    name = next(name for name in Bundle.load(folder).manifest.schedules if name.startswith("fastv"))
    code, out, err = call(capsys, "check", folder, "--against", "torch", "--schedules", name, "--json")
    result = json.loads(out)
    assert (code, err) == (0, "") and result["schedules"] == ["full", name] and "failed" not in result
    assert all(graph["passed"] for graph in result["graphs"])
    code, out, err = call(capsys, "check", changed, "--against", "ort", "--backend", "torch")
    assert code == 1 and "torch differs from ort in projector (full)" in err
    assert "FAILED" in out and "segments" in out and "segment_0" not in out, "passed rows of a kind are one row"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--against", "ort"], "--against and --backend are both 'ort'; choose different backends or another --device"),
        (["--against", "ort", "--device", "gpu"], "backend 'ort' runs on cpu or cuda, not on 'gpu'"),
        (["--against", "tensor"], "unknown backend 'tensor'"),
        (["--against", "torch", "--schedules", "vtw,btb"], "unknown schedule 'btb'"),
        (["--against", "torch", "--atol", "-1"], "--atol is -1.0; it must be at least 0 and finite"),
        (["--against", "torch", "--rtol", "nan"], "--rtol is nan; it must be at least 0 and finite"),
        (["--against", "trt"], "export it with --target tensorrt"),
    ],
)
def test_wrong_use(folder: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "check", folder, *words)
    assert (code, out) == (2, "") and said in err and len(err.splitlines()) == 1


def test_one_backend_on_two_devices(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Cuda(ort.Host):
        """Fake of the CUDA provider."""

    monkeypatch.setattr(ort.Backend, "places", {"cpu": ort.Host, "cuda": Cuda})
    opened = []
    monkeypatch.setattr(Cuda, "check", lambda place, session: opened.append(session))
    words = ("check", folder, "--against", "ort", "--device", "cuda", "--schedules", "vtw")
    found = json.loads(call(capsys, *words, "--json")[1])
    assert found["device"] == "cuda" and found["schedules"] == ["full", "vtw"]
    run = {graph["graph"] for graph in found["graphs"]}
    assert len(opened) == len(run) < len(Bundle.load(folder).manifest.graphs), "each once, the reference on the CPU"
    code, out, _ = call(capsys, *words)
    assert code == 0 and "ort on cuda against ort" in out


def test_without_polygraphy(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The error is raised before a backend is opened."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "polygraphy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    monkeypatch.delitem(sys.modules, "secateur.evaluation.backend_diff")
    importlib.import_module("secateur.evaluation.backend_diff")
    code, out, err = call(capsys, "check", folder, "--against", "torch")
    assert (code, out) == (2, "") and "pip install 'polygraphy>=0.53'" in err


def test_the_worst_output_decides() -> None:
    good, bad = (Output("x", "float32", 0.0, 0.0, passed) for passed in (True, False))
    assert Agreement("g", 1, (good,)).passed and not Agreement("g", 1, (good, bad)).passed
