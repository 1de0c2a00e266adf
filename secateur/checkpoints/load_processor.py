# SPDX-License-Identifier: Apache-2.0
"""Load the transformers processor of a checkpoint, for still images only.

transformers creates the processors of families that also support videos (LLaVA-OneVision, Qwen-VL, InternVL, SmolVLM)
only if torchvision is installed, and some only with a further library for videos. Images need neither, so a stand-in
replaces the video part.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import transformers
from transformers import AutoImageProcessor, AutoTokenizer, ProcessorMixin, processing_utils
from transformers.models.auto import processing_auto
from transformers.video_processing_utils import VideoProcessorMixin

from secateur.errors import BadModel, first_line


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
    with _images_only(cls):
        made: ProcessorMixin = cls(*_parts(cls, image_processor, tokenizer), **options)
    return made


def read(kind: str, path: str) -> ProcessorMixin:
    """Return the processor in a checkpoint directory.

    Images are processed by the PIL classes, whether torchvision is installed or not.

    Raises:
        BadModel: a library is missing.
        OSError, ValueError: raised by transformers if files are missing or damaged.
    """
    cls = _class(kind)
    try:
        settings, _ = cls.get_processor_dict(path)
        images = AutoImageProcessor.from_pretrained(path, backend="pil", trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        with _images_only(cls):
            made: ProcessorMixin = cls.from_args_and_dict(_parts(cls, images, tokenizer), settings)
    except ImportError as problem:
        raise BadModel(f"the processor of '{path}' needs a missing library: {first_line(problem)}") from None
    return made


def _class(kind: str) -> Any:
    names: Any = processing_auto
    return getattr(transformers, names.PROCESSOR_MAPPING_NAMES[kind])


def _parts(cls: Any, image_processor: Any, tokenizer: Any) -> list[Any]:
    """Return the arguments of a processor class, in its order."""
    parts = {"image_processor": image_processor, "tokenizer": tokenizer, "video_processor": NoVideo()}
    return [parts[name] for name in cls.get_attributes()]


@contextmanager
def _images_only(cls: Any) -> Iterator[None]:
    """Within the block, `cls` can be created without libraries that only videos need.

    transformers 5.23 looks up the base class of video processors by a name that it does not export without torchvision.
    The module of a processor sets missing libraries to None (SmolVLM's: num2words), and the class refuses them. Remove
    this when transformers checks for both at the first video.
    """
    library: Any = vars(processing_utils)["transformers_module"]
    module = vars(sys.modules[cls.__module__])
    missing = [name for name, found in module.items() if found is None and not name.startswith("__")]
    exported = hasattr(library, "VideoProcessorMixin")
    try:
        if not exported:
            library.VideoProcessorMixin = VideoProcessorMixin
        module.update(dict.fromkeys(missing, str))
        yield
    finally:
        module.update(dict.fromkeys(missing))
        if not exported:
            del library.VideoProcessorMixin
