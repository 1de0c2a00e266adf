# SPDX-License-Identifier: Apache-2.0
"""Image markers in prompts, such as <image>: other programs want them, a bundle places its images itself."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection

from secateur.errors import BadPrompt, SecateurWarning

IMAGE = (
    r"<image>|<\|image_pad\|>|<IMG_CONTEXT>|<image_soft_token>|<start_of_image>|<\|image(?:_\d{1,3})?\|>"
    r"|<image_placeholder>|<ImageHere>|\[IMG\]"
)
"""What stands for an image in the prompts of well-known models."""
AROUND = (
    r"<\|vision_start\|>|<\|vision_end\|>|</?img>|</?Image>|<fake_token_around_image>|<global-img>|<end_of_image>"
    r"|\[IMG_BREAK\]|\[IMG_END\]"
)
"""What some models have around it."""
LONGEST_MARKER = 64


def without_markers(prompt: str, own: str = "", special: Collection[str] = ()) -> str:
    """Return `prompt` without the image markers at its beginning and end; warns if there are any.

    own      image token of the model
    special  special tokens of the model; others are ordinary text

    Raises:
        BadPrompt: there is a marker inside the text that is a special token, or no text besides the markers.
    """
    image = f"(?P<image>{IMAGE}{'|' + re.escape(own) if own else ''})"
    piece = f"(?:{image}|{AROUND})"
    first, last, found = re.compile(rf"\s*{piece}"), re.compile(rf"{piece}\s*\Z"), list[str]()
    start, end = 0, len(prompt)
    while match := first.match(prompt, start, end):
        start = match.end()
        found += filter(None, [match["image"]])
    start = start if found else 0
    at_start = len(found)
    while match := last.search(prompt, max(start, len(prompt[start:end].rstrip()) + start - LONGEST_MARKER), end):
        end = match.start()
        found += filter(None, [match["image"]])
    end = end if len(found) > at_start else len(prompt)
    text = prompt[start:end]
    if inside := next((m["image"] for m in re.finditer(image, text) if m["image"] in special), None):
        raise BadPrompt(
            f"the prompt has the image marker '{inside}' inside its text; the images come before the question: move "
            "it to the beginning, or leave it out"
        )
    if not found:
        return prompt
    text = text.lstrip() if at_start else text
    text = text.rstrip() if len(found) > at_start else text
    if not text:
        raise BadPrompt(f"the prompt is only the image marker '{found[0]}'; give a question")
    warnings.warn(
        f"image markers such as '{found[0]}' are removed from prompts: a bundle places its images itself",
        SecateurWarning,
        stacklevel=2,
    )
    return text
