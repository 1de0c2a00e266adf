# SPDX-License-Identifier: Apache-2.0
"""Image markers at the ends of a prompt are removed with a warning, by the one function that all prompts pass."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import pytest
import torch

from secateur.calibration.layer_walk import prompts
from secateur.calibration.samples import samples
from secateur.errors import BadPrompt, SecateurWarning
from secateur.runtime.image_marker import without_markers
from tests import checks
from tests.conftest import tiny_family
from tests.model_fixtures.eager import eager

QWEN = "<|vision_start|><|image_pad|><|vision_end|>"
MARKERS = (
    "<image>",
    "<image>\n",
    " <image> \n",
    QWEN,
    "<|image_pad|>",
    "<|vision_start|><|image_pad|><|image_pad|><|image_pad|><|vision_end|>\n",
    "<IMG_CONTEXT>\n",
    "<img><IMG_CONTEXT><IMG_CONTEXT></img>\n",
    "<start_of_image>",
    "<image_soft_token>",
    "[IMG][IMG][IMG_BREAK][IMG][IMG_END]",
    "<|image|>",
    "<|image_1|>\n",
    "<fake_token_around_image><global-img><image><fake_token_around_image>",
    "<Image><ImageHere></Image>",
    "<image>\n<image>\n",
)


@pytest.mark.parametrize("marker", MARKERS)
@pytest.mark.parametrize("question", ["what is it ?", "<b>a</b>\n\n b [x]"])
def test_markers_at_both_ends(marker: str, question: str) -> None:
    for prompt in (marker + question, question + "\n" + marker, marker + question + marker):
        with pytest.warns(SecateurWarning, match="image markers such as .* are removed from prompts"):
            assert without_markers(prompt) == question


@pytest.mark.parametrize(
    "prompt",
    ["what ?", " what ?\n", "<img>what</img>", "<images> what", "a < image > b", "[IMAGE] what", "<|image_9999|>a"],
)
def test_other_text_is_unchanged(prompt: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert without_markers(prompt) == prompt


def test_the_models_own_marker() -> None:
    with pytest.warns(SecateurWarning, match="such as '<picture>'"):
        assert without_markers("<picture> what ?", "<picture>") == "what ?"
    assert without_markers("<picture> what ?", "<photo>") == "<picture> what ?"


def test_markers_inside_the_text() -> None:
    """A special token of the model is refused; another model's is text."""
    with pytest.raises(BadPrompt, match="has the image marker '<image>' inside its text; .* move it to the beginning"):
        without_markers("is <image> red ?", "<image>", ["<image>"])
    assert without_markers("is <image> red ?", "<|image_pad|>", ["<|image_pad|>"]) == "is <image> red ?"
    with pytest.raises(BadPrompt, match="has the image marker '<image>' inside its text"):
        without_markers("<image>\nis <image> red ?", "<image>", ["<image>"])
    with pytest.raises(BadPrompt, match="the prompt is only the image marker '<image>'; give a question"):
        without_markers(" <image>\n<image> ")


def test_long_prompts_take_no_longer() -> None:
    """Many markers and white space: a pattern that backtracks would take hours."""
    space = " " * 200_000
    assert without_markers(f"a{space}b{space}") == f"a{space}b{space}"
    with pytest.warns(SecateurWarning):
        assert without_markers("<image>\n" * 20_000 + f"a{space}b" + "\n<image>" * 200) == f"a{space}b"


@pytest.mark.parametrize(("family", "own"), [("llava", "<image>\n"), ("qwen2_5_vl", QWEN)])
def test_answers_and_calibration(family: str, own: str, tmp_path: Path) -> None:
    """The answers of a pipeline and a chat, and the rows that calibration measures, are those without a marker."""
    model = tiny_family(family)
    image = checks.picture(0)
    image.save(tmp_path / "a.png")
    with eager(model, tmp_path / "bundle") as vlm:
        plain = vlm.ask(image, checks.QUESTION, max_new_tokens=4)
        for prompt in (own + checks.QUESTION, "<image>\n" + checks.QUESTION, f"{checks.QUESTION}\n{own}"):
            with pytest.warns(SecateurWarning, match="removed"):
                answer = vlm.ask(image, prompt, max_new_tokens=4)
            assert answer.tokens == plain.tokens and (answer.first_logits == plain.first_logits).all()
        with vlm.open(image) as chat, pytest.warns(SecateurWarning, match="removed"):
            assert chat.ask(own + checks.QUESTION, max_new_tokens=4).tokens == plain.tokens
            assert "".join(vlm.stream(image, own + checks.QUESTION, max_new_tokens=4)) == plain.text
        with pytest.raises(BadPrompt, match=f"image marker '{re.escape(model.prompt.image_token)}' inside"):
            vlm.ask(image, f"w1 {own} w2")
    lines = [json.dumps({"image": "a.png", "text": text}) for text in ("<image>\nw1 w2", "w1 w2")]
    (tmp_path / "samples.jsonl").write_text("\n".join(lines))
    found = samples(family, tmp_path / "samples.jsonl", 2, 0)
    with pytest.warns(SecateurWarning, match="removed"):
        first, second = (start.rows for start in prompts(model, found))
    assert torch.equal(first, second)
