# SPDX-License-Identifier: Apache-2.0
"""Files of schedules, with and without tensors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from secateur.bundle.layout import ModelIdentity
from secateur.bundle.schedule import Budget, Gate, Schedule
from secateur.bundle.schedule_file import check_schedule_free, read_schedule, write_schedule
from secateur.errors import BadOutput, BadSchedule

TRAINED = {"layer_00.down": np.arange(6, dtype=np.float32).reshape(2, 3), "layer_01.down": np.ones(2, np.float32)}


def schedule(**change: object) -> Schedule:
    made = Schedule(
        "alvts-25", "alvts", ModelIdentity("llava", 4, 8, "sha256:0"), (Gate(0, 2, "route"),),
        Budget(2.0, 0.75, 0.1, 0.2, (1, 2, 3, 4)), tensors=TRAINED,
    )  # fmt: skip
    return replace(made, **change)  # type: ignore[arg-type]


def test_a_schedule_is_read_with_its_tensors(tmp_path: Path) -> None:
    write_schedule(schedule(), tmp_path / "s.json")
    found = read_schedule(tmp_path / "s.json")
    assert replace(found, weights="") == schedule() and found.weights.startswith("sha256:")
    assert found.tensors.keys() == TRAINED.keys()
    assert all(np.array_equal(found.tensors[name], TRAINED[name]) for name in TRAINED)
    assert "tensors" not in json.loads((tmp_path / "s.json").read_text())


def test_a_byte_order_mark_of_an_editor_is_skipped(tmp_path: Path) -> None:
    write_schedule(schedule(tensors={}), tmp_path / "s.json")
    (tmp_path / "s.json").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "s.json").read_bytes())
    assert read_schedule(tmp_path / "s.json") == schedule(tensors={})


def test_without_tensors_it_is_one_file(tmp_path: Path) -> None:
    write_schedule(schedule(tensors={}), tmp_path / "s.json")
    assert [p.name for p in tmp_path.iterdir()] == ["s.json"]
    assert read_schedule(tmp_path / "s.json") == schedule(tensors={})


def test_weights_of_another_schedule(tmp_path: Path) -> None:
    write_schedule(schedule(), tmp_path / "a.json")
    write_schedule(schedule(tensors={"layer_00.down": np.zeros(3, np.float32)}), tmp_path / "b.json")
    (tmp_path / "b.safetensors").replace(tmp_path / "a.safetensors")
    with pytest.raises(BadSchedule, match="is not the file that a.json was written with"):
        read_schedule(tmp_path / "a.json")
    with pytest.raises(BadSchedule, match="cannot be read"):
        read_schedule(tmp_path / "b.json")


def test_weights_of_an_unknown_type(tmp_path: Path) -> None:
    import hashlib

    write_schedule(schedule(), tmp_path / "s.json")
    save_file({"layer_00.down": torch.zeros(2, dtype=torch.bfloat16)}, tmp_path / "s.safetensors")
    digest = hashlib.sha256((tmp_path / "s.safetensors").read_bytes()).hexdigest()
    data = json.loads((tmp_path / "s.json").read_text()) | {"weights": f"sha256:{digest}"}
    (tmp_path / "s.json").write_text(json.dumps(data))
    with pytest.raises(BadSchedule, match="of the unknown type 'BF16'"):
        read_schedule(tmp_path / "s.json")


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    (tmp_path / "s.safetensors").write_text("a model of mine")
    check_schedule_free(tmp_path / "s.json", force=False)
    with pytest.raises(BadOutput, match="s.safetensors exists"):
        check_schedule_free(tmp_path / "s.json", force=False, weights=True)
    with pytest.raises(BadOutput, match="must end in .json"):
        check_schedule_free(tmp_path / "s.v2", force=True)
