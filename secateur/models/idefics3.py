# SPDX-License-Identifier: Apache-2.0
"""Idefics3: SigLIP over tiles, pixel shuffle, and a Llama decoder.

Laurençon et al., "Building and better understanding vision-language models", arXiv 2408.12637.
"""

from __future__ import annotations

from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessorPil

from secateur.models import _idefics


class Family(_idefics.Family):
    architecture = Idefics3ForConditionalGeneration
    configuration = Idefics3Config
    images_by = Idefics3ImageProcessorPil
