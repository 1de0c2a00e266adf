# SPDX-License-Identifier: Apache-2.0
"""Input files of the timing cases: exact sizes, values in range, and ONNX Runtime runs every case with them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from secateur.bundle.manifest import Manifest, TensorSpec
from secateur.bundle.symbolic_shape import bind, resolve_shapes
from secateur.engines.cases import Case, Cases, input_files, input_values
from secateur.engines.manifest import BuilderSettings, Limits
from secateur.engines.shapes import cases, profiles
from secateur.engines.trtexec import Recipe
from secateur.errors import BadBundle, BadMeasurement, BadOutput
from secateur.export.bundle import Exported

Trt = tuple[Path, Exported]
LIMITS = Limits(1, 12, 6)


@pytest.fixture(scope="module", params=[0, 1], ids=["empty past", "masked past"])
def recipe(request: pytest.FixtureRequest, trt_bundle: Trt, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    bundle, exported = trt_bundle
    manifest, past = exported.manifest, request.param
    shapes = profiles(manifest, LIMITS, "full", past)
    made = Recipe(
        manifest, shapes, cases(manifest, LIMITS, past), BuilderSettings(), tmp_path_factory.mktemp("out"), bundle
    )
    made.write()
    return made


def read(recipe: Recipe, case: Case) -> dict[str, Any]:
    """Read the files like trtexec: raw bytes in C order."""
    read = {}
    for name, file in input_files(recipe.manifest, case).items():
        data = (recipe.folder / file).read_bytes()
        assert len(data) == 8 * int(np.prod(case.shapes[name])), file
        read[name] = np.frombuffer(data, np.int64).reshape(case.shapes[name])
    return read


def test_values_are_in_range(recipe: Recipe) -> None:
    manifest = recipe.manifest
    for case in recipe.cases:
        past = next((shape[0] for name, shape in case.shapes.items() if name.startswith("past_")), 0)
        for name, value in read(recipe, case).items():
            kind = name.removeprefix("full_")
            if kind == "attention_mask":
                hidden = past if case.kind == "prefill" else 0
                assert not value[:, :hidden].any() and (value[:, hidden:] == 1).all()
                continue
            most = {
                "input_ids": manifest.dimensions.vocabulary,
                "vision_index": manifest.layout.vision_tokens,
                "position_ids": manifest.dimensions.context,
                "last_index": case.shapes.get("hidden_states", (0, 0))[1],
            }[kind]
            assert value.min() >= 0 and value.max() < most
            if kind in ("vision_index", "position_ids"):
                assert (np.diff(value, axis=1) > 0).all()
            if kind == "last_index":
                assert (value == most - 1).all()


def test_every_case_runs(recipe: Recipe) -> None:
    """Shapes, dtypes and indices fit the graph; floats are drawn as by trtexec."""
    random = np.random.default_rng(0)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions: dict[str, Any] = {}
    for case in recipe.cases:
        graph = recipe.manifest.graph(case.graph)
        if case.graph not in sessions:
            sessions[case.graph] = onnxruntime.InferenceSession(str(recipe.bundle / graph.file), options)
        given = {
            spec.name: random.uniform(-1, 1, case.shapes[spec.name]).astype(spec.dtype)
            for spec in graph.inputs
            if spec.dtype.startswith("float")
        }
        given |= {x.name: random.uniform(-1, 1, x.shape).astype(x.dtype) for x in graph.weights}
        empty = {s.name: np.zeros(case.shapes[s.name], s.dtype) for s in graph.inputs if 0 in case.shapes[s.name]}
        made = sessions[case.graph].run([spec.name for spec in graph.outputs], given | empty | read(recipe, case))
        shapes = resolve_shapes(graph.outputs, bind(graph.inputs, case.shapes))
        for spec, value in zip(graph.outputs, made, strict=True):
            assert value.shape == shapes[spec.name] and np.isfinite(value).all(), (case.name, spec.name)


def test_positions_are_in_range_if_the_cache_fills_the_context(recipe: Recipe) -> None:
    case = next(case for case in recipe.cases if case.graph == "segment_0" and case.kind == "decode")
    rows = next(shape[0] for name, shape in case.shapes.items() if name.startswith("past_"))
    graph = recipe.manifest.graph("segment_0")  # those whose gate reads text_query have positions
    read = dataclasses.replace(graph, inputs=(*graph.inputs, TensorSpec("position_ids", "int64", ("B", "S"))))
    short = dataclasses.replace(
        recipe.manifest,
        graphs=tuple(read if g is graph else g for g in recipe.manifest.graphs),
        dimensions=dataclasses.replace(recipe.manifest.dimensions, context=rows),
    )
    case = dataclasses.replace(case, shapes=case.shapes | {"position_ids": (1, 1)})
    assert input_values(short, case)["position_ids"].tolist() == [[rows - 1]]


def test_the_files_belong_to_their_cases(recipe: Recipe) -> None:
    assert Cases.read(recipe.folder).cases == recipe.cases
    written = {path.relative_to(recipe.folder).as_posix() for path in recipe.folder.rglob("*") if path.is_file()}
    needed = {file for case in recipe.cases for file in input_files(recipe.manifest, case).values()}
    assert written == needed | {"cases.json"}


def test_values_are_deterministic(recipe: Recipe) -> None:
    before = {path: path.read_bytes() for path in recipe.folder.rglob("*") if path.is_file()}
    recipe.write()
    assert before == {path: path.read_bytes() for path in recipe.folder.rglob("*") if path.is_file()}


def test_an_unknown_integer_is_refused(trt_bundle: Trt) -> None:
    manifest: Manifest = trt_bundle[1].manifest
    graph = manifest.graph("embed")
    odd = dataclasses.replace(graph, inputs=(*graph.inputs, TensorSpec("odd", "int64", ("B",))))
    manifest = dataclasses.replace(manifest, graphs=tuple(odd if g is graph else g for g in manifest.graphs))
    case = next(case for case in cases(manifest, LIMITS) if case.graph == "embed")
    with pytest.raises(BadBundle, match="graph 'embed' has the integer input 'odd'"):
        input_values(manifest, case)


def test_invalid_folders(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadOutput, match="is not a folder; choose another one"):
        dataclasses.replace(recipe, folder=tmp_path / "file").write()
    with pytest.raises(BadMeasurement, match="cases.json does not exist"):
        Cases.read(tmp_path)
    (tmp_path / "cases.json").write_text('{"bundle": "", "cases": [], "schema": 2}')
    with pytest.raises(BadMeasurement, match="cases schema 2 is not known"):
        Cases.read(tmp_path)
