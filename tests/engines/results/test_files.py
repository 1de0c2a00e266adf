# SPDX-License-Identifier: Apache-2.0
"""JSON files of trtexec 10.3, 10.16 and 11.1: times, layers and layer times, and invalid files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from secateur.engines.results.files import Layer, read_layer_info, read_layer_times, read_times, split_profile
from secateur.errors import BadMeasurement
from secateur.profiling.results import spread

DATA = Path(__file__).parent.parent / "data"
VERSIONS = ("10.3", "10.16", "11.1")
FIELDS = "startEnqMs endEnqMs startH2dMs endH2dMs startComputeMs endComputeMs startD2hMs endD2hMs".split()
FIELDS += "h2dMs computeMs d2hMs latencyMs".split()
READERS = {"times": read_times, "layers": read_layer_info, "profile": read_layer_times}
FLAGS = {"times": "--exportTimes", "layers": "--exportLayerInfo", "profile": "--exportProfile"}


def written(count: int, layers: list[tuple[str, float, float]]) -> str:
    """Return the file as trtexec writes it, see samples/common/sampleReporting.cpp."""
    lines = [f'[\n  {{ "count" : {count} }}\n']
    for name, average, median in layers:
        lines.append(
            f', {{ "name" : "{name}", "timeMs" : {average * count:g}, "averageMs" : {average!r}, '
            f'"medianMs" : {median!r}, "percentage" : nan }}\n'
        )
    return "".join([*lines, "]\n"])


def test_times_of_10_3() -> None:
    times = read_times(DATA / "10.3" / "segment.times.json")
    assert times.compute == (0.873472, 0.862183, 0.856049, 0.872559)
    assert times.enqueue == pytest.approx((0.03389, 0.03389, 0.033, 0.034))


@pytest.mark.parametrize("version", VERSIONS)
def test_percentiles_equal_those_of_the_console(version: str) -> None:
    ours = spread(read_times(DATA / version / "segment.times.json").compute)
    text = (DATA / version / "segment.log").read_text()
    (line,) = [line for line in text.splitlines() if "GPU Compute Time: min" in line]
    theirs = {int(p): float(ms) for p, ms in re.findall(r"percentile\((\d+)%\) = (\S+) ms", line)}
    assert {50: ours.p50, 90: ours.p90, 95: ours.p95, 99: ours.p99} == theirs


@given(times=st.lists(st.floats(0, 1e6), min_size=1, max_size=20))
def test_every_query_is_read(times: list[float], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "times.json"
    path.write_text(json.dumps([dict.fromkeys(FIELDS, t) for t in times]))
    found = read_times(path)
    assert list(found.compute) == times and set(found.enqueue) == {0.0}


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


def test_layer_times_of_10_3() -> None:
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
def test_layer_times_of_later_versions(version: str, names: list[str]) -> None:
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
    ("kind", "text", "said"),
    [
        ("times", "", "it is empty"),
        ("times", "[\n]\n", "it contains no query"),
        ("times", "{}", "no list of queries"),
        ("times", "hello", "truncated or not JSON"),
        ("times", '[ { "startEnqMs" : 1, "endEnqMs" : 2', "truncated or not JSON"),
        (
            "times",
            '[ { "startEnqMs" : 1, "endEnqMs" : 2, "computeMs" : "1", "latencyMs" : 1 } ]',
            "computeMs '1', not a time",
        ),
        (
            "times",
            '[ { "startEnqMs" : 1, "endEnqMs" : 2, "computeMs" : NaN, "latencyMs" : 1 } ]',
            "computeMs nan, not a time",
        ),
        ("times", '[ { "startEnqMs" : 1, "endEnqMs" : 2, "latencyMs" : 1 } ]', "computeMs None, not a time"),
        ("times", "[ 7 ]", "computeMs None, not a time"),
        ("times", '[\n  { "count" : 3 }\n]', "it was written by --exportProfile"),
        ("times", '{"Layers": [], "Bindings": []}', "it was written by --exportLayerInfo"),
        ("times", "[" * 100_000, "truncated or not JSON"),
        ("layers", "", "it is empty"),
        ("layers", '{"Layers": [', "truncated or not JSON"),
        ("layers", "[1, 2]", "it has no list 'Layers'"),
        ("layers", '{"layers": []}', "it has no list 'Layers'"),
        ("layers", '{"Layers": {}}', "it has no list 'Layers'"),
        ("layers", '{"Layers": [{"LayerType": "kgen"}]}', "neither a name nor an object with a Name"),
        ("layers", '{"Layers": [7]}', "'7' is neither"),
        ("layers", '[\n  { "count" : 3 }\n]', "it was written by --exportProfile"),
        ("profile", "", "it is empty"),
        ("profile", "[]", "not with the number of queries"),
        ("profile", "[ 1, 2", "it is truncated"),
        ("profile", written(0, []), "no query was profiled"),
        ("profile", written(1, [("a", 1.0, float("nan"))]), "this is not a layer"),
        ("profile", written(1, [("a", 1.0, 1.0)]).replace("1.0", "fast"), "this is not a layer"),
        ("profile", written(1, [("a", 1.0, 1.0)]).replace("medianMs", "meanMs"), "this is not a layer"),
        ("profile", '[ { "startEnqMs" : 1 } ]', "it was written by --exportTimes"),
        ("profile", '{"Layers": []}', "it was written by --exportLayerInfo"),
    ],
)
def test_other_files_are_refused(kind: str, text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}.json"
    path.write_text(text)
    with pytest.raises(BadMeasurement) as refused:
        READERS[kind](path)
    message = str(refused.value)
    assert said in message and str(path) in message and "\n" not in message
    assert f"run trtexec again with {FLAGS[kind]}=a.{kind}.json" in message


@pytest.mark.parametrize(
    ("file", "read"), [("11.1/segment.times.json", read_times), ("10.3/gate.profile.json", read_layer_times)]
)
def test_every_truncation_is_refused(tmp_path: Path, file: str, read: Callable[[Path], object]) -> None:
    whole = (DATA / file).read_text().rstrip()
    path = tmp_path / "cut.json"
    for end in range(len(whole)):
        path.write_text(whole[:end])
        with pytest.raises(BadMeasurement):
            read(path)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(BadMeasurement, match="does not exist; run trtexec again with --exportTimes=no.json"):
        read_times(tmp_path / "no.json")
    with pytest.raises(
        BadMeasurement,
        match=f"^{tmp_path} cannot be read: it is not a regular file, .*; give a file that trtexec wrote",
    ):
        read_times(tmp_path)
