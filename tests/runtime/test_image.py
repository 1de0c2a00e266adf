# SPDX-License-Identifier: Apache-2.0
"""Every image is loaded as upright RGB, or refused with a one-line message."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from secateur.errors import BadImage
from secateur.runtime.image import check_header, load_image

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8)


def encoded(form: str = "PNG", image: Image.Image | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    (image or Image.fromarray(PIXELS)).save(file, form, **options)
    return file.getvalue()


def bomb(width: int, height: int) -> bytes:
    """Return a PNG with a header of the given size and no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def test_path_image_and_array_agree(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded())
    for source in (path, str(path), Image.open(path), PIXELS, PIXELS[:, ::-1][:, ::-1]):
        image = load_image(source)
        assert image.mode == "RGB" and np.array_equal(np.asarray(image), PIXELS)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "a.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.write_bytes(encoded(exif=exif))
    turns = [
        PIXELS,
        PIXELS[:, ::-1],
        PIXELS[::-1, ::-1],
        PIXELS[::-1],
        PIXELS.transpose(1, 0, 2),
        PIXELS.transpose(1, 0, 2)[:, ::-1],
        PIXELS[::-1, ::-1].transpose(1, 0, 2),
        PIXELS.transpose(1, 0, 2)[::-1],
    ]
    assert np.array_equal(np.asarray(load_image(path)), turns[orientation - 1])


def test_transparency_is_blended_with_white() -> None:
    clear = np.dstack([PIXELS, np.zeros(PIXELS.shape[:2], np.uint8)])
    assert np.asarray(load_image(clear)).min() == 255
    palette = Image.fromarray(PIXELS).convert("P")
    palette.info["transparency"] = bytes(256)
    assert np.asarray(load_image(palette)).min() == 255


def test_gray_arrays() -> None:
    assert np.array_equal(np.asarray(load_image(PIXELS[..., 0])), PIXELS[..., :1].repeat(3, axis=2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"a text, not an image\n" * 9, "not an image that is read; give a JPEG, PNG, WEBP"),
        (encoded()[:60], "damaged"),
        (encoded()[:-100], "damaged"),
        (encoded("JPEG")[:200], "(damaged|not an image)"),
        (bomb(60_000, 60_000), "too large"),
        (bomb(10_000, 12_000), "too large"),
        (bomb(50, 50), "damaged"),
    ],
    ids=["empty", "text", "start of a PNG", "truncated PNG", "truncated JPEG", "bomb", "large", "no pixels"],
)
def test_files_that_are_not_an_image(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(BadImage, match=message) as caught:
        load_image(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["EPS", "PDF", "ICO", "TGA", "PCX", "SGI", "JPEG2000", "DDS"])
def test_other_formats_are_refused(tmp_path: Path, form: str) -> None:
    """Above all EPS, which Pillow would give to Ghostscript."""
    (tmp_path / "a.png").write_bytes(encoded(form))
    for read in (load_image, check_header):
        with pytest.raises(
            BadImage, match="is not an image that is read; give a JPEG, PNG, WEBP, BMP, GIF, TIFF or PPM"
        ):
            read(tmp_path / "a.png")


def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(BadImage, match="is not a file"):
        load_image(tmp_path / "a.png")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16"])
def test_strips_equal_the_whole(mode: str) -> None:
    """Large images are converted strip by strip, with the same result as at once."""
    rng, shape = np.random.default_rng(2), (1100, 1901)
    if mode == "I;16":
        levels = rng.integers(0, 1 << 16, shape, dtype=np.uint16)
        image, wanted = Image.fromarray(levels), np.repeat((levels // 257).astype(np.uint8)[..., None], 3, axis=2)
    else:
        image = Image.fromarray(rng.integers(0, 256, (*shape, 4), dtype=np.uint8)).convert(mode)
        if mode == "P":
            image.info["transparency"] = rng.integers(0, 256, 256, dtype=np.uint8).tobytes()
        clear = image.convert("RGBA")
        whole = Image.alpha_composite(Image.new("RGBA", clear.size, (255,) * 4), clear)
        wanted = np.asarray(whole.convert("RGB"))
    assert np.array_equal(np.asarray(load_image(image)), wanted)


def test_memory_of_a_palette_image(tmp_path: Path) -> None:
    """A small file of many pixels takes its own memory and that of the RGB image, 1 and 4 bytes a pixel."""
    path, side = tmp_path / "a.png", 4000
    Image.new("P", (side, side)).save(path, transparency=b"\x80" * 256)
    code = f"""
import resource
from secateur.runtime.image import load_image
load_image({str(tmp_path / "small.png")!r})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
load_image({str(path)!r})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    (tmp_path / "small.png").write_bytes(encoded())
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 8 * side * side


def test_flipped_bytes_raise_only_bad_image(tmp_path: Path) -> None:
    path, rng = tmp_path / "a", np.random.default_rng(1)
    for form in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        whole = encoded(form)
        for _ in range(25):
            data = np.frombuffer(whole, np.uint8).copy()
            data[rng.integers(0, len(data), 3)] = rng.integers(0, 256, 3)
            path.write_bytes(data.tobytes()[: rng.integers(1, len(data) + 1)])
            try:
                assert load_image(path).mode == "RGB"
            except BadImage as problem:
                assert "\n" not in str(problem)


def test_check_header_reads_no_pixels(tmp_path: Path) -> None:
    path, whole = tmp_path / "a", encoded("PNG")
    path.write_bytes(whole[:50])
    check_header(path)
    with pytest.raises(BadImage, match="cannot be decoded"):
        load_image(path)
    path.write_bytes(whole[:20])
    with pytest.raises(BadImage, match="cannot be decoded, it may be damaged"):
        check_header(path)
    with pytest.raises(BadImage, match="does not exist"):
        check_header(tmp_path / "none.png")


def test_sources_that_are_not_an_image(tmp_path: Path) -> None:
    for source, message in (
        (tmp_path / "none.png", "does not exist"),
        (tmp_path, "is not a file"),
        (None, "not a NoneType"),
        (b"png", "not a bytes"),
        (np.zeros((4, 4, 3)), r"uint8 \[H,W,3\], not float64"),
        (np.zeros((4, 4, 2), np.uint8), "not uint8"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (Image.new("RGB", (0, 5)), "no pixels"),
    ):
        with pytest.raises(BadImage, match=message):
            load_image(source)  # type: ignore[arg-type]


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    """16-bit images of depth and infrared cameras; Pillow alone would make nearly all of it white."""
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    found = np.asarray(load_image(Image.fromarray(ramp)))
    assert (found == np.arange(256).reshape(16, 16, 1)).all()


@pytest.mark.parametrize(("form", "mode"), [("PNG", "I;16"), ("TIFF", "I;16"), ("TIFF", "I;16B")])
def test_sixteen_bits_in_a_file(tmp_path: Path, form: str, mode: str) -> None:
    levels = np.arange(256, dtype="<u2").reshape(16, 16)
    data = (levels * 257).astype("<u2" if mode == "I;16" else ">u2").tobytes()
    (tmp_path / "a").write_bytes(encoded(form, Image.frombytes(mode, (16, 16), data)))
    assert (np.asarray(load_image(tmp_path / "a")) == levels[..., None]).all()


def test_cmyk_images(tmp_path: Path) -> None:
    """CMYK is converted by Pillow, as in transformers."""
    inks = Image.fromarray(PIXELS).convert("CMYK")
    (tmp_path / "a").write_bytes(encoded("TIFF", inks))
    assert np.array_equal(np.asarray(load_image(tmp_path / "a")), np.asarray(inks.convert("RGB")))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_without_a_range_are_refused(mode: str) -> None:
    with pytest.raises(BadImage, match="no known value range; convert it to 8 or 16 bits"):
        load_image(Image.new(mode, (4, 4)))
