# SPDX-License-Identifier: Apache-2.0
"""Qwen3-VL: learned and rotary positions in the vision encoder, and DeepStack planes.

A DeepStack plane is the output of a middle encoder layer. It is merged like the features and added to the vision rows
after one of the first decoder layers, so it is an output of `vision`, and a gate drops its rows with the others.

Bai et al., "Qwen3-VL Technical Report", arXiv 2511.21631; DeepStack is Meng et al., arXiv 2406.04334.
"""

from __future__ import annotations

from transformers import Qwen3VLForConditionalGeneration

from secateur.families import qwen2_vl


class Family(qwen2_vl.Family):
    architecture = Qwen3VLForConditionalGeneration
    tiny_tokenizer = qwen2_vl.tokenizer("")
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
