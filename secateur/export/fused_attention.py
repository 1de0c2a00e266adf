# SPDX-License-Identifier: Apache-2.0
"""Whether TensorRT computes the attention of a graph in one kernel, from the graph alone.

Measured with TensorRT for RTX 1.7 (tests/export/test_fused_attention.py compares both). In fp16 and bf16 it fuses
product, mask, softmax and product, also if one of them is computed in fp32 between casts. It does not

- if both products are in fp32: a prefill then writes all scores to memory;
- if something else is done with the scores before the softmax, such as the tanh of Gemma 2.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from secateur.bundle.manifest import Manifest
from secateur.engines.version import TARGET
from secateur.export.graph_facts import Facts

ALLOWED = ("Add", "Mul", "Div", "Sub", "Where", "Cast", "Unsqueeze", "Squeeze", "Reshape")
"""Operators between the first product and the softmax that do not prevent the fusion."""
PASSED = ("Tanh", "Clip", "Min", "Max", "Softplus", "Sigmoid")
"""Other operators through which scores are followed."""


def attention_warnings(root: Path, manifest: Manifest) -> tuple[str, ...]:
    """Return one line for each reason why TensorRT does not fuse the attention of segments; none for other targets.

    root  folder of the bundle
    """
    segments = manifest.segments if manifest.target == TARGET else ()
    reasons = [reason for segment in segments if (reason := unfused(root / segment.file))]
    return tuple(
        f"TensorRT will not fuse the attention of {reasons.count(reason)} of {len(segments)} segments: {reason}"
        for reason in dict.fromkeys(reasons)
    )


def unfused(model: onnx.ModelProto | Path) -> str:
    """Return why TensorRT does not fuse an attention of the graph and the mend; "" if it fuses all of them."""
    facts = Facts.of(model)
    for node in facts.nodes:
        if node.operator != "Softmax":
            continue
        found = _score_product(facts, node.input(0))
        if found is None:
            continue
        product, between = found
        if between:
            return f"its scores pass through {between} before the softmax, for which TensorRT has no fused kernel"
        second = _reader(facts, node.output(0))
        dtypes = {facts.dtypes.get(one.input[0]) for one in (product, second) if one is not None}
        if dtypes == {"float32"}:
            return "it is computed in fp32; export with --dtype fp16 or bf16"
    return ""


def _score_product(facts: Facts, name: str) -> tuple[onnx.NodeProto, str] | None:
    """Follow scores back to their product; return it and the first operator on the way that prevents the fusion."""
    waiting = [(name, "")]
    while waiting:
        name, between = waiting.pop()
        maker = facts.makers.get(name)
        if maker is None:
            continue
        if maker.op_type == "MatMul":
            return maker, between
        if maker.op_type in ALLOWED:
            waiting += [(source, between) for source in maker.input]
        elif maker.op_type in PASSED:
            waiting += [(source, between or maker.op_type) for source in maker.input]
    return None


def _reader(facts: Facts, name: str) -> onnx.NodeProto | None:
    """Return the product that reads the output of a softmax, also through casts."""
    node: onnx.NodeProto
    for node in facts.model.graph.node:
        if name in node.input:
            if node.op_type == "MatMul":
                return node
            if node.op_type == "Cast":
                return _reader(facts, node.output[0])
    return None
