# SPDX-License-Identifier: Apache-2.0
"""--exportLayerInfo of 10.x and 11.x, names only and detailed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.engines.results.files import Layer, read_layer_info, split_profile
from secateur.errors import BadMeasurement

DATA = Path(__file__).parent.parent / "data"


def test_detailed_layers_of_10_3() -> None:
    reformat, score, top, gather = read_layer_info(DATA / "10.3" / "gate.layers.json")
    assert reformat.nodes == () and reformat.profile is None
    assert score.name == '__myl_Score "q\\k" \x1e[0]' and score.tactic == "__myl_Score_0x1"
    assert score.nodes == ("/score/MatMul", "/score/Softmax", "/score/a[0]")
    assert (top.type, top.nodes) == ("TopK", ("/top/TopK",))
    assert gather.nodes == ("/gather/Gather", "/gather/Gather_1")


def test_names_only_with_two_profiles() -> None:
    assert read_layer_info(DATA / "10.16" / "segment.layers.json") == (
        Layer("__myl_MulMatMul_myl0_0", 0),
        Layer("__mha_v2_myl0_1", 0),
        Layer("__myl_MulMatMul_myl1_0", 1),
        Layer("plain"),
    )


def test_layers_of_11_1() -> None:
    top, gather = read_layer_info(DATA / "11.1" / "gate.layers.json")
    assert top.name == '__mye_TopK{"k":36}' and gather == Layer("/cut/Gather")


@given(st.text(), st.integers(0, 99))
def test_the_profile_is_removed_from_the_name(name: str, number: int) -> None:
    plain = name.rstrip()
    if split_profile(plain)[1] is None:
        assert split_profile(f"{plain} [profile {number}]") == (plain, number)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it is empty"),
        ('{"Layers": [', "truncated or not JSON"),
        ("[1, 2]", "it has no list 'Layers'"),
        ('{"layers": []}', "it has no list 'Layers'"),
        ('{"Layers": {}}', "it has no list 'Layers'"),
        ('{"Layers": [{"LayerType": "kgen"}]}', "neither a name nor an object with a Name"),
        ('{"Layers": [7]}', "'7' is neither"),
        ('[\n  { "count" : 3 }\n]', "it was written by --exportProfile"),
    ],
)
def test_other_files_are_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.layers.json"
    path.write_text(text)
    with pytest.raises(BadMeasurement) as refused:
        read_layer_info(path)
    message = str(refused.value)
    assert said in message and str(path) in message and "--exportLayerInfo=a.layers.json" in message
