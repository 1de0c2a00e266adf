# SPDX-License-Identifier: Apache-2.0
"""Qwen2.5-VL: like Qwen2-VL, but most layers of the vision encoder attend within windows.

Bai et al., "Qwen2.5-VL Technical Report", arXiv 2502.13923.
"""

from __future__ import annotations

from transformers import Qwen2_5_VLForConditionalGeneration

from secateur.families import qwen2_vl


class Family(qwen2_vl.Family):
    architecture = Qwen2_5_VLForConditionalGeneration
    tiny_vision = {"depth": 3, "intermediate_size": 48, "window_size": 24, "fullatt_block_indexes": [1]}
    tiny_text = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]}}
    tied = False
