# SPDX-License-Identifier: Apache-2.0
"""Models and bundles that many tests share, made once a session."""

from __future__ import annotations

import copy
import functools
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from torch.onnx._internal.exporter._registration import ONNXRegistry
from xdist.scheduler import LoadScopeScheduling

from secateur import families, methods, plugins
from secateur.bundle.schedule import Schedule
from secateur.calibration.samples import Sample
from secateur.calibration.schedules import make_schedules
from secateur.checkpoints import tiny_model
from secateur.demo.scenes import samples
from secateur.export.bundle import Exported, ExportPlan, export
from secateur.export.quantize import quantization
from secateur.export.targets import target
from secateur.families.base import Family
from secateur.load_model import load
from secateur.methods.base import Method
from secateur.selection.budget import BudgetRequest

ROOT = Path(__file__).parent.parent
COMPRESSION = 0.5
METHODS = plugins.names(methods)
ONE_METHOD = "btp" if "btp" in METHODS else METHODS[0]
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {  # what changes the wiring of a graph, beside every method's defaults
    "btp-text": ("btp", {"query": "text"}),
    "fopru-row-compact": ("fopru", {"strategy": "row", "positions": "compact"}),
    "pdrop-compact": ("pdrop", {"positions": "compact"}),
    "alvts-group": ("alvts", {"group": 2, "selectors": "svd"}),
}
VARIANTS = [name for name, (method, _) in OPTIONS.items() if method in METHODS]
BUNDLES = ("tiny_bundle", "demo_bundle", "trt_bundle", "int4_bundle", "sizes_bundle")
"""Fixtures that take long to make."""
torch.set_num_threads(1)  # several workers run side by side
# torch.onnx.export fills a table of all ONNX functions for each graph, a quarter of its time; here once per opset.
_operators = functools.cache(ONNXRegistry.from_torchlib)
ONNXRegistry.from_torchlib = staticmethod(_operators)  # type: ignore[method-assign]
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.register_profile("fuzz", deadline=None)  # other examples each time
hypothesis.settings.load_profile("same")


class ByBundle(LoadScopeScheduling):  # type: ignore[misc]
    """One worker runs all that shares a bundle, which takes long to make: several files, or a family; else a file."""

    def _split_scope(self, nodeid: str) -> str:
        file, _, test = nodeid.partition("::")
        if file.endswith(("test_families.py", "test_matrix.py")):
            family = re.split(r"[-\[\]]", test + "[")[1]
            return f"{file} {family}"
        text = (ROOT / file).read_text(encoding="utf-8")
        return next((name for name in BUNDLES if name in text), file)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Mark the tests of shared bundles, which `make quick` leaves out."""
    for item in items:
        if set(BUNDLES).intersection(item.fixturenames):
            item.add_marker("bundle")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByBundle:
    return ByBundle(config, log)


def tiny_family(name: str) -> Family:
    """The random four-layer model of the family `name`."""
    made: Family = plugins.load(families, name, "model family").Family.tiny()
    return made


@pytest.fixture(scope="session")
def tiny() -> Family:
    """The random four-layer model of LLaVA; test_families.py and test_matrix.py have those of all families."""
    return tiny_family("llava")


@pytest.fixture(scope="session")
def demo() -> Family:
    """The trained demo model in fp32."""
    return load("demo")


def method(name: str, **options: Any) -> Method:
    """The method `name` with these options."""
    made: Method = plugins.load(methods, name, "method").Method(**options)
    return made


def schedules(family: Family, chosen: dict[str, Method], request: BudgetRequest) -> list[Schedule]:
    """A schedule of each of the methods, by name."""
    few = [Sample(s.image, "w1 w2 w3") for s in samples("calibration", 2, 0)]
    made = make_schedules(family, list(chosen.values()), [request], few)
    return [replace(schedule, name=name) for name, schedule in zip(chosen, made, strict=True)]


@pytest.fixture(scope="session")
def tiny_bundle(tiny: Family, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Exported]:
    """A bundle of the tiny model with every method, some variants, and every method keeping all tokens."""
    every = {name: method(name) for name in METHODS}
    special = {name: method(OPTIONS[name][0], **OPTIONS[name][1]) for name in VARIANTS}
    chosen = schedules(tiny, every | special, BudgetRequest(compression=COMPRESSION))
    chosen += [replace(s, name=f"{s.name}-all") for s in schedules(tiny, every, BudgetRequest(keep=(1.0,)))]
    folder = tmp_path_factory.mktemp("bundles") / f"tiny-{tiny.name}"
    return folder, export([ExportPlan(tiny, tuple(chosen))], target("cpu"), folder)


@pytest.fixture(scope="session")
def trt_bundle(tiny: Family, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Exported]:
    """A bundle for TensorRT of the tiny model, with one method for each kind of gate."""
    chosen = {name: method(name) for name in ("alvts", "btp", "visionzip", "vtw")}
    folder = tmp_path_factory.mktemp("bundles") / f"tiny-{tiny.name}-tensorrt"
    made = schedules(tiny, chosen, BudgetRequest(compression=COMPRESSION))
    half = copy.deepcopy(tiny)
    half.to(torch.float16)
    return folder, export([ExportPlan(half, tuple(made))], target("tensorrt"), folder)


@pytest.fixture(scope="session")
def int4_bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Exported]:
    """A bundle for TensorRT with weights as int4, of a tiny model of two layers and whole blocks of 64."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tiny_model.TEXT, "hidden_size", 64)
        patch.setitem(tiny_model.TEXT, "num_hidden_layers", 2)
        family = tiny_family("llava")
    family.to(torch.float16)
    folder, kind = tmp_path_factory.mktemp("bundles") / "tiny-int4", target("tensorrt")
    return folder, export([ExportPlan(family, ())], kind, folder, quantization=quantization("int4", kind, 64))


@pytest.fixture(scope="session")
def sizes_bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Family, Family]]:
    """A bundle of the tiny Qwen2.5-VL with two image sizes and one method, and the model at each size."""
    first = tiny_family("qwen2_5_vl")
    sizes = (first, first.at((32, 56)))
    request, chosen = BudgetRequest(compression=COMPRESSION), {ONE_METHOD: method(ONE_METHOD)}
    folder = tmp_path_factory.mktemp("bundles") / "sizes"
    export([ExportPlan(each, tuple(schedules(each, chosen, request))) for each in sizes], target("cpu"), folder)
    return folder, sizes


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """What the README's `python export.py --method btp --json` writes, and what it prints."""
    folder = tmp_path_factory.mktemp("demo") / "demo-btp"
    command = [sys.executable, "export.py", "--method", "btp", "--json", "--out", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed: dict[str, Any] = json.loads(done.stdout)
    return folder, printed


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The libraries of tests/simulation, in this process and those it starts; gives what they count."""
    folder, packages = str(ROOT / "tests" / "simulation"), ("simulated", "tensorrt", "tensorrt_rtx", "cuda")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH")))))
    for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
        monkeypatch.delitem(sys.modules, name)
    yield importlib.import_module("simulated").counters
    for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
        del sys.modules[name]
