# SPDX-License-Identifier: Apache-2.0
"""Engines of the hand-made bundle, built and run on the simulated device of tests/simulation."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from secateur.bundle.strict_json import to_json
from secateur.engines.device import this_device, this_platform
from secateur.engines.library import LIBRARIES
from secateur.engines.manifest import (
    ENGINES,
    ENGINES_FILE,
    TIMING_CACHE,
    BuilderSettings,
    EnginePlan,
    Engines,
    Limits,
    plan_key,
)
from secateur.engines.shapes import profiles
from secateur.engines.worker import Job, build
from secateur.runtime import Bundle

LIMITS = Limits(batch=2, text=48, new_tokens=32)


def build_all(root: Path, limits: Limits = LIMITS, past: int = 0, engine: str = "trt") -> Path:
    """Build all plans of a bundle in this process, and return their folder."""
    library = LIBRARIES[engine]()
    bundle, platform = Bundle.load(root), this_platform(library, this_device())
    folder = root / ENGINES / platform.folder
    folder.mkdir(parents=True)
    made = profiles(bundle.manifest, limits, "full", past)
    flags = library.flags(BuilderSettings())
    plans = []
    for graph in bundle.manifest.graphs:
        plan, admits = folder / f"{graph.name}.plan", made[graph.name]
        onnx, cache = str(bundle.path(graph.file)), str(folder / TIMING_CACHE)
        job = Job(engine, platform.compute_capabilities, onnx, str(plan), cache, admits, BuilderSettings())
        memory = build(job).memory
        digest = hashlib.sha256(plan.read_bytes()).hexdigest()
        plans.append(
            EnginePlan(
                graph.name,
                plan.name,
                digest,
                plan_key(bundle.manifest, root, graph, admits, flags),
                admits,
                memory,
                1.0,
            )
        )
    engines = Engines(platform, limits, flags, tuple(plans))
    (folder / ENGINES_FILE).write_text(to_json(engines))
    return folder


def retarget(root: Path) -> None:
    """Change the target of a bundle to tensorrt."""
    manifest = json.loads((root / "manifest.json").read_text())
    (root / "manifest.json").write_text(json.dumps(manifest | {"target": "tensorrt"}))


@pytest.fixture(scope="session")
def _built() -> dict[str, Path]:
    return {}


@pytest.fixture
def engines_path(
    simulated: Any, _built: dict[str, Path], bundle_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The hand-made bundle with engines; read-only, built once. The simulation must be active."""
    if "root" not in _built:
        root = tmp_path_factory.mktemp("engines") / "tiny"
        shutil.copytree(bundle_path, root)
        retarget(root)
        build_all(root)
        _built["root"] = root
    return _built["root"]


@pytest.fixture
def engines_copy(engines_path: Path, tmp_path: Path) -> Path:
    """A copy of `engines_path` that a test may change."""
    root = tmp_path / "copy"
    shutil.copytree(engines_path, root)
    return root


@pytest.fixture
def rebuild(bundle_path: Path, tmp_path: Path) -> Callable[..., Path]:
    """rebuild(limits, past): the hand-made bundle with engines of other limits."""

    def made(limits: Limits = LIMITS, past: int = 0) -> Path:
        root = tmp_path / "rebuilt"
        shutil.copytree(bundle_path, root)
        retarget(root)
        build_all(root, limits, past)
        return root

    return made


@pytest.fixture
def rtx_engines_path(
    simulated: Any, _built: dict[str, Path], bundle_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """As `engines_path`, for TensorRT for RTX; the device must be one that it supports."""
    if "rtx" not in _built:
        root = tmp_path_factory.mktemp("rtx-engines") / "tiny"
        shutil.copytree(bundle_path, root)
        retarget(root)
        build_all(root, engine="rtx")
        _built["rtx"] = root
    return _built["rtx"]


@pytest.fixture
def build_engines() -> Callable[..., Path]:
    """build_engines(root, limits, past, engine): build the engines of a bundle for TensorRT."""
    return build_all
