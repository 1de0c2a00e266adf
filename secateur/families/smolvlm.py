# SPDX-License-Identifier: Apache-2.0
"""SmolVLM and SmolVLM2 (images, no videos): a small Idefics3.

Marafioti et al., "SmolVLM: Redefining small and efficient multimodal models", arXiv 2504.05299.
"""

from __future__ import annotations

from transformers import SmolVLMForConditionalGeneration, SmolVLMImageProcessorPil

from secateur.checkpoints.tiny_model import CHATML_TOKENS
from secateur.families import idefics3


class Family(idefics3.Family):
    architecture = SmolVLMForConditionalGeneration
    images_by = SmolVLMImageProcessorPil
    tiny_tokenizer = idefics3.tokenizer(*CHATML_TOKENS, bos="<|im_start|>", pad="<|im_end|>")
