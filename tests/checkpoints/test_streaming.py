# SPDX-License-Identifier: Apache-2.0
"""A family whose weights stay in files gives the same results as in memory, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.overrides import TorchFunctionMode

from secateur import families, plugins
from secateur.bundle.schedule import Schedule
from secateur.calibration.capture import KNOWN, capture
from secateur.calibration.samples import Sample
from secateur.checkpoints import streaming
from secateur.demo.scenes import samples
from secateur.errors import BadModel, BadSchedule
from secateur.export.bundle import ExportPlan, export
from secateur.export.graphs import build_graphs, sized_model
from secateur.export.targets import target
from secateur.families.base import Family
from secateur.selection.budget import BudgetRequest
from tests.conftest import method, schedules, tiny_family

NAMES = plugins.names(families)
METHODS = ("fastv", "visionzip", "downsample")


def streamed(family: Family, folder: Path) -> Family:
    family.model.save_pretrained(folder, max_shard_size="60KB")
    model = streaming.stream(type(family).architecture, folder)
    assert model is not None and all(weight.is_meta for weight in model.parameters())
    return type(family)(model, family.processor, family.source).at(family.image_size)


@pytest.fixture(scope="module", params=NAMES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Family, Family]:
    """The tiny model of a family, in memory and in files; modules with submodules are not held as a whole."""
    family = tiny_family(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "HELD_BYTES", 0)
        return family, streamed(family, tmp_path_factory.mktemp("streamed"))


def pixels(family: Family) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(family.images, *family.pixels)).astype(np.float32)


def check_same(found: object, expected: object) -> None:
    for ours, theirs in zip(*(x if isinstance(x, tuple) else (x,) for x in (found, expected)), strict=True):
        assert torch.equal(ours, theirs)


def chosen(family: Family, names: Sequence[str] = METHODS) -> list[Schedule]:
    """A schedule of each method that the family takes."""
    made = list[Schedule]()
    for name in names:
        with suppress(BadModel, BadSchedule):
            found = schedules(family, {name: method(name)}, BudgetRequest(compression=0.5))
            build_graphs([sized_model(family, family.layout, found)], target("cpu"))
            made += found
    return made


@pytest.mark.parametrize("images", [1, 2])
def test_the_model_and_its_encoder(pair: tuple[Family, Family], images: int) -> None:
    memory, files = (family.at(images=images) for family in pair)
    assert files.fingerprint == memory.fingerprint and files.identity == memory.identity
    given = torch.from_numpy(pixels(memory))
    features, first = (family.vision()(given) for family in (files, memory))
    check_same(features, first)
    rows = first[0] if isinstance(first, tuple) else first
    check_same(files.projector()(rows), memory.projector()(rows))
    ids = [*memory.layout.ids(memory.image_token_id), memory.prompt.pad]
    np.testing.assert_array_equal(files.logits(ids, pixels(memory)), memory.logits(ids, pixels(memory)))
    assert all(weight.is_meta for weight in files.model.parameters())


class GradModes(TorchFunctionMode):
    """Counts changes of the gradient mode, as a trace records them."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch._C._set_grad_enabled
        return func(*args, **(kwargs or {}))


def test_a_trace_records_no_reading(pair: tuple[Family, Family]) -> None:
    """It would take minutes to remove hundreds of changes of the gradient mode from a trace."""
    counts = []
    for family in pair:
        given = torch.from_numpy(pixels(family))
        with torch.no_grad(), GradModes() as modes:
            family.vision()(given)
        counts.append(modes.count)
    assert counts[0] == counts[1]


def test_the_encoder_of_a_smaller_image(pair: tuple[Family, Family]) -> None:
    memory, files = pair
    try:
        expected = memory.vision(grid=(2, 2))(torch.from_numpy(pixels(memory)))
    except BadModel as problem:
        pytest.skip(f"refused: {problem}")
    check_same(files.vision(grid=(2, 2))(torch.from_numpy(pixels(memory))), expected)


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_every_graph_that_the_torch_backend_runs(pair: tuple[Family, Family], dtype: str) -> None:
    """With gates before the decoder and within it."""
    kind = target("cpu", dtype)
    made = chosen(pair[0])
    memory, files = copy.deepcopy(pair[0]), pair[1]
    memory.to(kind.torch_dtype)
    files.to(kind.torch_dtype)
    graphs = [build_graphs([sized_model(family, family.layout, made)], kind) for family in (memory, files)]
    assert made and len(graphs[0]) > 5
    for ours, theirs in zip(*graphs, strict=True):
        assert ours.spec == theirs.spec
        with torch.inference_mode():
            check_same(ours.module(*ours.example()), theirs.module(*theirs.example()))
    files.to(torch.float32)  # weights in files lose no precision


def test_measured_statistics(pair: tuple[Family, Family]) -> None:
    few = [Sample(s.image, "w1 w2" + " w3" * i) for i, s in enumerate(samples("calibration", 2, 0))]
    wanted = frozenset(KNOWN - {"layers"})
    found, expected = (capture(family, few, wanted)[0] for family in pair)
    for name in wanted:
        assert getattr(found, name).size
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    walks = [
        found.layers() for found in (capture(family, few, frozenset({"layers"}))[0] for family in pair) if found.layers
    ]
    for ours, theirs in zip(*walks, strict=True):
        check_same(tuple(ours.rows), tuple(theirs.rows))
        assert torch.equal(ours.projections.query, theirs.projections.query)


def test_without_statistics_no_weight_is_read(pair: tuple[Family, Family], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("weights are read")

    _, files = pair
    monkeypatch.setattr(streaming, "_put_in", refuse)
    few = [Sample(s.image, "w1") for s in samples("calibration", 2, 0)]
    assert capture(files, few, frozenset())[0].samples == 0


@pytest.mark.slow
def test_a_bundle_is_the_same_to_the_byte(tmp_path: Path) -> None:
    """It also passes the check against torch, which runs the exported model."""
    memory = tiny_family("llava")
    files, made = streamed(memory, tmp_path / "model"), chosen(memory, ("downsample",))
    for name, family in (("memory", memory), ("files", files)):
        found = export([ExportPlan(family, tuple(made))], target("cpu"), tmp_path / name, verify=family is files)
    assert len(made) == 1 and found.parity and all(part.passed for part in found.parity)
    written = sorted(path.relative_to(tmp_path / "memory") for path in (tmp_path / "memory").rglob("*"))
    assert written == sorted(path.relative_to(tmp_path / "files") for path in (tmp_path / "files").rglob("*"))
    graphs = [path for path in written if path.parts[0] == "onnx" and path.suffix]
    assert len(graphs) > 10, graphs
    for path in graphs:
        assert (tmp_path / "memory" / path).read_bytes() == (tmp_path / "files" / path).read_bytes(), path
