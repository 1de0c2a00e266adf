# SPDX-License-Identifier: Apache-2.0
"""Commands that run on a device work without torch, transformers and onnx."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

BLOCKED = (
    *("torch", "transformers", "onnx", "onnxscript", "onnx_ir", "safetensors", "polygraphy"),
    *("tensorrt", "tensorrt_rtx", "cuda"),
)
CODE = f"""
import sys
sys.modules.update(dict.fromkeys({BLOCKED!r}))
from secateur.cli import main
sys.exit(main(sys.argv[1:]))
"""


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", CODE, *argv], capture_output=True, text=True)


@pytest.fixture
def bundle(bundle_path: Path, tmp_path: Path, rewrite: Callable[..., None]) -> Path:
    """The tiny bundle, with the target tensorrt in its manifest."""
    folder = tmp_path / "bundle"
    shutil.copytree(bundle_path, folder)
    rewrite(folder, "manifest.json", target="tensorrt")
    return folder


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("inspect",), "lint"),
        (("profile", "--rounds", "1", "--warmup", "0", "--schedules", "full,prune"), "chains"),
        (("build", "--dry-run"), "time"),
    ],
    ids=["inspect", "profile", "build"],
)
def test_commands(bundle: Path, argv: tuple[str, ...], expected: str) -> None:
    done = run(argv[0], str(bundle), *argv[1:], "--json")
    assert done.returncode == 0, done.stderr
    assert expected in json.loads(done.stdout)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("build",), "TensorRT cannot be loaded"),
        (("run", "--backend", "trt", "--image", "x.png", "--prompt", "what"), "TensorRT cannot be loaded"),
        (("build", "--engine", "rtx"), "TensorRT for RTX cannot be loaded"),
        (("run", "--backend", "rtx", "--image", "x.png", "--prompt", "what"), "TensorRT for RTX cannot be loaded"),
        (("run", "--device", "cuda", "--image", "x.png", "--prompt", "what"), "CUDAExecutionProvider"),
        (("check", "--against", "torch"), "pip install"),
    ],
    ids=["build", "trt", "build-rtx", "rtx", "cuda", "check"],
)
def test_a_missing_library_is_a_one_line_error(bundle: Path, argv: tuple[str, ...], message: str) -> None:
    done = run(argv[0], str(bundle), *argv[1:])
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
