# SPDX-License-Identifier: Apache-2.0
"""A failed check after an export says why, and never offers to export a wrong bundle anyway."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from secateur.bundle.reader import Bundle
from secateur.errors import ExportMismatch
from secateur.export.bundle import Exported, ExportPlan, export
from secateur.export.diagnosis import diagnose
from secateur.export.parity import Parity
from secateur.export.targets import target
from secateur.families.base import Family
from secateur.selection.budget import BudgetRequest
from tests.conftest import method, schedules, tiny_family

KEPT = Parity("other tokens kept, btp (so logits not compared)", 0.5, 0.25, False)
OWN = Parity("segments against the model, 48x24", 0.9, 1e-4, False)
GRAPH = Parity("segment_1", 0.01, 1e-4, False)
FINE = Parity("embed", 0.0, 1e-4, True)


def test_fp16_overflow_names_graph_row_and_dtype(tmp_path: Path) -> None:
    """One weight of layer 1 is so large that the rows after it are beyond the range of fp16, not of bf16 or fp32."""
    family = tiny_family("llava")
    with torch.no_grad():
        family.model.get_parameter("model.language_model.layers.1.mlp.down_proj.weight").mul_(1e7)
    made = schedules(family, {"stride": method("stride")}, BudgetRequest(keep=(0.5,), layers=(2,)))
    family.to(torch.float16)
    with pytest.raises(ExportMismatch) as problem:
        export([ExportPlan(family, tuple(made))], target("cpu", "fp16"), tmp_path / "bundle")
    said = str(problem.value)
    assert (
        "graph 'segment_0' gives" in said
        and "in 'hidden_states.out' at text row 0 (sample 0; the largest finite" in said
    )
    assert "export with --dtype fp32, or bf16 if the target supports it; nothing was written" in said
    assert "--no-check" not in said and "\n" not in said and not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("failed", "said"),
    [
        (
            [GRAPH, OWN],
            "2 of 3 checks fail: the decoder's segments differ from the model's own forward pass (error 9.00e-",
        ),
        (
            [GRAPH],
            "1 of 2 checks fail; worst: segment_1, error 1.00e-02 over 1e-04: a graph does not compute what torch",
        ),
    ],
)
def test_a_wrong_graph_is_to_be_reported(
    tiny: Family, tiny_bundle: tuple[Path, Exported], failed: list[Parity], said: str
) -> None:
    found = diagnose(Bundle.load(tiny_bundle[0], verify=False), tiny, [*failed, FINE])
    assert found.startswith(said) and found.endswith("please report it with the model and `pip freeze`")


def test_half_precision_within_range_is_too_coarse(trt_bundle: tuple[Path, Exported], tiny: Family) -> None:
    bundle = Bundle.load(trt_bundle[0], verify=False)
    half = copy.deepcopy(tiny)
    half.to(torch.float16)
    found = diagnose(bundle, half, [KEPT, FINE])
    assert "error 5.00e-01 over 2e-01; export with --dtype fp32; if that fails too, please report it" in found
