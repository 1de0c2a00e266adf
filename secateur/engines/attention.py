# SPDX-License-Identifier: Apache-2.0
"""Decomposition of ONNX's Attention where TensorRT has no fused kernel for its shape, mask and GPU.

Without it, such a build fails. TensorRT has the attention layer since 10.14, trtexec a flag for it only since 10.16.
"""

from __future__ import annotations

from typing import Any

from secateur.bundle.manifest import Manifest
from secateur.engines.version import FLOORS, Version

SINCE = Version(10, 14)


def allow_decomposition(trt: Any, network: Any) -> None:
    """Mark every attention layer of a parsed network as decomposable."""
    if Version.parse(trt.__version__) < SINCE:
        return
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer  # get_layer returns each layer as ILayer
            layer.attention.decomposable = True


def note(manifest: Manifest) -> list[str]:
    """Return notes for a user who builds the bundle with trtexec."""
    if FLOORS.get(manifest.target, SINCE) < SINCE:
        return []
    return [
        "if trtexec finds no implementation for an attention layer, build with `secateur build`, which allows "
        "its decomposition; trtexec has --decomposableAttentions for this since 10.16"
    ]
