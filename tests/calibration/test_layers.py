# SPDX-License-Identifier: Apache-2.0
"""The walk through the layers against transformers' own."""

from __future__ import annotations

import copy

import numpy as np
import torch
from PIL import Image

from secateur.calibration.layers import prompts, walk
from secateur.calibration.samples import Sample
from secateur.models.base import Family
from secateur.runtime.preprocess import pixel_values
from secateur.runtime.prompt import Tokenizer
from tests.reference import masked_run

QUESTIONS = ("w1 w2", "w3", "w4 w5 w6 w7")


def pictures() -> list[Sample]:
    rng = np.random.default_rng(1)
    return [Sample(Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)), text) for text in QUESTIONS]


def test_rows_queries_and_keys_are_those_of_transformers(tiny: Family) -> None:
    samples = pictures()
    tokenizer = Tokenizer(tiny.prompt, copy.deepcopy(tiny.tokenizer.backend_tokenizer))
    seen = [masked_run(tiny, pixel_values(s.image, tiny.preprocess), tokenizer.first(s.question), {}) for s in samples]
    start = [rows for rows, _ in prompts(tiny, samples)]
    steps = list(walk(tiny, start))
    assert [step.number for step in steps] == list(range(tiny.dimensions.layers))
    for step in steps:
        layer = step.projections
        for rows, oracle in zip(step.rows, seen, strict=True):
            torch.testing.assert_close(rows, oracle.before[step.number], atol=1e-5, rtol=1e-4)
            normalised = layer.normalise(rows)
            query, key = layer.heads(
                torch.nn.functional.linear(normalised, layer.query, layer.query_bias),
                torch.nn.functional.linear(normalised, layer.key, layer.key_bias),
                torch.arange(rows.shape[1])[None],
            )
            torch.testing.assert_close(query, oracle.query[step.number], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(key, oracle.key[step.number], atol=1e-4, rtol=1e-4)


def test_a_walk_can_be_taken_again_and_stopped(tiny: Family) -> None:
    start = [rows for rows, _ in prompts(tiny, pictures())]
    for step in walk(tiny, start):
        if step.number == 2:
            break
    first, second = ([step.rows for step in walk(tiny, start)] for _ in range(2))
    for before, after in zip(first, second, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(a is b for a, b in zip(first[0], start, strict=True))


def test_who_walks_may_train(tiny: Family) -> None:
    """Gradients stay on between the layers, the rows can be used in a graph, and the model is as it was."""
    before = tiny.decoder.config._attn_implementation
    start = [rows for rows, _ in prompts(tiny, pictures())]
    weight = torch.ones(tiny.dimensions.width, requires_grad=True)
    for step in walk(tiny, start):
        assert torch.is_grad_enabled() and tiny.decoder.config._attn_implementation == before
        (step.rows[0] * weight).sum().backward()
    assert weight.grad is not None and not start[0].requires_grad
