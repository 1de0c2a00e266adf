# SPDX-License-Identifier: Apache-2.0
"""Load the transformers processor of a checkpoint, for still images only.

transformers creates the processors of families that also support videos (LLaVA-OneVision, Qwen-VL, InternVL, SmolVLM)
only if torchvision is installed, and SmolVLM's only with num2words, which spells the number of frames. Images need
neither, so a stand-in replaces the video part.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import transformers
from transformers import AutoImageProcessor, AutoTokenizer, ProcessorMixin, processing_utils
from transformers.models.auto import processing_auto
from transformers.models.smolvlm import processing_smolvlm
from transformers.video_processing_utils import VideoProcessorMixin

from secateur.checkpoints.weights import first_line
from secateur.errors import BadModel


class NoVideo(VideoProcessorMixin):
    """Stand-in for the video part of a processor; it refuses videos."""

    num_frames = fps = None

    def __init__(self) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise BadModel("videos are not supported; ask about images")

    def to_dict(self) -> dict[str, Any]:
        return {}


def build(kind: str, image_processor: Any, tokenizer: Any, **options: Any) -> ProcessorMixin:
    """Return the processor of model family `kind` (a `model_type`), made of its parts; `options` go to its class."""
    cls = _class(kind)
    parts = {"image_processor": image_processor, "tokenizer": tokenizer, "video_processor": NoVideo()}
    with _images_only():
        made: ProcessorMixin = cls(**{name: parts[name] for name in cls.get_attributes()}, **options)
    return made


def read(kind: str, path: str, **hub: Any) -> ProcessorMixin:
    """Return the processor in a checkpoint directory or hub repository; `hub` is revision, local_files_only and so on.

    Images are processed by the PIL classes, whether torchvision is installed or not.

    Raises:
        BadModel: a library is missing.
        OSError, ValueError: raised by transformers if files are missing or damaged.
    """
    cls = _class(kind)
    try:
        return _read(cls, path, hub)
    except ImportError as problem:
        raise BadModel(f"the processor of '{path}' needs a missing library: {first_line(problem)}") from None


def _read(cls: Any, path: str, hub: dict[str, Any]) -> ProcessorMixin:
    settings, _ = cls.get_processor_dict(path, **hub)
    parts: dict[str, Any] = {
        "image_processor": AutoImageProcessor.from_pretrained(path, backend="pil", trust_remote_code=False, **hub),
        "tokenizer": AutoTokenizer.from_pretrained(path, trust_remote_code=False, **hub),
        "video_processor": NoVideo(),
    }
    with _images_only():
        made: ProcessorMixin = cls.from_args_and_dict([parts[name] for name in cls.get_attributes()], settings)
    return made


def _class(kind: str) -> Any:
    names: Any = processing_auto
    return getattr(transformers, names.PROCESSOR_MAPPING_NAMES[kind])


@contextmanager
def _images_only() -> Iterator[None]:
    """Lets a processor be built without torchvision and num2words.

    transformers 5.23 looks the base class of video processors up by a name that it does not export without torchvision,
    and SmolVLM wants num2words at construction. Can go when both are asked for at the first video.
    """
    library: Any = vars(processing_utils)["transformers_module"]
    smolvlm: Any = processing_smolvlm
    exported, spelled = hasattr(library, "VideoProcessorMixin"), smolvlm.num2words
    try:
        if not exported:
            library.VideoProcessorMixin = VideoProcessorMixin
        smolvlm.num2words = spelled or str
        yield
    finally:
        smolvlm.num2words = spelled
        if not exported:
            del library.VideoProcessorMixin
