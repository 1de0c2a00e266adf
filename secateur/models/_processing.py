# SPDX-License-Identifier: Apache-2.0
"""From a transformers processor to the two files a device needs: prompt.json and preprocess.json."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PIL import Image
from transformers import PreTrainedTokenizerBase

from secateur.errors import BadModel
from secateur.runtime.preprocess import Preprocess
from secateur.runtime.prompt import Prompt

Message = dict[str, Any]


def prompt(
    render: Callable[[list[Message]], str], tokenizer: PreTrainedTokenizerBase, image_id: int, stop: tuple[int, ...]
) -> Prompt:
    """Take a chat template apart. `render` applies it to messages and ends with the start of the next answer.

    Raises:
        BadModel: the template has no single image, or hides the question.
    """
    question, answer, further = "QUESTION", "ANSWER", "FURTHER"
    image_token = str(tokenizer.convert_ids_to_tokens(image_id))
    turn = [_message("user", question, image=True)]
    opening = render(turn)
    conversation = render([*turn, _message("assistant", answer), _message("user", further)])
    if opening.count(image_token) != 1 or opening.count(question) != 1:
        raise BadModel(f"the chat template must show the image once as '{image_token}' and the question once")
    if conversation.count(answer) != 1 or conversation.count(further) != 1:
        raise BadModel("the chat template hides an answer or a further question; it must show each turn once")

    bos = tokenizer.bos_token
    ids = tokenizer(opening, add_special_tokens=not (bos and opening.startswith(bos)))["input_ids"]
    behind_image = opening.partition(image_token)[2]
    behind_answer = conversation.partition(answer)[2]
    pad = tokenizer.pad_token_id
    return Prompt(
        head=tuple(ids[: ids.index(image_id)]),
        first=_around(behind_image, question),
        next=_around(behind_answer, further),
        stop=stop,
        pad=stop[0] if pad is None else pad,
    )


def _message(role: str, text: str, image: bool = False) -> Message:
    content = [{"type": "image"}] if image else []
    return {"role": role, "content": [*content, {"type": "text", "text": text}]}


def _around(text: str, middle: str) -> tuple[str, str]:
    before, _, after = text.partition(middle)
    return before, after


def preprocess(processor: Any) -> Preprocess:
    """The steps of a transformers PIL image processor.

    Raises:
        BadModel: it has a step that is not known here.
    """
    size = processor.size
    resize: tuple[int, ...] | None = None
    if getattr(processor, "do_pad", None):
        raise BadModel("the image processor pads (do_pad), which is not supported; set do_pad to false")
    if processor.do_resize:
        known = bool(size["shortest_edge"]) != bool(size["height"] and size["width"])
        if not known or size["longest_edge"]:
            raise BadModel(
                f"the image processor resizes to {dict(size)}; supported: shortest_edge, or height and width"
            )
        resize = (size["shortest_edge"],) if size["shortest_edge"] else (size["height"], size["width"])
    crop = processor.crop_size if getattr(processor, "do_center_crop", False) else None
    return Preprocess(
        resize=resize,
        resample=Image.Resampling(processor.resample).name.lower(),
        crop=(crop["height"], crop["width"]) if crop else None,
        rescale=processor.rescale_factor if processor.do_rescale else None,
        mean=tuple(processor.image_mean) if processor.do_normalize else None,
        std=tuple(processor.image_std) if processor.do_normalize else None,
    )
