# SPDX-License-Identifier: Apache-2.0
"""--exportProfile: names are not escaped, and any name must be read back unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from secateur.engines.results.files import read_layer_times
from secateur.errors import BadMeasurement

DATA = Path(__file__).parent.parent / "data"


def written(count: int, layers: list[tuple[str, float, float]]) -> str:
    """Return the file as trtexec writes it, see samples/common/sampleReporting.cpp."""
    lines = [f'[\n  {{ "count" : {count} }}\n']
    for name, average, median in layers:
        lines.append(
            f', {{ "name" : "{name}", "timeMs" : {average * count:g}, "averageMs" : {average!r}, '
            f'"medianMs" : {median!r}, "percentage" : nan }}\n'
        )
    return "".join([*lines, "]\n"])


def test_names_of_10_3() -> None:
    found = read_layer_times(DATA / "10.3" / "gate.profile.json")
    assert [layer.name for layer in found] == [
        "Reformatting CopyNode for Input Tensor 0 to /score/MatMul",
        '__myl_Score "q\\k" \x1e[0]',
        "/top/TopK",
        "/gather/Gather + /gather/Gather_1",
        "/gather/Gather + /gather/Gather_1",
        "idle",
    ]
    assert [layer.median for layer in found] == [0.00512, 0.012288, 0.031744, 0.0092, 0.0041, 0.0]


@pytest.mark.parametrize(
    ("version", "names"),
    [
        ("10.16", ["__myl_MulMatMul_myl0_0 [profile 0]", "__myl_Topk_myl0_1 [profile 0]"]),
        ("11.1", ['__mye_TopK{"k":36}', "/cut/Gather\t\x1f1"]),
    ],
)
def test_later_versions(version: str, names: list[str]) -> None:
    assert [layer.name for layer in read_layer_times(DATA / version / "gate.profile.json")] == names


odd = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('"\\{}[],: \n\r\t\x1e\x1f\0'), max_size=40)
milliseconds = st.floats(0, 1e4)


@given(st.integers(1, 10**6), st.lists(st.tuples(odd, milliseconds, milliseconds), max_size=6))
@example(1, [('a", "timeMs" : 1, "averageMs" : 2, "medianMs" : 3, "percentage" : 4 }', 1.0, 2.0)])
@example(1, [('", "', 1.0, 2.0), ("\n]\n", 0.0, 0.0), ("count", 0.5, 0.5), ("count", 0.5, 0.5)])
def test_any_name_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, count: int, layers: list[tuple[str, float, float]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "odd.profile.json"
    path.write_bytes(written(count, layers).encode())
    found = read_layer_times(path)
    assert [(layer.name, layer.median) for layer in found] == [(name, median) for name, _, median in layers]


def test_bytes_that_are_not_utf_8_become_escapes(tmp_path: Path) -> None:
    path = tmp_path / "latin.profile.json"
    path.write_bytes(written(1, [("caf@", 1.0, 1.0)]).encode().replace(b"@", b"\xe9"))
    assert read_layer_times(path)[0].name == "caf\\xe9"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it is empty"),
        ("[]", "not with the number of queries"),
        ("[ 1, 2", "it is truncated"),
        (written(0, []), "no query was profiled"),
        (written(1, [("a", 1.0, float("nan"))]), "this is not a layer"),
        (written(1, [("a", 1.0, 1.0)]).replace("1.0", "fast"), "this is not a layer"),
        (written(1, [("a", 1.0, 1.0)]).replace("medianMs", "meanMs"), "this is not a layer"),
        ('[ { "startEnqMs" : 1 } ]', "it was written by --exportTimes"),
        ('{"Layers": []}', "it was written by --exportLayerInfo"),
    ],
)
def test_other_files_are_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.profile.json"
    path.write_text(text)
    with pytest.raises(BadMeasurement) as refused:
        read_layer_times(path)
    message = str(refused.value)
    assert said in message and str(path) in message and "--exportProfile=a.profile.json" in message


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = (DATA / "10.3" / "gate.profile.json").read_text().rstrip()
    path = tmp_path / "cut.json"
    for end in range(len(whole)):
        path.write_text(whole[:end])
        with pytest.raises(BadMeasurement):
            read_layer_times(path)
