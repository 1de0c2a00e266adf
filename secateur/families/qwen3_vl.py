# SPDX-License-Identifier: Apache-2.0
"""Qwen3-VL: learned and rotary positions in the vision encoder, whose middle layers go to the first decoder layers.

What a middle layer gives (a DeepStack plane) is merged like the features and added to the vision rows behind a decoder
layer, so it is part of `vision` here and a gate drops its rows with the others. Bai et al., "Qwen3-VL Technical
Report", arXiv 2511.21631; DeepStack is Meng et al., arXiv 2406.04334.
"""

from __future__ import annotations

from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from secateur.families import qwen2_vl


class Family(qwen2_vl.Family):
    architecture = Qwen3VLForConditionalGeneration
    configuration = Qwen3VLConfig
    form = qwen2_vl.form("")
    tiny_vision = {
        "depth": 3,
        "intermediate_size": 48,
        "num_position_embeddings": 25,
        "deepstack_visual_indexes": [0, 1],
    }
    tiny_text = {
        "head_dim": 16,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [4, 2, 2],
            "mrope_interleaved": True,
        },
    }
    tied = False
