# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from secateur.calibration import measures, resume
from secateur.calibration.capture import capture
from secateur.calibration.layer_walk import prompts
from secateur.calibration.resume import MeasuringState, Resume
from secateur.calibration.samples import Sample
from secateur.demo.scenes import samples
from secateur.errors import BadOutput
from secateur.families.base import Family
from tests.conftest import tiny_family

WANTED = frozenset({"similarity", "attention", "drop_divergence"})


class Killed(Exception):
    """Stands for the end of a killed process."""


@pytest.fixture
def few() -> list[Sample]:
    return [Sample(s.image, "w1 w2 w3") for s in samples("calibration", 2, 0)]


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_a_killed_calibration_goes_on(
    tiny: Family, few: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layer: int
) -> None:
    """The numbers are bit-equal, finished layers do not run again, and no file is left at the end."""
    monkeypatch.setattr(resume, "EVERY", 0.0)
    whole = capture(tiny, few, WANTED)[0]
    measure, seen = measures.similarity, list[int]()

    def similarity(passage: Any, layout: Any) -> Any:
        seen.append(passage.number)
        if len(seen) == 1 + 2 * layer:
            raise Killed
        return measure(passage, layout)

    monkeypatch.setattr(measures, "similarity", similarity)
    with pytest.raises(Killed):
        capture(tiny, few, WANTED, work=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    seen = [-1] * 100
    told = list[tuple[int, int]]()
    again = capture(tiny, few, WANTED, progress=lambda done, total: told.append((done, total)), work=tmp_path)[0]
    assert seen[100:] == [number for number in range(layer, 4) for _ in few]
    assert told[-1][0] == told[-1][1] and not list(tmp_path.iterdir())
    for name in WANTED:
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))


def test_all_sizes_of_views_are_measured_in_one_walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LLaVA-NeXT has views of two sizes, the whole image and tiles; a killed calibration resumes both."""
    monkeypatch.setattr(resume, "EVERY", 0.0)
    family = tiny_family("llava_next")
    few = [Sample(s.image, "w1 w2 w3") for s in samples("calibration", 2, 0)]
    attention, asked = measures.attention, list[int]()

    def killing(passage: Any, layout: Any) -> Any:
        asked.append(passage.number)
        if len(asked) == kill:
            raise Killed
        return attention(passage, layout)

    monkeypatch.setattr(measures, "attention", killing)
    each, kill = len(few) * len(family.layout.views), 0
    whole = capture(family, few, WANTED)
    assert asked == [number for number in range(family.dimensions.layers) for _ in range(each)]
    kill = len(asked) + 2 * each + 1  # two layers are finished
    with pytest.raises(Killed):
        capture(family, few, WANTED, work=tmp_path)
    del asked[:]
    again = capture(family, few, WANTED, work=tmp_path)
    assert min(asked) == 2 and not list(tmp_path.iterdir())
    assert len(whole) == 2 and whole[0].similarity.shape != whole[1].similarity.shape
    for found, expected in zip(again, whole, strict=True):
        for name in WANTED:
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize("spoil", ["rows", "found.0.similarity", "without.0", "layer"])
def test_a_state_of_other_shapes_is_none(
    tiny: Family, few: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    monkeypatch.setattr(resume, "EVERY", 0.0)
    whole, read = capture(tiny, few, WANTED)[0], Resume.read

    def spoilt(self: Resume) -> MeasuringState:
        rows = [each.rows for each in prompts(tiny, few)]
        on_layers = WANTED - {"drop_divergence"}
        measured = {f"found.0.{name}": torch.from_numpy(getattr(whole, name)) for name in on_layers}
        text = [each.shape[1] - tiny.layout.vision_tokens for each in rows]
        measured |= {f"without.{i}": torch.zeros(1, count, rows[0].shape[2]) for i, count in enumerate(text)}
        state = MeasuringState(1, rows, measured)
        if spoil == "layer":
            return state._replace(layer=4)
        if spoil == "rows":
            return state._replace(rows=rows[:1])
        return state._replace(measured=measured | {spoil: measured[spoil][..., 1:]})

    monkeypatch.setattr(Resume, "read", spoilt)
    again = capture(tiny, few, WANTED, work=tmp_path)[0]
    monkeypatch.setattr(Resume, "read", read)
    for name in WANTED:
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))


def test_a_state_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [torch.ones(1, 3, 2)]
    first = Resume(tmp_path, ("a",), rows, every=0)
    first.write(1, rows, {})

    def full(tensors: Any, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(resume, "save_file", full)
    with pytest.raises(BadOutput, match="cannot be written: .*No space left on device"):
        first.write(2, rows, {})
    state = first.read()
    assert state is not None and state.layer == 1 and len(list(tmp_path.iterdir())) == 1


def test_what_is_not_whole_or_of_another_run_is_left_alone(tmp_path: Path) -> None:
    rows = [torch.ones(1, 3, 2)]
    first = Resume(tmp_path, ("a",), rows, every=0)
    assert first.read() is None
    first.write(2, [torch.zeros(1, 3, 2)], {"found.x": torch.arange(3)})
    state = first.read()
    assert state is not None and state.layer == 2 and state.measured["found.x"].tolist() == [0, 1, 2]
    assert Resume(tmp_path, ("b",), rows).read() is None
    assert Resume(tmp_path, ("a",), [torch.zeros(1, 3, 2)]).read() is None
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-7])
    assert first.read() is None
    assert Resume(None, ("a",), rows, every=0).read() is None
