# SPDX-License-Identifier: Apache-2.0
"""Modules of a family, run in sequence in torch, against transformers' own generate."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.export.segments import Rotary, Segment
from secateur.families.base import Family


def question_ids(family: Family, question: str = "w1 w5 w9") -> list[int]:
    """All ids of a first prompt, image tokens included."""
    before, after = family.prompt.first
    text = family.tokenizer(f"{before}{question}{after}", add_special_tokens=False)["input_ids"]
    return [*family.conversation.head_ids, *text]


@torch.inference_mode()
def check_steps(family: Family, decomposed: bool = False, steps: int = 4) -> None:
    """Check that two segments, run on the prompt and on each generated row, give the logits of `generate`."""
    decoder, ids = family.decoder, torch.tensor([question_ids(family)])
    pixels = np.random.default_rng(0).normal(size=(family.images, *family.pixels)).astype(np.float32)
    expected: Any = family.model.generate(
        **family.inputs(ids, pixels),
        max_new_tokens=steps,
        min_new_tokens=steps,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    vision: Tensor = family.projector()(family.vision()(torch.from_numpy(pixels)))
    images = ids == family.image_token_id
    rows = family.embed()(ids.masked_fill(images, 0))
    rows[images] = vision.flatten(0, 1)
    d = family.dimensions
    segments = [Segment(decoder, a, b, decomposed=decomposed) for a, b in ((0, 2), (2, d.layers))]
    pasts = [[torch.zeros(0, 1, d.kv_heads, d.head_dim)] * (2 * len(segment.layers)) for segment in segments]
    known = family.position_ids(ids)
    positions, seen = torch.arange(ids.shape[1])[None] if known is None else known, 0
    for step in range(steps):
        count = rows.shape[1]
        valid, last = torch.ones(1, seen + count, dtype=torch.int64), torch.tensor([count - 1])
        for segment, past in zip(segments, pasts, strict=True):
            cos, sin = Rotary(decoder, rows.dtype)(positions)
            rows, *new = segment(rows, cos, sin, valid, *([last] if segment.is_last else []), *past)
            past[:] = [torch.cat(pair) for pair in zip(past, new, strict=True)]
        torch.testing.assert_close(rows, expected.logits[step], rtol=1e-4, atol=1e-4)
        seen, positions = seen + count, positions[:, -1:] + 1
        rows = family.embed()(expected.sequences[:, ids.shape[1] + step][None])
