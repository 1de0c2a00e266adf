# SPDX-License-Identifier: Apache-2.0
"""Held-out accuracy of a demo model, with transformers' `generate` in fp32."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from secateur.demo.scenes import KINDS, SceneSample, samples

__all__ = ["accuracy", "answers"]


def accuracy(directory: Path, count: int = 1000, split: str = "test", seed: int = 0) -> dict[str, float]:
    """Return the share of questions with exactly the right word as answer: "overall" and per kind."""
    asked = list(samples(split, count, seed))
    right: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for sample, answer in zip(asked, answers(directory, asked), strict=True):
        right[sample.kind].append(answer == sample.answer)
    everything = [each for kind in right.values() for each in kind]
    shares = {kind: sum(each) / len(each) for kind, each in right.items() if each}
    return {"overall": sum(everything) / len(everything), **shares}


@torch.inference_mode()
def answers(directory: Path, asked: list[SceneSample], batch: int = 50) -> list[str]:
    """Return the model's greedy answer to each sample, in order."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    processor: LlavaProcessor = LlavaProcessor.from_pretrained(directory)
    model: Any = LlavaForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)
    model.to(device).eval()
    prompts = [prompt(processor, sample.question) for sample in asked]
    # A batch has questions of equal length, so that no prompt needs padding.
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, text in enumerate(prompts):
        by_length[len(processor.tokenizer(text).input_ids)].append(index)

    found: dict[int, str] = {}
    for indices in by_length.values():
        for first in range(0, len(indices), batch):
            chunk = indices[first : first + batch]
            images = [asked[index].image for index in chunk]
            inputs = processor(images=images, text=[prompts[index] for index in chunk], return_tensors="pt").to(device)
            output = model.generate(**inputs, max_new_tokens=2, do_sample=False)
            new = output[:, inputs["input_ids"].shape[1] :]
            texts = processor.tokenizer.batch_decode(new, skip_special_tokens=True)
            found.update(zip(chunk, (text.strip() for text in texts), strict=True))
    return [found[index] for index in range(len(asked))]


def prompt(processor: LlavaProcessor, question: str) -> str:
    """Return the chat template's text for one image with one question."""
    content: Any = [{"type": "image"}, {"type": "text", "text": question}]
    return str(processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True))
