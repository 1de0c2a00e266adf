# SPDX-License-Identifier: Apache-2.0
"""Names, shapes and dtypes of the inputs and outputs of each kind of graph.

B batch, T text rows, S new rows, P cached rows, n vision rows; the changed version of an input `x` is `x.out`.
"""

from __future__ import annotations

from dataclasses import dataclass

from secateur.bundle.layout import Dimensions
from secateur.bundle.manifest import TensorSpec
from secateur.vision.encoder import SCORES


def is_encoder(read: str) -> bool:
    """Return whether a tensor read by a selector comes from the vision encoder."""
    return read.partition(".")[0] in SCORES


@dataclass(frozen=True)
class Interface:
    """Inputs and outputs of a model's graphs.

    tokens        vision tokens of a prompt
    image_tokens  vision tokens of one image
    float_type    dtype of activations
    axes          rotary axes, 3 with M-RoPE
    patch_key     width of the patch keys of the vision encoder, 0 if no gate reads them
    """

    dimensions: Dimensions
    tokens: int
    image_tokens: int
    float_type: str
    axes: int = 1
    patch_key: int = 0

    def floats(self, name: str, *shape: int | str) -> TensorSpec:
        return TensorSpec(name, self.float_type, shape)

    def rows(self, count: str, vision: int, layer: int, suffix: str = "") -> tuple[TensorSpec, ...]:
        """Return the tensors of `count` rows, `vision` of them vision tokens.

        hidden_states, position_ids, attention_mask, vision_index, and the DeepStack planes of layers from `layer` on.
        """
        return (
            self.floats(f"hidden_states{suffix}", "B", count, self.dimensions.width),
            self.positions(f"position_ids{suffix}", count),
            TensorSpec(f"attention_mask{suffix}", "int64", ("B", count)),
            index(vision, suffix),
            *self.planes("deepstack", count, range(layer, self.dimensions.planes), suffix),
        )

    def positions(self, name: str, count: str) -> TensorSpec:
        """Return positions: [B, rows], with M-RoPE [3, B, rows]."""
        return TensorSpec(name, "int64", ("B", count) if self.axes == 1 else (self.axes, "B", count))

    @property
    def rotary(self) -> tuple[TensorSpec, ...]:
        """cos and sin of the positions of S rows."""
        return tuple(self.floats(name, "B", 1, "S", self.dimensions.head_dim) for name in ("rotary_cos", "rotary_sin"))

    def planes(self, name: str, count: int | str, layers: range, suffix: str = "") -> tuple[TensorSpec, ...]:
        """Return the DeepStack planes that these decoder layers add to `count` rows; they are 0 in text rows."""
        added = [layer for layer in layers if layer < self.dimensions.planes]
        return tuple(self.floats(f"{name}.{i}{suffix}", "B", count, self.dimensions.width) for i in added)

    def features(self, count: int | str, suffix: str = "") -> TensorSpec:
        return self.floats(f"features{suffix}", "B", count, self.dimensions.vision_width)

    def segment(self, first: int, end: int, reads: tuple[str, ...]) -> tuple[list[TensorSpec], list[TensorSpec]]:
        """Return the inputs and outputs of a segment of decoder layers [first, end)."""
        d = self.dimensions
        inputs = [
            self.floats("hidden_states", "B", "S", d.width),
            *self.rotary,
            TensorSpec("attention_mask", "int64", ("B", "P+S")),
        ]
        if end == d.layers or "query" in reads:
            inputs.append(TensorSpec("last_index", "int64", ("B",)))
        inputs += self.planes("deepstack", "S", range(first, end))
        if "text_query" in reads:
            inputs += [self.positions("position_ids", "S"), TensorSpec("question_position", "int64", (1,))]
        last = TensorSpec("logits", "float32", ("B", d.vocabulary))
        outputs = [last if end == d.layers else self.floats("hidden_states.out", "B", "S", d.width)]
        for name in (f"{part}.{layer}" for layer in range(first, end) for part in ("key", "value")):
            inputs.append(self.floats(f"past_{name}", "P", "B", d.kv_heads, d.head_dim))
            outputs.append(self.floats(f"new_{name}", "S", "B", d.kv_heads, d.head_dim))
        return inputs, outputs + [self.read(name, end) for name in reads]

    def read(self, name: str, layer: int) -> TensorSpec:
        """Return the tensor `name` that a selector reads at a gate before `layer`, see selection.selector.Selector."""
        d = self.dimensions
        if is_encoder(name):
            if name.partition(".")[0] != "patch_key":
                return TensorSpec(name, "float32", ("B", self.image_tokens))
            return self.floats(name, "B", self.image_tokens, self.patch_key)
        known = {
            "query": self.floats("query", "B", d.heads, d.head_dim),
            "text_query": self.floats("text_query", "B", d.heads, d.head_dim),
            "queries": self.floats("queries", "S", "B", d.heads, d.head_dim),
            "key": self.floats(f"new_key.{layer - 1}", "S", "B", d.kv_heads, d.head_dim),
            "layer_input": self.floats("layer_input", "B", "S", d.width),
        }
        return known[name]

    def encoder(self, before: int, keep: int) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Return the inputs and outputs of a gate between vision encoder and projector."""
        every = range(self.dimensions.planes)
        return (
            (self.features(before), index(before), *self.planes("deepstack", before, every)),
            (self.features(keep, ".out"), index(keep, ".out"), *self.planes("deepstack", keep, every, ".out")),
        )

    def prune(self, layer: int, before: int, keep: int) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Return the inputs and outputs of a gate before `layer` that keeps `keep` of `before` tokens."""
        return self.rows("S", before, layer), self.rows(less("S", before - keep), keep, layer, ".out")

    def route(
        self, layer: int, last: tuple[int, int] | None, keep: int
    ) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Return the inputs and outputs of a routing gate before `layer`.

        last  layer of the previous routing gate and the tokens that it selected, None for the first
        """
        d = self.dimensions
        full = (
            self.positions("full_position_ids", "S"),
            TensorSpec("full_attention_mask", "int64", ("B", "S")),
            *self.planes("full_deepstack", "S", range(last[0] if last else layer, d.planes)),
        )
        outputs = self.rows(less("S", self.tokens - keep), keep, layer, ".out")
        if last is None:
            return (self.floats("hidden_states", "B", "S", d.width), *full), outputs
        states = self.floats("full_states", "B", "S", d.width)
        compact = self.floats("hidden_states", "B", less("S", self.tokens - last[1]), d.width)
        given = self.floats("full_states.out", "B", "S", d.width)
        return (states, compact, index(last[1]), *full), (given, *outputs)


def index(vision: int, suffix: str = "") -> TensorSpec:
    """Return the tensor of the vision tokens' original raster indices."""
    return TensorSpec(f"vision_index{suffix}", "int64", ("B", vision))


def less(symbol: str, dropped: int) -> str:
    """Return the dimension `symbol` minus `dropped` rows: "S", 72 -> "S-72"."""
    return f"{symbol}-{dropped}" if dropped else symbol
