# SPDX-License-Identifier: Apache-2.0
"""The adapter for lmms-eval, whose base class is replaced by a fake, as lmms-eval is not installed for the tests."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from secateur.demo.scenes import samples
from secateur.errors import InputError
from secateur.runtime import Pipeline

ASKED = list(samples("test", 5, 2))


class Base:
    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}
        self.stored: list[tuple[Any, str]] = []
        self.cache_hook = SimpleNamespace(add_partial=lambda kind, request, answer: self.stored.append((kind, answer)))


@dataclass(frozen=True)
class Manifest:
    model_id: str
    simple_class_path: str


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    api, registry = ModuleType("lmms_eval.api.model"), ModuleType("lmms_eval.models.registry_v2")
    monkeypatch.setattr(api, "lmms", Base, raising=False)
    monkeypatch.setattr(registry, "ModelManifest", Manifest, raising=False)
    for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.models"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for module in (api, registry):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, "secateur.evaluation.lmms", raising=False)
    yield importlib.import_module("secateur.evaluation.lmms")
    sys.modules.pop("secateur.evaluation.lmms", None)


def request(i: int, prompt: str, **options: Any) -> SimpleNamespace:
    def visuals(doc: dict[str, Any]) -> list[Any]:
        return list(doc["images"])

    return SimpleNamespace(args=(prompt, options, visuals, i, "scenes", "test"))


def test_the_manifest_names_the_class(adapter: ModuleType) -> None:
    made = adapter.manifest()
    module, _, name = made.simple_class_path.rpartition(".")
    assert made.model_id == "secateur" and getattr(importlib.import_module(module), name) is adapter.Secateur


def test_answers_as_the_pipeline_does(adapter: ModuleType, demo_bundle: tuple[Path, dict[str, Any]]) -> None:
    (name,) = demo_bundle[1]["schedules"]
    model = adapter.Secateur(str(demo_bundle[0]), batch_size="2", device="cpu")
    model.task_dict = {"scenes": {"test": [{"images": [s.image]} for s in ASKED]}}
    options = [{"max_new_tokens": 4}] * 3 + [{"max_new_tokens": 1, "until": ["e"], "temperature": None}] * 2
    requests = [request(i, f"<image>\n{s.question}", **o) for i, (s, o) in enumerate(zip(ASKED, options, strict=True))]
    found = model.generate_until(requests)
    with Pipeline.load(demo_bundle[0]) as vlm:
        alone = [vlm.ask(s.image, s.question, schedule=name, max_new_tokens=4).text for s in ASKED[:3]]
        short = [vlm.ask(s.image, s.question, schedule=name, max_new_tokens=1).text for s in ASKED[3:]]
    assert found == [*alone, *(text.partition("e")[0].strip() for text in short)]
    assert model.stored == [("generate_until", answer) for answer in found]
    for call in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(NotImplementedError):
            call(requests)


def test_wrong_use(adapter: ModuleType, demo_bundle: tuple[Path, dict[str, Any]]) -> None:
    with pytest.raises(InputError, match="--batch_size is auto; it must be a whole number"):
        adapter.Secateur("x", batch_size="auto")
    with pytest.raises(InputError, match="--model_args has no schedul; use bundle"):
        adapter.Secateur("x", schedul="btp")
    model = adapter.Secateur(str(demo_bundle[0]))
    model.task_dict = {"scenes": {"test": [{"images": [Image.new("RGB", (9, 9))] * 2}]}}
    with pytest.raises(InputError, match="question 0 of scenes has 2 visuals; it must have one image"):
        model.generate_until([request(0, "what ?")])
