# SPDX-License-Identifier: Apache-2.0
"""All image sizes of a manifest must match, and a gate in the encoder must fit every image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from secateur.bundle.contract import check_graphs
from secateur.bundle.layout import Dimensions, Layout, ModelIdentity, View
from secateur.bundle.manifest import Bucket, GateRef, GraphSpec, Manifest, ScheduleRef, TensorSpec
from secateur.errors import BadBundle


def layout(side: int, images: int = 2, **more: Any) -> Layout:
    views = tuple(View(1 + i * side * side, side * side, (side, side)) for i in range(images))
    return Layout((7,), views, images, image_size=(side, side), **more)


def tensor(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name, "int64" if name.startswith("vision_index") else "float32", shape)


FULL = {"full": ScheduleRef("full.json", ())}
SECOND = Bucket(layout(3, vision="vision-3x3"), FULL)
MANIFEST = Manifest(
    model=ModelIdentity("made", 1, 8, "sha256:0", images=2),
    source="made",
    target="cpu",
    dtype="fp32",
    opset=20,
    dimensions=Dimensions(1, 4, 1, 1, 4, 8, 9, 64, 4),
    layout=layout(2),
    graphs=(
        GraphSpec("vision", "vision", "v.onnx", (tensor("pixel_values", "B", 3),), (tensor("features", "B", 4, 4),)),
        GraphSpec(
            "projector",
            "projector",
            "p.onnx",
            (tensor("features", "B", "n", 4),),
            (tensor("vision_tokens", "B", "n", 4),),
        ),
        GraphSpec(
            "embed", "embed", "e.onnx", (tensor("input_ids", "B", "T"),), (tensor("hidden_states", "B", "T", 4),)
        ),
        GraphSpec(
            "segment_0",
            "segment",
            "s.onnx",
            (
                tensor("hidden_states", "B", "S", 4),
                tensor("attention_mask", "B", "P+S"),
                tensor("past_key.0", "P", "B", 1, 4),
                tensor("past_value.0", "P", "B", 1, 4),
            ),
            (tensor("logits", "B", 9), tensor("new_key.0", "S", "B", 1, 4), tensor("new_value.0", "S", "B", 1, 4)),
            (0, 1),
        ),
        GraphSpec(
            "v.0",
            "gate",
            "g.onnx",
            (tensor("features", "B", 4, 4), tensor("vision_index", "B", 4)),
            (tensor("features.out", "B", 2, 4), tensor("vision_index.out", "B", 2)),
            (0, 0),
        ),
    ),
    schedules=FULL,
    files={},
    versions={},
)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (replace(SECOND, schedules={}), r"3x3 has schedules \[\], the first one has \['full'\]"),
        (replace(SECOND, schedules=FULL | {"more": ScheduleRef("m.json", ())}), r"has schedules \['full', 'more'\]"),
        (replace(SECOND, layout=layout(3, 1, vision="vision-3x3")), "3x3 has images 1, the first one has 2"),
        (replace(SECOND, layout=layout(3, positions=(tuple(range(19)),) * 3)), "3x3 has axes 3, the first one has 1"),
    ],
    ids=["no schedule", "another schedule", "images", "axes"],
)
def test_all_image_sizes_have_the_same_schedules_images_and_axes(other: Bucket, message: str) -> None:
    assert len(replace(MANIFEST, others=(SECOND,)).others) == 1
    with pytest.raises(BadBundle, match=message):
        replace(MANIFEST, others=(other,))


@pytest.mark.parametrize(
    ("keep", "views", "message"),
    [
        (4, (2, 2), ""),
        (5, (2, 3), r"keeps \(2, 3\) tokens of the views, but one graph serves all images"),
        (4, (1, 3), r"keeps \(1, 3\) tokens of the views, but one graph serves all images"),
        (6, (3, 3), "keeps 2 of 4 tokens, not 3 of 8"),
    ],
)
def test_a_gate_in_the_encoder_keeps_the_same_tokens_of_every_image(
    keep: int, views: tuple[int, ...], message: str
) -> None:
    gate = GateRef(0, "v.0", keep, "vision", views)
    manifest = replace(MANIFEST, schedules=FULL | {"v": ScheduleRef("v.json", (gate,))})
    if not message:
        return check_graphs(manifest)
    with pytest.raises(BadBundle, match=message):
        check_graphs(manifest)
