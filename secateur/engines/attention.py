# SPDX-License-Identifier: Apache-2.0
"""ONNX's Attention becomes one fused kernel or, where TensorRT has none for its shape, mask and GPU, single layers.

Left alone, such a build fails. TensorRT has the layer from 10.14 on, trtexec a flag for it only from 10.16 on.
"""

from __future__ import annotations

from typing import Any

from secateur.bundle.manifest import Manifest
from secateur.engines.version import FLOORS, Version

SINCE = Version(10, 14)


def allow_decomposition(trt: Any, network: Any) -> None:
    """Let every attention of a parsed network be decomposed."""
    if Version.parse(trt.__version__) < SINCE:
        return
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer  # get_layer gives all of them as ILayer
            layer.attention.decomposable = True


def note(manifest: Manifest) -> list[str]:
    """What to know before trtexec builds the bundle."""
    if FLOORS.get(manifest.target, SINCE) < SINCE:
        return []
    return [
        "if trtexec finds no implementation for an attention layer, build with `secateur build`, which lets it be "
        "decomposed; trtexec has --decomposableAttentions for that from 10.16 on"
    ]
