# SPDX-License-Identifier: Apache-2.0
"""What NVIDIA's compiler makes of decoder layers of real size: kernels, fused attention, and bytes moved.

Segments have two layers: what is fused in the first layer of a graph is not always fused in the next.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from secateur.bundle.manifest import GraphSpec
from secateur.engines.compiler import Compiled, compile_graph
from secateur.engines.kernels import moved
from secateur.engines.manifest import Profile, Range
from tests.model_fixtures.layers import SHAPES, fixed, least_bytes, segment

pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
LAYERS = 2
MASK = 1
"""Kernels of a segment besides its layers: the attention mask."""


@pytest.fixture(scope="module", params=SHAPES)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[GraphSpec, Path]:
    folder = tmp_path_factory.mktemp("layers")
    spec = segment(request.param, LAYERS, folder)
    return spec, folder / spec.file


def compiled(written: tuple[GraphSpec, Path], past: int, new: int) -> Compiled:
    spec, path = written
    made = compile_graph(path, [fixed(spec, past, new)], weights=[weight.name for weight in spec.weights])
    assert not made.warnings
    (kernels,) = made.kernels
    assert sum(kernel.attention for kernel in kernels) == LAYERS
    assert not [kernel.name for kernel in kernels if kernel.copy]
    assert len(made.plan) < sum(weight.nbytes for weight in spec.weights) / 50
    return made


@pytest.mark.parametrize(("past", "share"), [(600, 1.03), (4096, 1.06)])
def test_a_decode_step_reads_weights_and_cache_once(written: tuple[GraphSpec, Path], past: int, share: float) -> None:
    (kernels,) = compiled(written, past, 1).kernels
    assert len(kernels) <= 9 * LAYERS + MASK
    spent = moved(kernels)
    assert spent is not None and spent <= share * least_bytes(written[0], past, 1)


@pytest.mark.parametrize("reads", [("query",), ("layer_input", "queries"), ("text_query",)], ids="-".join)
def test_what_a_gate_reads_keeps_the_attention_of_a_decode_step_fused(reads: tuple[str, ...], tmp_path: Path) -> None:
    """In the only layer of a segment, where TensorRT once wrote the queries, keys and values to memory."""
    spec = segment("Qwen2.5-VL-3B", 1, tmp_path, reads=reads)
    made = compile_graph(tmp_path / spec.file, [fixed(spec, 4096, 1)], weights=[weight.name for weight in spec.weights])
    (kernels,) = made.kernels
    assert not made.warnings and sum(kernel.attention for kernel in kernels) == 1
    spent = moved(kernels)
    assert spent is not None and spent <= 1.01 * least_bytes(spec, 4096, 1)


@pytest.mark.parametrize(("past", "new"), [(0, 600), (600, 32)])
def test_prefill_takes_few_kernels(written: tuple[GraphSpec, Path], past: int, new: int) -> None:
    (kernels,) = compiled(written, past, new).kernels
    assert len(kernels) <= 12 * LAYERS


def test_a_larger_batch_copies_no_weight(written: tuple[GraphSpec, Path]) -> None:
    spec, path = written
    one, two = (fixed(spec, 600, 1, batch).ranges for batch in (1, 2))
    profile = Profile("decode", {name: Range(one[name].min, one[name].opt, two[name].max) for name in one})
    (kernels,) = compile_graph(path, [profile], weights=[weight.name for weight in spec.weights]).kernels
    assert sum(kernel.attention for kernel in kernels) == LAYERS
    assert not [kernel.name for kernel in kernels if kernel.copy]


def test_bf16_is_fused_alike(tmp_path: Path) -> None:
    spec = segment("Qwen2.5-VL-3B", 2, tmp_path, "bf16")
    for past, new in ((600, 1), (0, 600)):
        (kernels,) = compile_graph(tmp_path / spec.file, [fixed(spec, past, new)]).kernels
        assert sum(kernel.attention for kernel in kernels) == 2
