# SPDX-License-Identifier: Apache-2.0
"""Steps of preprocess.json for a transformers image processor and a bucket.

What a processor does with an image depends only on the image's size, so for a canvas of one size it is a fixed list of
resizes and windows. Each `StepsFunction` below derives that list for one kind of processor; a family names the image
processors of its checkpoints and the function of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.image_utils import ChannelDimension
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas
from transformers.models.idefics3.image_processing_pil_idefics3 import get_resize_output_image_size

from secateur.bundle.preprocess import FITS, Preprocess, Size, Tile
from secateur.errors import BadModel
from secateur.vision.native_sizes import check_native, round_up, shown

CANVAS_FITS = tuple(how for how in FITS if how != "square")

StepsFunction = Callable[["ProcessorSettings", Size, str | None], Preprocess]
"""The steps of an image processor for a bucket and a fit."""


@dataclass(frozen=True)
class ProcessorSettings:
    """Settings of an image processor, overridden by those (`given`) that its processor passes with each call."""

    processor: Any
    given: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.given.get(name, getattr(self.processor, name, None))

    def size(self, name: str, *keys: str) -> tuple[int, ...]:
        """Values of the size setting `name`; 0 for a key that it lacks."""
        size = self[name] or {}
        return tuple(int(size.get(key) or 0) for key in keys)

    @property
    def name(self) -> str:
        """The class name without its backend, which does not change the meaning of the settings."""
        return type(self.processor).__name__.removesuffix("Pil").removesuffix("Fast")

    def steps(self, **fields: Any) -> Preprocess:
        """Return `fields` and the steps that all processors share."""
        resample = self["resample"]
        normalize, mean, std = self["do_normalize"], self["image_mean"], self["image_std"]
        common: dict[str, Any] = {
            "resize": None,
            "resample": "bilinear" if resample is None else Image.Resampling(resample).name.lower(),
            "crop": None,
            "rescale": self["rescale_factor"] if self["do_rescale"] else None,
            "mean": _triple(mean) if normalize else None,
            "std": _triple(std) if normalize else None,
        }
        try:
            return Preprocess(**(common | fields))
        except ValueError as problem:
            raise BadModel(f"the settings of the image processor are not valid: {problem}") from None

    def fitted(self, bucket: Size, fit: str | None) -> dict[str, Any]:
        """Return the fields that fit an image to the canvas `bucket`, padded with the mean color."""
        if fit == "square":
            raise BadModel(f"fit 'square' gives no fixed size to {self.name}; use one of {', '.join(CANVAS_FITS)}")
        return {"fit": fit or "letterbox", "canvas": bucket, "fill": self.mean_color}

    @property
    def mean_color(self) -> tuple[int, int, int]:
        """The color that normalization maps to about zero; rounded down, as in transformers."""
        mean = self["image_mean"]
        red, green, blue = (0.0, 0.0, 0.0) if mean is None else _triple(mean)
        return int(red * 255), int(green * 255), int(blue * 255)


def preprocess(
    processor: Any, supported: Mapping[str, StepsFunction], bucket: Size, fit: str | None = None
) -> Preprocess:
    """Return the steps for images that are fitted to a canvas of `bucket`, (height, width).

    Args:
        processor: a transformers processor, or its image processor if the processor adds no settings to the call.
        supported: class names of image processors, without the backend's suffix, and the function of each.
        fit: one of bundle.preprocess.FITS; None: what the image processor does with any image if that gives one size,
            else "letterbox".

    Raises:
        BadModel: the processor, one of its settings or this bucket is not supported; the message says what is.
    """
    inner = getattr(processor, "image_processor", processor)
    settings = ProcessorSettings(inner, {} if inner is processor else getattr(processor, "images_kwargs", None) or {})
    if settings.name not in supported:
        raise BadModel(f"image processor {settings.name} is not supported; supported: {', '.join(sorted(supported))}")
    if fit is not None and fit not in FITS:
        raise BadModel(f"fit '{fit}' is not known; use one of {', '.join(FITS)}")
    if min(bucket) < 1:
        raise BadModel(f"the image size {shown(bucket)} must be at least 1x1")
    return supported[settings.name](settings, bucket, fit)


def _triple(value: Any) -> tuple[float, ...]:
    return (float(value),) * 3 if isinstance(value, int | float) else tuple(float(v) for v in value)


def one_view(settings: ProcessorSettings, bucket: Size, fit: str | None, pads: bool = False) -> Preprocess:
    """Return the steps for one view, resized and cropped; `pads`: the processor may pad it to a square first."""
    resize: tuple[int, ...] | None = None
    if settings["do_resize"]:
        height, width, short, long = settings.size("size", "height", "width", "shortest_edge", "longest_edge")
        if bool(short) == bool(height and width) or long:
            size = dict(settings["size"] or {})
            raise BadModel(f"the image processor resizes to {size}; supported: shortest_edge, or height and width")
        resize = (short,) if short else (height, width)
    crop = settings.size("crop_size", "height", "width") if settings["do_center_crop"] else None
    fields: dict[str, Any] = {"resize": resize, "crop": crop}
    if settings["do_pad"]:
        if not pads:
            raise BadModel("the image processor pads (do_pad), which is not supported; set do_pad to false")
        if fit not in (None, "square") and bucket[0] != bucket[1]:
            raise BadModel(f"the image processor pads to a square, and {shown(bucket)} is none; set do_pad to false")
        fit = fit or "square"
    if fit == "square":
        fields |= {"fit": fit, "fill": settings.mean_color}
    elif fit is not None:
        fields |= settings.fitted(bucket, fit)
    steps = settings.steps(**fields)
    if steps.size is None:
        raise BadModel(
            "the image processor keeps the shape of an image, so that every image has another size; set do_center_crop "
            "and crop_size, or choose the fit letterbox, stretch or crop"
        )
    if steps.size != bucket:
        raise BadModel(f"the image processor makes images of {shown(steps.size)}, not of {shown(bucket)}")
    return steps


def canvas_tiles(settings: ProcessorSettings, bucket: Size, fit: str | None) -> Preprocess:
    """Return the steps for a small view of the whole image, then the tiles of the best canvas, row by row."""
    edge = _edge(settings)
    best = select_best_resolution(bucket, [list(p) for p in settings["image_grid_pinpoints"] or ()])
    if best is None or best[0] % edge or best[1] % edge:
        raise BadModel(
            f"an image of {shown(bucket)} is shown on a canvas of {shown(best) if best else 'no size'}, which is not "
            f"made of tiles of {edge}x{edge}; correct image_grid_pinpoints of the image processor"
        )
    height, width = get_patch_output_size(_blank(bucket), best, ChannelDimension.FIRST)
    top, left = (best[0] - height) // 2, (best[1] - width) // 2
    tiles = [Tile(((edge, edge),))]
    for row, column in _corners(best, (edge, edge)):
        tiles.append(Tile(((height, width),), (row - top, column - left, edge, edge)))
    return settings.steps(**settings.fitted(bucket, fit), tiles=tuple(tiles))


def square_view(settings: ProcessorSettings, bucket: Size, fit: str | None) -> Preprocess:
    """Return the steps for one of several images in a prompt: padded to a square and resized, for any bucket."""
    if fit not in (None, "square"):
        raise BadModel(f"several images in a prompt are padded to squares by this model, not fitted by '{fit}'")
    edge = _edge(settings)
    return settings.steps(fit="square", fill=settings.mean_color, resize=(edge, edge), tiles=(Tile(),))


def _edge(settings: ProcessorSettings) -> int:
    """Return the edge of a square tile in pixels."""
    height, width, short = settings.size("size", "height", "width", "shortest_edge")
    cropped = settings.size("crop_size", "height", "width")
    edge = height or short
    if (height != width and not short) or not edge or (any(cropped) and cropped != (edge, edge)):
        raise BadModel(
            f"the image processor has tiles of size {dict(settings['size'] or {})} and crop_size "
            f"{dict(settings['crop_size'] or {})}; supported are squares, both of one size"
        )
    return edge


def grid_tiles(settings: ProcessorSettings, bucket: Size, fit: str | None) -> Preprocess:
    """Return the steps for the tiles of the grid nearest in shape, row by row, then a small view of the whole image."""
    height, width = settings.size("size", "height", "width")
    if not height or not width:
        raise BadModel(f"the image processor resizes to {dict(settings['size'] or {})}; supported: height and width")
    tiles = [Tile(((height, width),))]
    if settings["crop_to_patches"] and settings["max_patches"] > 1:
        lowest, highest = settings["min_patches"], settings["max_patches"]
        columns, rows = get_optimal_tiled_canvas(bucket, (height, width), lowest, highest)
        if rows * columns > 1:
            canvas = (rows * height, columns * width)
            tiles = [Tile((canvas,), (*corner, height, width)) for corner in _corners(canvas, (height, width))] + tiles
    elif not settings["do_resize"] and bucket != (height, width):
        raise BadModel(f"the image processor resizes nothing (do_resize); use the image size {shown((height, width))}")
    return settings.steps(**settings.fitted(bucket, fit), tiles=tuple(tiles))


def split_tiles(settings: ProcessorSettings, bucket: Size, fit: str | None) -> Preprocess:
    """Return the steps for an image that is split into tiles, row by row, then a small view of the whole image.

    The image is resized to a longest edge, then to whole tiles.
    """
    (edge,) = settings.size("max_image_size", "longest_edge")
    longest, height, width = settings.size("size", "longest_edge", "height", "width")
    if not edge or (settings["do_resize"] and not longest and not (height and width)):
        raise BadModel(
            f"the image processor has size {dict(settings['size'] or {})} and max_image_size "
            f"{dict(settings['max_image_size'] or {})}; both need longest_edge"
        )
    resizes: tuple[Size, ...] = ()
    if settings["do_resize"]:
        resizes = (get_resize_output_image_size(_blank(bucket), longest) if longest else (height, width),)
    if not settings["do_image_splitting"]:
        tiles = [Tile((*resizes, (edge, edge)))]
    else:
        height, width = resizes[-1] if resizes else bucket
        canvas = _whole_tiles(height, width, edge)
        resizes = (*resizes, canvas)
        tiles = [Tile(resizes, (*corner, edge, edge)) for corner in _corners(canvas, (edge, edge))]
        tiles = [*tiles, Tile((*resizes, (edge, edge)))] if len(tiles) > 1 else [Tile(resizes)]
    return settings.steps(**settings.fitted(bucket, fit), tiles=tuple(tiles))


def _whole_tiles(height: int, width: int, edge: int) -> Size:
    """Round the longer side up to whole tiles, then the other side, scaled by the same factor."""
    ratio = width / height
    if width >= height:
        width = round_up(width, edge)
        return round_up(int(width / ratio), edge), width
    height = round_up(height, edge)
    return height, round_up(int(height * ratio), edge)


def native_view(settings: ProcessorSettings, bucket: Size, fit: str | None) -> Preprocess:
    """Return the steps for one view of the bucket's own size, which the processor must not resize."""
    least, most = settings.size("size", "shortest_edge", "longest_edge")
    if settings["do_resize"] and not (least and most):
        raise BadModel("the image processor's size needs shortest_edge and longest_edge, the bounds of the pixel count")
    unit = settings["patch_size"] * settings["merge_size"]
    check_native(bucket, unit, (least, most) if settings["do_resize"] else None)
    return settings.steps(**settings.fitted(bucket, fit))


def _corners(canvas: Size, tile: Size) -> list[Size]:
    """Return the upper left corners of the tiles, row by row."""
    return [(row, column) for row in range(0, canvas[0], tile[0]) for column in range(0, canvas[1], tile[1])]


def _blank(size: Size) -> Any:
    """Return [3, H, W] that takes no memory, for functions that read only the shape."""
    return np.broadcast_to(np.uint8(0), (3, *size))
