# SPDX-License-Identifier: Apache-2.0
"""A bundle with a tiny random vision-language model, built node by node."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tokenizers
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from secateur.bundle.layout import Dimensions, Layout, ModelIdentity, View
from secateur.bundle.manifest import GateRef, GraphSpec, Manifest, ScheduleRef, TensorSpec
from secateur.bundle.schedule import Budget, Gate, Schedule
from secateur.bundle.strict_json import to_json
from secateur.runtime import Pipeline

Array = NDArray[Any]

WIDTH, HEADS, KV_HEADS, HEAD, LAYERS, TOKENS, VISION, SIDE = 16, 4, 2, 4, 4, 9, 8, 12
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
WORDS = "user assistant : what color is the seven ? red blue green left right three of where and".split()
VOCABULARY = len(SPECIAL) + len(WORDS)
HEAD_IDS = (1, 5)
CUTS = ((0, 1), (1, 3), (3, 4))
GATES: dict[str, tuple[tuple[int, int, str], ...]] = {
    "full": (),
    "prune": ((1, 5, "query"), (3, 2, "text_query")),
    "early": ((0, 4, ""),),
    "none": ((3, 0, ""),),
    "all": ((1, 9, "query"),),
}


class Graph:
    """Adds one node per call: graph("MatMul", a, b) returns the name of the result."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def __call__(self, op: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        name = out or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def sorted_top(self, scores: str, keep: int) -> str:
        """Return slots [B,keep] of the highest scores [B,N], ascending."""
        slots = []
        for source, largest in ((scores, 1), ("", 0)):
            names = [f"top{largest}", f"slots{largest}"]
            source = source or self("Cast", "slots1", to=TensorProto.FLOAT)
            self.nodes.append(
                helper.make_node("TopK", [source, self.constant([keep])], names, axis=1, largest=largest, sorted=1)
            )
            slots.append(names[1])
        return self("Cast", "top0", to=TensorProto.INT64)

    def save(self, spec: GraphSpec, root: Path) -> None:
        types = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
        inputs, outputs = (
            [helper.make_tensor_value_info(t.name, types[t.dtype], list(t.shape)) for t in side]
            for side in (spec.inputs, spec.outputs)
        )
        model = helper.make_model(
            helper.make_graph(self.nodes, spec.name, inputs, outputs, self.constants),
            opset_imports=[helper.make_opsetid("", 20)],
            ir_version=9,
        )
        path = root / spec.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(model.SerializeToString())


def random_weights() -> dict[str, Array]:
    rng = np.random.default_rng(7)

    def matrix(*shape: int) -> Array:
        values: Array = rng.normal(size=shape) / np.sqrt(shape[-2])
        return values.astype(np.float32)

    w = {"patch": matrix(VISION, 3, 4, 4), "project": matrix(VISION, WIDTH)}
    w |= {"embed": matrix(VOCABULARY, WIDTH) * 4, "head": matrix(WIDTH, VOCABULARY) * 3}
    for layer in range(LAYERS):
        for name, columns in (("q", HEADS * HEAD), ("k", KV_HEADS * HEAD), ("v", KV_HEADS * HEAD), ("m", WIDTH)):
            w[f"{name}{layer}"] = matrix(WIDTH, columns)
        w[f"o{layer}"] = matrix(HEADS * HEAD, WIDTH)
    return w


def f32(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name, "float32", shape)


def i64(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name, "int64", shape)


def vision(w: Mapping[str, Array], root: Path) -> list[GraphSpec]:
    pixels, features = f32("pixel_values", "B", 3, SIDE, SIDE), f32("features", "B", TOKENS, VISION)
    specs = [
        GraphSpec("vision", "vision", "onnx/vision.onnx", (pixels,), (features,)),
        GraphSpec("projector", "projector", "onnx/projector.onnx", (features,), (f32("vision_tokens", "B", 9, WIDTH),)),
        GraphSpec(
            "embed", "embed", "onnx/embed.onnx", (i64("input_ids", "B", "T"),), (f32("hidden_states", "B", "T", WIDTH),)
        ),
    ]
    g = Graph()
    patches = g("Conv", "pixel_values", g.constant(w["patch"], np.float32), strides=[4, 4])
    g("Transpose", g("Reshape", patches, g.constant([0, 0, -1])), out="features", perm=[0, 2, 1])
    g.save(specs[0], root)
    g = Graph()
    g("MatMul", "features", g.constant(w["project"], np.float32), out="vision_tokens")
    g.save(specs[1], root)
    g = Graph()
    g("Gather", g.constant(w["embed"], np.float32), "input_ids", out="hidden_states")
    g.save(specs[2], root)
    return specs


def rope(g: Graph, x: str) -> str:
    """Rotate [B,S,heads,4] by the angles of position_ids."""
    frequencies = g.constant([[[[1.0, 0.1, 1.0, 0.1]]]], np.float32)
    positions = g("Cast", g("Unsqueeze", "position_ids", g.constant([2, 3])), to=TensorProto.FLOAT)
    angle = g("Mul", positions, frequencies)
    low = g("Slice", x, g.constant([0]), g.constant([2]), g.constant([3]))
    high = g("Slice", x, g.constant([2]), g.constant([4]), g.constant([3]))
    turned = g("Concat", g("Neg", high), low, axis=3)
    return g("Add", g("Mul", x, g("Cos", angle)), g("Mul", turned, g("Sin", angle)))


def at_last(g: Graph, rows: str, out: str) -> str:
    return g("GatherND", rows, g("Unsqueeze", "last_index", g.constant([1])), out=out, batch_dims=1)


def segment(w: Mapping[str, Array], number: int, root: Path) -> GraphSpec:
    first, end = CUTS[number]
    cached, new = ("P", "B", KV_HEADS, HEAD), ("S", "B", KV_HEADS, HEAD)
    inputs = [f32("hidden_states", "B", "S", WIDTH), i64("position_ids", "B", "S")]
    inputs += [i64("attention_mask", "B", "P+S"), i64("last_index", "B")]
    last = end == LAYERS
    outputs = [f32("logits", "B", VOCABULARY) if last else f32("hidden_states.out", "B", "S", WIDTH)]
    for layer in range(first, end):
        inputs += [f32(f"past_{part}.{layer}", *cached) for part in ("key", "value")]
        outputs += [f32(f"new_{part}.{layer}", *new) for part in ("key", "value")]
    if not last:
        outputs += [f32(name, "B", HEADS, HEAD) for name in ("query", "text_query")]
    name = f"segment_{number}"
    spec = GraphSpec(name, "segment", f"onnx/{name}.onnx", tuple(inputs), tuple(outputs), (first, end))

    g = Graph()
    total, rows = g("Shape", "attention_mask", start=1), g("Shape", "position_ids", start=1)
    scalar = g.constant(0)
    columns = g("Range", scalar, g("Squeeze", total), g.constant(1))
    row = g("Add", g("Range", scalar, g("Squeeze", rows), g.constant(1)), g("Sub", total, rows))
    causal = g("LessOrEqual", columns, g("Unsqueeze", row, g.constant([1])))
    valid = g("Cast", g("Unsqueeze", "attention_mask", g.constant([1, 2])), to=TensorProto.BOOL)
    zero, never = g.constant(0, np.float32), g.constant(-1e9, np.float32)
    bias = g("Where", g("And", valid, causal), zero, never)
    heads = g.constant([0, 0, 1, 1])
    x = "hidden_states"
    for layer in range(first, end):

        def project(name: str, layer: int = layer, x: str = x) -> str:
            part = g("MatMul", x, g.constant(w[f"{name}{layer}"], np.float32))
            return g("Reshape", part, g.constant([0, 0, HEADS if name == "q" else KV_HEADS, HEAD]))

        query, key, value = rope(g, project("q")), rope(g, project("k")), project("v")
        new_key = g("Transpose", key, out=f"new_key.{layer}", perm=[1, 0, 2, 3])
        new_value = g("Transpose", value, out=f"new_value.{layer}", perm=[1, 0, 2, 3])
        keys = g("Gather", g("Concat", f"past_key.{layer}", new_key, axis=0), heads, axis=2)
        values = g("Gather", g("Concat", f"past_value.{layer}", new_value, axis=0), heads, axis=2)
        scores = g("MatMul", g("Transpose", query, perm=[0, 2, 1, 3]), g("Transpose", keys, perm=[1, 2, 3, 0]))
        share = g("Softmax", g("Add", g("Mul", scores, g.constant(HEAD**-0.5, np.float32)), bias), axis=-1)
        mixed = g("Transpose", g("MatMul", share, g("Transpose", values, perm=[1, 2, 0, 3])), perm=[0, 2, 1, 3])
        flat = g("Reshape", mixed, g.constant([0, 0, -1]))
        x = g("Add", x, g("Tanh", g("MatMul", flat, g.constant(w[f"o{layer}"], np.float32))))
        out = "" if last or layer < end - 1 else "hidden_states.out"
        x = g("Add", x, g("Tanh", g("MatMul", x, g.constant(w[f"m{layer}"], np.float32))), out=out)
    if last:
        g("MatMul", at_last(g, x, ""), g.constant(w["head"], np.float32), out="logits")
    else:
        at_last(g, query, "query")
        now = g("Slice", "attention_mask", g("Sub", total, rows), total, g.constant([1]))
        real = g("Unsqueeze", g("Cast", now, to=TensorProto.FLOAT), g.constant([2, 3]))
        g("ReduceSum", g("Mul", query, real), g.constant([1]), out="text_query", keepdims=0)
    g.save(spec, root)
    return spec


def gate(name: str, layer: int, before: int, keep: int, query: str, root: Path) -> GraphSpec:
    """Make a gate that keeps the highest scores: the mean dot product of key and query, or the sum of the row."""
    count = f"S-{before - keep}" if before > keep else "S"
    inputs = [f32("hidden_states", "B", "S", WIDTH), i64("position_ids", "B", "S"), i64("attention_mask", "B", "S")]
    inputs.append(i64("vision_index", "B", before))
    if query:
        inputs += [f32(query, "B", HEADS, HEAD), f32(f"new_key.{layer - 1}", "S", "B", KV_HEADS, HEAD)]
    outputs = [f32("hidden_states.out", "B", count, WIDTH), i64("position_ids.out", "B", count)]
    outputs += [i64("attention_mask.out", "B", count), i64("vision_index.out", "B", keep)]
    spec = GraphSpec(name, "gate", f"onnx/gates/{name}.onnx", tuple(inputs), tuple(outputs), (layer, layer))

    g = Graph()
    start, stop = len(HEAD_IDS), len(HEAD_IDS) + before
    image = [g.constant([start]), g.constant([stop])]
    if query:
        keys = g("Slice", g("Gather", f"new_key.{layer - 1}", g.constant([0, 0, 1, 1]), axis=2), *image)
        product = g("Mul", g("Unsqueeze", query, g.constant([0])), keys)
        scores = g("Transpose", g("ReduceSum", product, g.constant([2, 3]), keepdims=0), perm=[1, 0])
    else:
        vision_rows = g("Slice", "hidden_states", *image, g.constant([1]))
        scores = g("ReduceSum", vision_rows, g.constant([2]), keepdims=0)
    slots = (
        g.sorted_top(scores, keep)
        if keep
        else g("Slice", "vision_index", g.constant([0]), g.constant([0]), g.constant([1]))
    )
    for rows in ("hidden_states", "position_ids", "attention_mask"):
        head = g("Slice", rows, g.constant([0]), image[0], g.constant([1]))
        tail = g("Slice", rows, image[1], g.constant([1 << 30]), g.constant([1]))
        middle = g("Slice", rows, *image, g.constant([1]))
        kept = g("GatherND", middle, g("Unsqueeze", slots, g.constant([2])), batch_dims=1)
        g("Concat", head, kept, tail, out=f"{rows}.out", axis=1)
    g("GatherElements", "vision_index", slots, out="vision_index.out", axis=1)
    g.save(spec, root)
    return spec


def tokenizer() -> tokenizers.Tokenizer:
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.add_special_tokens([tokenizers.AddedToken(s, special=True, normalized=False) for s in SPECIAL])
    return made


def write_bundle(root: Path) -> None:
    w = random_weights()
    graphs = [*vision(w, root), *(segment(w, i, root) for i in range(len(CUTS)))]
    model = ModelIdentity("tiny", LAYERS, TOKENS, "sha256:tiny", f"{SIDE}x{SIDE}")
    schedules = {}
    (root / "schedules").mkdir()
    for name, gates in GATES.items():
        refs, alive = [], TOKENS
        for j, (layer, keep, query) in enumerate(gates):
            graphs.append(gate(f"{name}.{j}", layer, alive, keep, query, root))
            refs.append(GateRef(layer, f"{name}.{j}", keep))
            alive = keep
        schedule = Schedule(
            name, "test", model, tuple(Gate(r.layer, r.keep) for r in refs), Budget(9.0, 0.0, 0.0, 1.0, (0,))
        )
        schedules[name] = ScheduleRef(f"schedules/{name}.json", tuple(refs))
        (root / f"schedules/{name}.json").write_text(to_json(schedule))
    tokenizer().save(str(root / "tokenizer.json"))
    prompt = {"first": [": ", " assistant :"], "next": ["</s> user : ", " assistant :"]}
    (root / "prompt.json").write_text(json.dumps(prompt | {"stop": [2], "pad": 0}))
    size = {"resize": [SIDE], "resample": "bicubic", "crop": [SIDE, SIDE], "rescale": 1 / 255}
    (root / "preprocess.json").write_text(json.dumps(size | {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}))
    manifest = Manifest(
        model=model,
        source="tiny",
        target="cpu",
        dtype="float32",
        opset=20,
        dimensions=Dimensions(LAYERS, WIDTH, HEADS, KV_HEADS, HEAD, WIDTH, VOCABULARY, 128, VISION),
        layout=Layout(HEAD_IDS, (View(len(HEAD_IDS), TOKENS, (3, 3)),), image_size=(SIDE, SIDE)),
        graphs=tuple(graphs),
        schedules=schedules,
        files={str(p.relative_to(root)): digest(p) for p in sorted(root.rglob("*")) if p.is_file()},
        versions={"secateur": "test"},
    )
    (root / "manifest.json").write_text(to_json(manifest))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle; read-only."""
    root = tmp_path_factory.mktemp("bundle") / "tiny"
    root.mkdir()
    write_bundle(root)
    return root


@pytest.fixture(scope="session")
def vlm(bundle_path: Path) -> Iterator[Pipeline]:
    with Pipeline.load(bundle_path, threads=1) as pipeline:
        yield pipeline


@pytest.fixture
def rewrite() -> Callable[..., None]:
    """rewrite(root, name, **fields): change fields of a JSON file, and its hash in the manifest."""

    def change(root: Path, name: str, **fields: Any) -> None:
        path = root / name
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))
        if name != "manifest.json":
            manifest = json.loads((root / "manifest.json").read_text())
            manifest["files"][name] = digest(path)
            (root / "manifest.json").write_text(json.dumps(manifest))

    return change


@pytest.fixture
def picture() -> Callable[[int], Array]:
    """picture(seed): uint8 [12,12,3], the size of the canvas, so that preprocessing does not resize it."""
    return lambda seed: np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def weights() -> Mapping[str, Array]:
    """Weights of the tiny model by name."""
    return random_weights()
