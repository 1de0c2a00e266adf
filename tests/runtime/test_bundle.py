# SPDX-License-Identifier: Apache-2.0
"""Damaged, foreign and unsafe bundles are refused with a one-line message that names the file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from secateur.bundle.reader import sha256
from secateur.errors import BadBundle, UnknownName
from secateur.runtime import Bundle, Pipeline

Rewrite = Callable[..., None]
FILES = [
    "onnx/segment_1.onnx",
    "onnx/gates/prune.1.onnx",
    "schedules/prune.json",
    "tokenizer.json",
    "prompt.json",
    "preprocess.json",
]


@pytest.fixture
def copy(bundle_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle_path, tmp_path / "copy"))


def refused(path: Path, *words: str) -> None:
    with pytest.raises(BadBundle) as caught:
        Bundle.load(path)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


def manifest(root: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((root / "manifest.json").read_text())
    return data


def test_a_valid_bundle_is_loaded(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle_path.parent)
    for bundle in (Bundle.load(bundle_path), Bundle.load(bundle_path.name), Bundle.load(bundle_path, verify=False)):
        assert bundle.root == bundle_path.resolve()
        assert bundle.path("prompt.json").is_file()
        assert [g.layer for g in bundle.schedule("prune").gates] == [1, 3]
    with pytest.raises(UnknownName, match="Did you mean 'prune'"):
        bundle.schedule("prun")
    with pytest.raises(BadBundle, match="no file '../secret'"):
        bundle.path("../secret")


@pytest.mark.parametrize("name", FILES)
def test_damaged_files(copy: Path, name: str) -> None:
    path = copy / name
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 4
    for content in (whole[:-1], b"", whole + b" ", bytes(flipped)):
        path.write_bytes(content)
        refused(copy, name, "sha256", "export the bundle again")
    path.rename(path.with_suffix(".renamed"))
    refused(copy, name, "is missing", "export the bundle again")
    path.mkdir()
    refused(copy, name, "not a regular file")


def test_links_must_stay_inside_the_bundle(copy: Path, tmp_path: Path) -> None:
    path, outside, inside = copy / "tokenizer.json", tmp_path / "outside.json", copy / "other.json"
    shutil.copy(path, inside)
    path.rename(outside)
    path.symlink_to(outside)
    refused(copy, "tokenizer.json", "is outside of the bundle")
    path.unlink()
    path.symlink_to(inside)
    Bundle.load(copy)
    path.unlink()
    path.symlink_to(path)
    refused(copy, "tokenizer.json")


def test_folders_that_are_not_a_bundle(tmp_path: Path, bundle_path: Path) -> None:
    refused(tmp_path / "none", "does not exist", "secateur export")
    refused(tmp_path, "is not a bundle", "manifest.json")
    refused(bundle_path / "manifest.json", "is not a bundle")
    for content in ("", "[", "[]", "7", '{"schema": 1}', '{"a":' * 100_000, "\0"):
        (tmp_path / "manifest.json").write_text(content)
        refused(tmp_path, "manifest.json")
    (tmp_path / "manifest.json").write_bytes(b"\xff\xfe\x00")
    refused(tmp_path, "manifest.json")


OUTSIDE = [
    "../secret",
    "/etc/passwd",
    "a/../../b",
    "..\\b",
    "C:/b",
    "",
    ".",
    "a//b",
    "./a",
    "a\0b",
    "a\nb",
    "a\x1b[2Jb",
    "x" * 2000,
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_paths_outside_of_the_bundle_are_refused(copy: Path, rewrite: Rewrite, name: str) -> None:
    rewrite(copy, "manifest.json", files=manifest(copy)["files"] | {name: "0" * 64})
    refused(copy, "outside of the bundle")


UNSAFE = [
    "../../../ESC",
    "/tmp/ESC",
    "a/b",
    "",
    ".",
    "..",
    ".hidden",
    "-rf",
    "a b",
    "a\nb",
    "a\0",
    "a\x1b[2J",
    "a:b",
    "x" * 129,
]


@pytest.mark.parametrize("name", UNSAFE)
def test_names_that_are_not_plain_are_refused(copy: Path, rewrite: Rewrite, name: str) -> None:
    data = manifest(copy)
    whole = json.dumps(data)
    graph(data, "prune.0").update(name=name)
    data["schedules"]["prune"]["gates"][0].update(graph=name)
    rewrite(copy, "manifest.json", **data)
    refused(copy, "has a graph named")
    data = json.loads(whole)
    data["schedules"][name] = data["schedules"]["prune"]
    rewrite(copy, "manifest.json", **data)
    refused(copy, "has a schedule named")
    data = json.loads(whole)
    tensor(data, "segment_0", "query").update(name=name + "é")
    rewrite(copy, "manifest.json", **data)
    refused(copy, "graph 'segment_0' has a tensor named")


def test_names_that_would_be_one_file_are_refused(copy: Path, rewrite: Rewrite) -> None:
    data = manifest(copy)
    data["graphs"].append(graph(data, "prune.0") | {"name": "PRUNE.0"})
    rewrite(copy, "manifest.json", **data)
    refused(copy, "the graphs 'prune.0' and 'PRUNE.0', which would be one file")


def test_weights_outside_of_the_manifest_are_refused(copy: Path, rewrite: Rewrite, tmp_path: Path) -> None:
    """A graph that takes its weights from a file that is not listed, wherever it is."""
    name = "onnx/projector.onnx"
    whole = onnx.load(copy / name)
    (tmp_path / "x").write_bytes(b"\0" * 4096)
    (copy / "onnx/extra.bin").write_bytes(b"\0" * 4096)
    for location in ("extra.bin", "../../x", str(tmp_path / "x"), "*/_ORT_MEM_ADDR_/*"):
        model = onnx.ModelProto()
        model.CopyFrom(whole)
        onnx.external_data_helper.set_external_data(model.graph.initializer[0], location, 0, 512)
        model.graph.initializer[0].ClearField("raw_data")
        (copy / name).write_bytes(model.SerializeToString())
        rewrite(copy, "manifest.json", files=manifest(copy)["files"] | {name: sha256(copy / name)})
        refused(copy, "projector.onnx refers to the file", location, "which is not in the manifest")
        with pytest.raises(BadBundle, match="which is not in the manifest"):
            Bundle.load(copy, verify=False)
    files = manifest(copy)["files"]
    model.graph.initializer[0].external_data[0].value = "extra.bin"
    (copy / name).write_bytes(model.SerializeToString())
    rewrite(copy, "manifest.json", files=files | {n: sha256(copy / n) for n in (name, "onnx/extra.bin")})
    Pipeline.load(copy, threads=1).close()


def test_pipes_and_devices_are_refused(copy: Path) -> None:
    for name in ("manifest.json", "prompt.json", "onnx/embed.onnx"):
        kept = (copy / name).read_bytes()
        for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.mkdir()):
            path = copy / name
            path.unlink()
            make(path)
            refused(copy, name)
            path.rmdir() if path.is_dir() else path.unlink()
            path.write_bytes(kept)
    (copy / "manifest.json").write_bytes(b" " * ((16 << 20) + 1))
    refused(copy, "manifest.json cannot be read: it has 16777217 bytes, and the most is 16777216")


@pytest.mark.parametrize("how", ["changed", "replaced", "removed", "cut"])
def test_an_open_pipeline_refuses_files_that_changed(copy: Path, picture: Callable[[int], Any], how: str) -> None:
    path = copy / "onnx/projector.onnx"
    with Pipeline.load(copy, threads=1) as vlm, vlm.open(picture(0), "prune") as chat:
        chat.ask("what color", max_new_tokens=1)
        vlm.ask(picture(0), "what color", "prune", max_new_tokens=1)
        data = path.read_bytes()
        if how == "replaced":
            (copy / "new").write_bytes(data)
            os.utime(copy / "new", ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
            (copy / "new").rename(path)
        elif how == "removed":
            path.unlink()
        else:
            path.write_bytes(data[:-1] if how == "cut" else data)
        for ask in (
            lambda: vlm.ask(picture(0), "what color", "prune"),
            lambda: vlm.open(picture(0), "prune"),
            lambda: chat.ask("and where"),
            lambda: next(vlm.stream(picture(0), "what color", "prune")),
        ):
            with pytest.raises(
                BadBundle, match=r"projector\.onnx was changed, replaced or removed after it was loaded"
            ):
                ask()


def test_an_unknown_schema_is_refused(copy: Path, rewrite: Rewrite) -> None:
    rewrite(copy, "manifest.json", schema=3, novelty=1)
    refused(copy, "schema 3", "reads schema 2")


def test_required_files_must_be_in_the_manifest(copy: Path, rewrite: Rewrite) -> None:
    for name in FILES:
        files = manifest(copy)["files"]
        del files[name]
        shutil.copytree(copy, copy.parent / "unlisted", dirs_exist_ok=True)
        rewrite(copy.parent / "unlisted", "manifest.json", files=files)
        refused(copy.parent / "unlisted", f"does not list the required file '{name}'")


def test_weights_must_be_in_the_manifest(copy: Path) -> None:
    (copy / "onnx/embed.onnx.data").write_bytes(b"weights")
    refused(copy, "embed.onnx.data is not in the manifest")


def graph(data: dict[str, Any], name: str) -> dict[str, Any]:
    return next(g for g in data["graphs"] if g["name"] == name)


def tensor(data: dict[str, Any], name: str, tensor: str) -> dict[str, Any]:
    whole = graph(data, name)
    return next(t for t in [*whole["inputs"], *whole["outputs"]] if t["name"] == tensor)


CHANGES: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("kind", lambda m: graph(m, "embed").update(kind="magic"), "unknown kind 'magic'"),
    ("no vision", lambda m: m["graphs"].remove(graph(m, "vision")), "exactly one vision"),
    ("no segment", lambda m: m["graphs"].remove(graph(m, "segment_1")), "'segment_2' has the layers (3, 4)"),
    ("too short", lambda m: m["graphs"].remove(graph(m, "segment_2")), "end at layer 3, the model has 4"),
    ("layers", lambda m: graph(m, "segment_1").update(layers=None), "'segment_1' has the layers None"),
    ("order", lambda m: m["graphs"].sort(key=lambda g: g["name"], reverse=True), "not from 0 on"),
    ("input", lambda m: tensor(m, "segment_1", "past_key.1").update(name="past_key.9"), "'past_key.1'"),
    ("output", lambda m: tensor(m, "segment_0", "new_key.0").update(name="new_key"), "lacks the output 'new_key.0'"),
    ("logits", lambda m: tensor(m, "segment_2", "logits").update(name="hidden_states.out"), "'logits'"),
    ("query", lambda m: tensor(m, "prune.0", "query").update(name="queries"), "has the unknown input 'queries'"),
    ("twice", lambda m: tensor(m, "segment_0", "query").update(name="new_key.0"), "has two tensors of the same name"),
    ("shape", lambda m: tensor(m, "vision", "features").update(shape=["B", "9x", 8]), "'9x'"),
    ("size", lambda m: tensor(m, "vision", "features").update(shape=["B", -9, 8]), "-9"),
    ("scalar", lambda m: tensor(m, "prune.0", "vision_index").update(shape=[]), "without dimensions"),
    ("no full", lambda m: m["schedules"].pop("full"), "lacks the schedule 'full'"),
    ("full", lambda m: m["schedules"]["full"].update(m["schedules"]["prune"]), "lacks the schedule 'full'"),
    ("cut", lambda m: m["schedules"]["prune"]["gates"][0].update(layer=2), "no segment starts"),
    ("keep", lambda m: m["schedules"]["prune"]["gates"][0].update(keep=4), "keeps 5 of 9 tokens, not 4 of 9"),
    ("chain", lambda m: m["schedules"]["prune"]["gates"].pop(0), "keeps 2 of 5 tokens, not 2 of 9"),
    ("gate", lambda m: m["schedules"]["prune"]["gates"][0].update(graph="embed"), "is a embed graph"),
    ("lost", lambda m: m["schedules"]["prune"]["gates"][0].update(graph="gone"), "'gone'"),
    ("swap", lambda m: m["schedules"]["all"].update(file="schedules/prune.json"), "not the schedule 'all'"),
    ("model", lambda m: m["model"].update(fingerprint="sha256:x"), "another model"),
    ("head", lambda m: m["layout"].update(head=[1]), "end at row 11, the prompt has 10 rows"),
    ("token", lambda m: m["layout"]["head"].__setitem__(0, -1), "has the token -1, the model has 0 to"),
    ("next", lambda m: m["layout"].update(next_position=0), "the next position is 0, but must be 11 without"),
    ("heads", lambda m: m["dimensions"].update(kv_heads=0), "kv_heads is 0; it must be from 1 to 4096"),
    ("many", lambda m: graph(m, "segment_2").update(layers=[3, 10**12]), "'segment_2' has the layers (3, 10000000000"),
    (
        "one batch",
        lambda m: tensor(m, "segment_0", "new_key.0")["shape"].__setitem__(1, 0),
        "must have a dynamic size, has ['S', 0",
    ),
    (
        "one size",
        lambda m: tensor(m, "embed", "hidden_states")["shape"].__setitem__(0, 2),
        "must have a dynamic size",
    ),
    (
        "view",
        lambda m: m["layout"]["views"][0].update(tokens=9 * 10**8, grid=[30000, 30000]),
        "of a view, tokens is 900000000; it must be from 0 to 262144",
    ),
    ("views", lambda m: m["layout"].update(head=[1] * 262144), "rows is 262153; it must be from 0 to 262144"),
    ("far", lambda m: m["layout"].update(next_position=1 << 31), "next_position is 2147483648; it must be from -1"),
    ("deep", lambda m: m["dimensions"].update(layers=10**9), "layers is 1000000000; it must be from 1 to 1024"),
    ("wide", lambda m: m["dimensions"].update(vocabulary=10**9), "vocabulary is 1000000000; it must be from 1 to"),
    (
        "rows",
        lambda m: tensor(m, "embed", "hidden_states")["shape"].__setitem__(1, "T+100000000"),
        "dimension 'T+100000000' has a number above 262144",
    ),
    ("huge", lambda m: tensor(m, "segment_1", "query").update(shape=["B", 1 << 20, 1 << 20]), "1099511627776 elements"),
    ("rank", lambda m: tensor(m, "segment_1", "query").update(shape=["B"] * 9), "has 9 dimensions"),
    (
        "dtype",
        lambda m: tensor(m, "segment_1", "query").update(dtype="V1000000"),
        "has the dtype 'V1000000', not one of",
    ),
    (
        "width",
        lambda m: tensor(m, "segment_1", "hidden_states")["shape"].__setitem__(2, 17),
        "'hidden_states' ends with [17], the model's dimensions say [16]",
    ),
    (
        "cache",
        lambda m: tensor(m, "segment_1", "past_key.1")["shape"].__setitem__(3, 5),
        "'past_key.1' ends with [2, 5], the model's dimensions say [2, 4]",
    ),
    (
        "flow",
        lambda m: tensor(m, "prune.0", "query")["shape"].__setitem__(2, 5),
        "'query' is float32 of 3 dimensions ending with [5]; in graph 'segment_0' it is",
    ),
    (
        "many graphs",
        lambda m: m.update(graphs=m["graphs"][:1] * 4097),
        "number of graphs is 4097; it must be from 0 to 4096",
    ),
    ("missing", lambda m: m.pop("layout"), "lacks the field 'layout'"),
    ("kind", lambda m: graph(m, "segment_1").update(kind="[" * 100_000), "[[[ ... [[["),
    ("images", lambda m: m["layout"].update(images=1 << 62), "do not belong to 4611686018427387904 images"),
    (
        "integer",
        lambda m: m["layout"].update(images=1 << 63),
        "manifest.layout.images is 9223372036854775808, not an integer of at most 64 bits",
    ),
    ("type", lambda m: m.update(opset="20"), "manifest.opset"),
]


@pytest.mark.parametrize(("change", "message"), [c[1:] for c in CHANGES], ids=[c[0] for c in CHANGES])
def test_inconsistent_manifests_are_refused(copy: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    data = manifest(copy)
    change(data)
    (copy / "manifest.json").write_text(json.dumps(data))
    refused(copy, ".json", message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stop": []}, "has no token that ends an answer"),
        ({"stop": [10**12]}, "has the token 1000000000000, the model has 0 to"),
        ({"pad": -1}, "has the token -1, the model has 0 to"),
    ],
)
def test_tokens_outside_of_the_vocabulary_are_refused(
    copy: Path, rewrite: Rewrite, change: dict[str, Any], message: str
) -> None:
    rewrite(copy, "prompt.json", **change)
    refused(copy, "prompt.json", message)


def test_images_of_another_size(copy: Path, rewrite: Rewrite) -> None:
    rewrite(copy, "preprocess.json", crop=[10, 12])
    refused(copy, "preprocess.json", "(3, 10, 12)", "(3, 12, 12)")


def test_a_broken_graph_without_verification(copy: Path) -> None:
    (copy / "onnx/embed.onnx").write_bytes(b"not a graph")
    with pytest.raises(BadBundle, match=r"embed\.onnx cannot be opened"):
        Pipeline.load(copy, verify=False)
    shutil.copy(copy / "onnx/projector.onnx", copy / "onnx/embed.onnx")
    with pytest.raises(BadBundle, match=r"embed\.onnx and the manifest differ in the tensor 'features'"):
        Pipeline.load(copy, verify=False)


def test_a_graph_with_other_sizes_or_types(copy: Path) -> None:
    for change in ({"shape": ["B", 9, 7]}, {"shape": ["B", 9]}, {"dtype": "float16"}):
        data = manifest(copy)
        for name in ("vision", "projector"):
            tensor(data, name, "features").update(change)
        (copy / "manifest.json").write_text(json.dumps(data))
        with pytest.raises(BadBundle, match=r"vision\.onnx: 'features' is tensor\(float\)"):
            Pipeline.load(copy)
