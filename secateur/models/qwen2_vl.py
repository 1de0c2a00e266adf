# SPDX-License-Identifier: Apache-2.0
"""Qwen2-VL: a ViT for images of any size with 2-D rotary positions, a patch merger, and a Qwen2 decoder with M-RoPE.

Wang et al., "Qwen2-VL: Enhancing Vision-Language Model's Perception of the World at Any Resolution", arXiv 2409.12191.
"""

from __future__ import annotations

from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from secateur.models import _qwen


class Family(_qwen.Family):
    architecture = Qwen2VLForConditionalGeneration
    configuration = Qwen2VLConfig
    tiny_vision = {"depth": 3, "embed_dim": 32, "hidden_size": 48, "mlp_ratio": 2}
    tiny_text = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]}}
    tied = True
