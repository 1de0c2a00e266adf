# SPDX-License-Identifier: Apache-2.0
"""Split the prompt of a transformers processor into parts, for devices without transformers.

The chat template is rendered with the images in the first turn, and the processor itself expands them, so markers
around images, between tiles and after lines come from transformers' own code.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from dataclasses import dataclass
from typing import Any

from PIL import Image
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from secateur.bundle.prompt import SCHEMA, Prompt, TurnRules
from secateur.bundle.strict_json import convert
from secateur.checkpoints.bounded import OutOfBounds, bounded
from secateur.checkpoints.template_rules import ANSWER, FURTHER, QUESTION, FurtherTurns, further_turns
from secateur.errors import BadModel, SecateurWarning, first_line
from secateur.runtime.tokenizer import Tokenizer

Message = dict[str, Any]


@dataclass(frozen=True)
class ChatTemplate:
    """The prompt of a model for one image size and number of images.

    head_ids  all ids up to the last image token; each vision row is one image token
    prompt    what a device needs to encode the rest
    """

    prompt: Prompt
    head_ids: tuple[int, ...]


def conversation(
    processor: Any,
    image_id: int,
    size: tuple[int, int],
    stop: tuple[int, ...],
    images: int = 1,
    system: str = "",
    has_template: bool = True,
) -> ChatTemplate:
    """Split a processor's prompt into parts.

    Args:
        image_id: the model's image token.
        size: (height, width) of each image.
        stop: token ids that end an answer.
        has_template: False for a family without a chat template: its prompt is the images and one question.

    Raises:
        BadModel: the template does not show images, question and turns once each and in this order, or it has no room
            for `system`; or the tokenizer does not split the prompt at the image token.
    """
    tokenizer, marker = processor.tokenizer, str(processor.image_token)
    _check_marker(tokenizer, marker, image_id)
    _check_stop(tokenizer, stop)
    _check_system(tokenizer, system)
    if has_template:
        opening, further = _rendered(processor, marker, images, system)
    elif system.strip():
        raise BadModel("this model family has no chat template, so it takes no system prompt; leave it out")
    else:
        opening = marker * images + QUESTION
        further = FurtherTurns(None, "it has no chat template", TurnRules(), TurnRules(), "")
    ids, rest = _expanded(processor, opening, size, images)
    head = ids[: len(ids) - ids[::-1].index(image_id)]
    pad = tokenizer.pad_token_id
    prompt = Prompt(
        first=_around(rest, QUESTION),
        next=further.next,
        stop=stop,
        pad=stop[0] if pad is None else pad,
        image_token=marker,
        one_question=further.one_question,
        question=further.question,
        answer=further.answer,
        gap=further.gap,
        schema=SCHEMA,
    )
    if [*head, *Tokenizer(prompt, tokenizer.backend_tokenizer).first(QUESTION)] != ids:
        raise BadModel(
            f"the tokenizer does not split a prompt at '{marker}'; a device could not encode questions alone"
        )
    return ChatTemplate(prompt, tuple(head))


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int, image_id: int) -> None:
    """Compare a tokenizer with the model's `rows` embeddings and its image token.

    Raises:
        BadModel: an id has no embedding, or the image token is unknown to the tokenizer.
    """
    top = max(tokenizer.get_vocab().values())
    if top >= rows:
        raise BadModel(
            f"the tokenizer has ids up to {top}, the model embeddings for {rows}; "
            "use the tokenizer that the checkpoint was trained with"
        )
    if tokenizer.convert_ids_to_tokens(image_id) is None:
        raise BadModel(
            f"the model's image token {image_id} is not in the tokenizer, whose ids end at {top}; "
            "correct image_token_id in config.json or add the token to tokenizer.json"
        )


def check_image_tokens(found: int, expected: int) -> None:
    """Compare the image tokens of a prompt with the vision tokens of the model.

    Raises:
        BadModel: they differ.
    """
    if found != expected:
        raise BadModel(
            f"the processor makes {found} image tokens, the model {expected} vision tokens; "
            "make processor_config.json (patch size, image size, sequence length) fit config.json"
        )


def _check_marker(tokenizer: PreTrainedTokenizerBase, marker: str, image_id: int) -> None:
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise BadModel(f"the tokenizer is a {type(tokenizer).__name__}; save it as tokenizer.json")
    known = tokenizer.convert_tokens_to_ids(marker)
    if known != image_id:
        raise BadModel(
            f"the processor's image token '{marker}' is {known} in the tokenizer, {image_id} in the model; "
            "correct image_token_id in config.json"
        )
    added = tokenizer.added_tokens_decoder.get(image_id)
    if added is None or not added.special or added.rstrip:
        raise BadModel(
            f"the image token '{marker}' must be a special token that keeps the space after it; "
            'set "special": true and "rstrip": false for it in tokenizer.json'
        )


def _check_stop(tokenizer: PreTrainedTokenizerBase, stop: tuple[int, ...]) -> None:
    if not stop:
        raise BadModel("no token ends an answer; set eos_token_id in generation_config.json")
    known = set(tokenizer.get_vocab().values())
    if unknown := [token for token in stop if token not in known]:
        raise BadModel(
            f"an answer would end at token {unknown[0]!r}, which the tokenizer does not have; correct eos_token_id in "
            "generation_config.json"
        )


def _check_system(tokenizer: PreTrainedTokenizerBase, system: str) -> None:
    """Refuse a system prompt with the text of a special token, which the tokenizer would encode as that token."""
    try:
        system.encode("utf-8")
    except UnicodeEncodeError:
        raise BadModel("the system prompt is not valid UTF-8; send it as UTF-8 text") from None
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    if spelled := [word for word in (*special, QUESTION, ANSWER, FURTHER) if word in system]:
        raise BadModel(f"the system prompt contains '{spelled[0]}', which would become a special token; leave it out")


def _rendered(processor: Any, marker: str, images: int, system: str) -> tuple[str, FurtherTurns]:
    """Return the chat up to the first answer, and how further turns follow.

    The template is rendered some hundred times, all within one bound on time and memory.
    """
    template = _template(processor)
    if "strftime_now" in template:
        text = "the chat template shows the date (strftime_now); a bundle keeps that of its export"
        warnings.warn(text, SecateurWarning, stacklevel=2)

    def probe() -> str:
        try:
            opening, further = _probed(processor, template, marker, images, system)
        except BadModel as problem:
            return json.dumps({"refused": str(problem)})
        return json.dumps({"opening": opening, "further": dataclasses.asdict(further)})

    try:
        found = json.loads(bounded(probe))
    except OutOfBounds as problem:
        raise BadModel(_unrendered(problem)) from None
    if "refused" in found:
        raise BadModel(found["refused"])
    return found["opening"], convert(FurtherTurns, found["further"], "chat_template")


def _template(processor: Any) -> str:
    """Return the chat template of a checkpoint: the one called "default", if there are several."""
    template = processor.chat_template or processor.tokenizer.chat_template
    if not template:
        raise BadModel("the processor has no chat template; add chat_template.jinja next to its config.json")
    if not isinstance(template, dict):
        return str(template)
    if "default" not in template:
        raise BadModel(
            f"the chat templates are called {', '.join(sorted(map(str, template)))}; name one of them 'default' in "
            "tokenizer_config.json"
        )
    return str(template["default"])


def _probed(processor: Any, template: str, marker: str, images: int, system: str) -> tuple[str, FurtherTurns]:
    first = [_message("system", system)] if system.strip() else []

    def say(*texts: str) -> str:
        turns = [_message(("user", "assistant")[n % 2], text, 0 if n else images) for n, text in enumerate(texts)]
        return _render(processor, template, [*first, *turns])

    opening = say(QUESTION)
    if opening.count(marker) != images:
        raise BadModel(
            f"the chat template shows '{marker}' {opening.count(marker)} times for {images} image(s); "
            "correct chat_template.jinja"
        )
    if opening.count(QUESTION) != 1 or opening.index(QUESTION) < opening.rindex(marker):
        raise BadModel(
            f"the chat template must show the question once, after the last '{marker}'; correct chat_template.jinja"
        )
    if system.strip() not in opening.partition(marker)[0]:
        raise BadModel("the chat template does not show a system prompt before the image; leave it out")
    return opening, further_turns(say, template)


def _render(processor: Any, template: str, messages: list[Message]) -> str:
    try:
        text = str(processor.apply_chat_template(messages, template, add_generation_prompt=True))
    except MemoryError:
        raise
    except Exception as problem:  # a template can raise anything
        raise BadModel(_unrendered(problem)) from None
    if "'type': 'text'" in text:
        raise BadModel("the chat template prints message parts as they are; correct chat_template.jinja")
    return text


def _unrendered(problem: Exception) -> str:
    return f"the chat template cannot be rendered ({first_line(problem)}); correct chat_template.jinja"


def _message(role: str, text: str, images: int = 0) -> Message:
    return {"role": role, "content": [*({"type": "image"} for _ in range(images)), {"type": "text", "text": text}]}


def _expanded(processor: Any, text: str, size: tuple[int, int], images: int) -> tuple[list[int], str]:
    """Return the ids of a prompt with blank images, and the text after the last image token."""
    pictures = [[Image.new("RGB", (size[1], size[0]))] * images]
    bos, marker = processor.tokenizer.bos_token, processor.image_token
    try:
        prepared = processor.prepare_inputs_layout(images=pictures, text=[text])[1][0]
        made = processor(
            images=pictures,
            text=[text],
            add_special_tokens=not (bos and text.startswith(bos)),
            return_text_replacement_offsets=True,
        )
    except (ArithmeticError, AttributeError, LookupError, MemoryError, OSError, TypeError, ValueError) as problem:
        raise BadModel(
            f"the processor cannot prepare {images} image(s) of {size[1]}x{size[0]} ({first_line(problem)}); "
            "choose another image size, or correct processor_config.json"
        ) from None
    last = made["text_replacement_offsets"][0][-1]["replacement"]
    if marker not in last:
        raise BadModel(f"the processor makes no image tokens of an image of {size[1]}x{size[0]}; choose a larger size")
    return list(made["input_ids"][0]), last.rpartition(marker)[2] + prepared.rpartition(marker)[2]


def _around(text: str, middle: str) -> tuple[str, str]:
    before, _, after = text.partition(middle)
    return before, after
