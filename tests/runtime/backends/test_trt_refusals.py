# SPDX-License-Identifier: Apache-2.0
"""Bundles and plans that backend trt refuses, on the simulated device; each message has a fix."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secateur.engines.device import this_device, this_platform
from secateur.engines.library import TensorRT
from secateur.engines.manifest import ENGINES, ENGINES_FILE
from secateur.errors import BackendMissing, BadBundle, BadEngine, InputError, SecateurError
from secateur.runtime import Bundle, Pipeline
from secateur.runtime.device.engine import Plans


def refused(root: Path, message: str, error: type[Exception] = BadEngine) -> None:
    with pytest.raises(error, match=message):
        Pipeline.load(root, backend="trt", verify=False)


def folder(root: Path) -> Path:
    return next((root / ENGINES).iterdir())


def rewrite_plan(root: Path, graph: str, data: bytes | None = None, **fields: Any) -> None:
    """Change a plan and its entry in engines.json."""
    file = folder(root) / ENGINES_FILE
    engines = json.loads(file.read_text())
    for plan in engines["plans"]:
        if plan["graph"] == graph:
            if data is not None:
                (folder(root) / plan["file"]).write_bytes(data)
                plan["sha256"] = hashlib.sha256(data).hexdigest()
            plan.update(fields)
    file.write_text(json.dumps(engines))


def test_a_bundle_of_another_target(bundle_path: Path) -> None:
    """The target is checked before TensorRT is loaded."""
    refused(bundle_path, "for the target 'cpu', not for TensorRT; export it with --target tensorrt", BadBundle)


def test_no_engines(engines_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMULATED_GPU", "NVIDIA Thor")
    refused(engines_copy, r"no engines for nvidia-thor-sm.*only for orin-sm8\.7-.*`secateur build /")
    (folder(engines_copy) / ENGINES_FILE).unlink()
    refused(engines_copy, "nor for any other platform.*`secateur build /")


def test_a_tensorrt_that_is_too_old(engines_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("tensorrt"), "__version__", "10.2.0")
    refused(engines_copy, "needs TensorRT 10.3, this is 10.2; install TensorRT 10.3 or later", BadBundle)


def test_a_closed_pipeline(engines_path: Path) -> None:
    vlm = Pipeline.load(engines_path, backend="trt", verify=False)
    vlm.close()
    with pytest.raises(SecateurError, match="the backend is closed"):
        vlm.ask(np.zeros((12, 12, 3), np.uint8), "what color", schedule="full")


def test_engines_of_another_device(engines_copy: Path) -> None:
    file = folder(engines_copy) / ENGINES_FILE
    engines = json.loads(file.read_text())
    for name, label in (("gpu", "GPU"), ("sm", "SM"), ("os", "system")):
        device = engines["platform"]["device"] | {name: "other"}
        file.write_text(json.dumps(engines | {"platform": engines["platform"] | {"device": device}}))
        refused(engines_copy, f"were built for {label} other, not .*`secateur build /")
    for name, label in (("engine", "--engine"), ("version", "version")):
        file.write_text(json.dumps(engines | {"platform": engines["platform"] | {name: "other"}}))
        refused(engines_copy, f"were built for {label} other, not .*`secateur build /")


@pytest.mark.parametrize("text", ["{", '{"schema": 1}', "[]"])
def test_an_engines_file_that_is_damaged(engines_copy: Path, text: str) -> None:
    (folder(engines_copy) / ENGINES_FILE).write_text(text)
    refused(engines_copy, f"{ENGINES_FILE}.*; build the engines on this device with `secateur build /")


def test_plans_that_are_damaged(engines_copy: Path) -> None:
    plan = folder(engines_copy) / "segment_1.plan"
    whole = plan.read_bytes()
    plan.write_bytes(whole[:-100])
    refused(engines_copy, r"segment_1\.plan is damaged or truncated.*`secateur build /")
    rewrite_plan(engines_copy, "segment_1", whole[:-100])
    refused(engines_copy, r"segment_1\.plan cannot be loaded: .*magic tag.*`secateur build /")
    plan.unlink()
    refused(engines_copy, r"segment_1\.plan cannot be read \(No such file.*`secateur build /")


def test_plans_of_another_version(engines_copy: Path) -> None:
    """engines.json is wrong, and TensorRT detects it."""
    plan = (folder(engines_copy) / "embed.plan").read_bytes()
    packed = importlib.import_module("tensorrt._plan")
    foreign = dataclasses.replace(packed.Plan.unpack(plan), version="10.16.1.11").pack()
    rewrite_plan(engines_copy, "embed", foreign)
    refused(engines_copy, r"embed\.plan cannot be loaded: .*not compatible with this version.*`secateur build /")


def test_plans_of_another_export(engines_copy: Path) -> None:
    manifest = json.loads((engines_copy / "manifest.json").read_text())
    manifest["files"]["onnx/embed.onnx"] = "0" * 64
    (engines_copy / "manifest.json").write_text(json.dumps(manifest))
    refused(engines_copy, r"embed\.plan was built from another export.*`secateur build /")


def test_swapped_plans_are_refused(engines_copy: Path) -> None:
    other = (folder(engines_copy) / "embed.plan").read_bytes()
    rewrite_plan(engines_copy, "projector", other)
    refused(engines_copy, r"projector\.plan and the manifest differ in the tensor '.*`secateur build /")
    early = (folder(engines_copy) / "early.0.plan").read_bytes()
    rewrite_plan(engines_copy, "projector", (folder(engines_copy) / "vision.plan").read_bytes())
    refused(engines_copy, "differ in the tensor")
    rewrite_plan(engines_copy, "none.0", early)
    refused(engines_copy, "differ in the tensor|the manifest says|cannot")


def test_an_empty_plan(engines_copy: Path) -> None:
    rewrite_plan(engines_copy, "embed", b"")
    refused(engines_copy, r"embed\.plan is empty.*`secateur build /")


def test_a_plan_is_not_read_into_memory(engines_copy: Path) -> None:
    size = 16 << 20
    rewrite_plan(engines_copy, "embed", bytes(size))
    bundle = Bundle.load(engines_copy, verify=False)
    plans = Plans(bundle, this_platform(TensorRT(), this_device()))
    graph = next(graph for graph in bundle.manifest.graphs if graph.name == "embed")
    tracemalloc.start()
    plan, blob = plans.read(graph)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert plan.graph == "embed" and len(blob) == size and peak < size // 8


def test_a_missing_plan_is_refused(engines_copy: Path) -> None:
    file = folder(engines_copy) / ENGINES_FILE
    engines = json.loads(file.read_text())
    file.write_text(json.dumps(engines | {"plans": engines["plans"][:-1]}))
    refused(engines_copy, "there is no plan of the graph 'all.0'; .*`secateur build /")
    file.write_text(json.dumps(engines | {"extra": 1}))
    refused(engines_copy, "unknown field 'extra'")
    file.write_text("{")
    refused(engines_copy, "cannot be read as JSON")


def test_another_number_of_profiles(engines_copy: Path) -> None:
    tensorrt = importlib.import_module("tensorrt._plan")
    plan = tensorrt.Plan.unpack((folder(engines_copy) / "segment_0.plan").read_bytes())
    fewer = dataclasses.replace(plan, profiles=plan.profiles[:1], memory=plan.memory[:1])
    rewrite_plan(engines_copy, "segment_0", fewer.pack())
    refused(engines_copy, r"segment_0\.plan has 1 profiles, not 2")


def test_without_tensorrt(engines_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    refused(engines_copy, "TensorRT cannot be loaded.*install.*--backend ort", BackendMissing)


def test_the_device(engines_path: Path) -> None:
    with pytest.raises(InputError, match="'trt' runs on cuda, not on 'cpu'"):
        Pipeline.load(engines_path, backend="trt", device="cpu", verify=False)
    Pipeline.load(engines_path, backend="trt", device="cuda", verify=False).close()
