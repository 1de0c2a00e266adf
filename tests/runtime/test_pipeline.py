# SPDX-License-Identifier: Apache-2.0
"""The public interface: schedules, streams, stop tokens, cache room, wrong use."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from secateur import runtime
from secateur.engines.shapes import limits
from secateur.errors import BackendMissing, BadImage, BadPrompt, InputError, SecateurError, UnknownName
from secateur.runtime import Answer, Bundle, Pipeline
from secateur.runtime.backends import ort

Picture = Callable[[int], NDArray[np.uint8]]
QUESTION = "what color is the seven ?"


def test_stream_equals_ask(vlm: Pipeline, picture: Picture) -> None:
    for options in ({}, {"temperature": 2.0, "seed": 3}):
        answer = vlm.ask(picture(0), QUESTION, "prune", max_new_tokens=25, **options)  # type: ignore[call-overload]
        pieces = list(vlm.stream(picture(0), QUESTION, "prune", max_new_tokens=25, **options))  # type: ignore[arg-type]
        assert "".join(pieces) == answer.text != "" and len(pieces) > 1
        chat = vlm.open(picture(0), "prune")
        assert list(chat.stream(QUESTION, max_new_tokens=25, **options)) == pieces  # type: ignore[arg-type]


def test_two_streams_do_not_disturb_each_other(vlm: Pipeline, picture: Picture) -> None:
    want = [vlm.ask(picture(i), QUESTION, schedule="prune").text for i in range(2)]
    streams = [vlm.stream(picture(i), QUESTION, schedule="prune") for i in range(2)]
    got = ["", ""]
    while any(pieces := [next(stream, "") for stream in streams]):
        got = [text + piece for text, piece in zip(got, pieces, strict=True)]
    assert got == want


def test_stop_tokens_end_an_answer(
    vlm: Pipeline, bundle_path: Path, tmp_path: Path, picture: Picture, rewrite: Callable[..., None]
) -> None:
    varied: dict[str, Any] = {"temperature": 3.0, "seed": 1}
    long = vlm.ask(picture(0), QUESTION, "full", max_new_tokens=12, **varied)
    stop = next(t for t in long.tokens[2:] if t not in long.tokens[:2])
    n = long.tokens.index(stop)
    root = Path(shutil.copytree(bundle_path, tmp_path / "copy"))
    rewrite(root, "prompt.json", stop=[2, stop])
    with Pipeline.load(root, threads=1) as pipeline:
        answer = pipeline.ask(picture(0), QUESTION, "full", max_new_tokens=12, **varied)
        assert answer.tokens == long.tokens[: n + 1] and answer.receipt.generated_tokens == n + 1
        assert answer.text == vlm.ask(picture(0), QUESTION, "full", max_new_tokens=n, **varied).text
        assert "".join(pipeline.stream(picture(0), QUESTION, "full", max_new_tokens=12, **varied)) == answer.text


def test_seeds(vlm: Pipeline, picture: Picture) -> None:
    def draw(seed: int) -> Answer:
        return vlm.ask(picture(0), QUESTION, "full", max_new_tokens=20, temperature=3.0, seed=seed)

    assert draw(1).tokens == draw(1).tokens
    assert len({draw(seed).tokens for seed in range(4)}) > 1


def test_choice_of_the_schedule(vlm: Pipeline, bundle_path: Path, tmp_path: Path, picture: Picture) -> None:
    with pytest.raises(UnknownName, match="unknown schedule 'prunes'. Did you mean 'prune'"):
        vlm.ask(picture(0), QUESTION, schedule="prunes")
    with pytest.raises(InputError, match="name one of all, early, full, none, prune"):
        vlm.ask(picture(0), QUESTION)
    for keep, want in ((("full", "prune"), "prune"), (("full",), "full")):
        root = Path(shutil.copytree(bundle_path, tmp_path / want))
        data = json.loads((root / "manifest.json").read_text())
        data["schedules"] = {name: data["schedules"][name] for name in keep}
        (root / "manifest.json").write_text(json.dumps(data))
        with Pipeline.load(root, threads=1) as pipeline:
            assert pipeline.schedules == keep
            assert pipeline.ask(picture(0), QUESTION).receipt.schedule == want
            assert pipeline.open(picture(0)).schedule == want


def test_files_and_images(vlm: Pipeline, picture: Picture, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(picture(5)).save(path)
    answers = vlm.ask([path, str(path), Image.open(path), picture(5)], QUESTION, schedule="prune")
    assert len({a.tokens for a in answers}) == 1
    with pytest.raises(BadImage, match="none.png does not exist"):
        vlm.ask(tmp_path / "none.png", QUESTION, schedule="prune")
    with pytest.raises(BadImage):
        vlm.open(tmp_path, schedule="prune")


def test_lists_of_different_lengths(vlm: Pipeline, picture: Picture) -> None:
    image = picture(0)
    for images, prompts in (([image] * 2, ["a"] * 3), ([], ["a"]), ([image], []), ([], [])):
        with pytest.raises(InputError, match="do not pair; give the same number"):
            vlm.ask(images, prompts, schedule="full")
    assert len(vlm.ask([image], ["red"], schedule="full")) == 1


def test_no_room(vlm: Pipeline, picture: Picture) -> None:
    with pytest.raises(BadPrompt, match="need 1[0-9]{2} positions, the model has 128"):
        vlm.ask(picture(0), "red " * 60, schedule="full")
    room = 128 - vlm.ask(picture(0), QUESTION, "full", max_new_tokens=1).receipt.prompt_rows
    vlm.ask(picture(0), QUESTION, schedule="full", max_new_tokens=room)
    with pytest.raises(BadPrompt, match=f"and {room + 1} new tokens need 129"):
        vlm.ask(picture(0), QUESTION, schedule="full", max_new_tokens=room + 1)
    with pytest.raises(BadPrompt, match="empty"):
        vlm.ask(picture(0), " ", schedule="full")
    with pytest.raises(InputError, match="max_new_tokens must be"):
        vlm.ask(picture(0), QUESTION, schedule="full", max_new_tokens=0)


@pytest.mark.parametrize("schedule", ["full", "prune"])
def test_a_chat_continues_after_a_question_that_does_not_fit(vlm: Pipeline, picture: Picture, schedule: str) -> None:
    chat, other = (vlm.open(picture(0), schedule=schedule, capacity=c) for c in (60, 128))
    assert chat.room == 60 - 11
    with pytest.raises(BadPrompt, match=r"64 for the answer\), 60 are free.*larger capacity"):
        chat.ask(QUESTION)
    assert chat.room == 49
    for each in (chat, other):
        each.ask(QUESTION, max_new_tokens=10)
    room = chat.room
    assert 49 - 8 - 10 <= room < 49
    with pytest.raises(BadPrompt, match=f"of the prompt, 10 for the answer\\), {room} are free"):
        chat.ask("red " * 30, max_new_tokens=10)
    assert chat.room == room
    assert chat.ask("red ?", max_new_tokens=9).tokens == other.ask("red ?", max_new_tokens=9).tokens
    chat.close()
    assert chat.room == 0


def test_a_chat_uses_its_whole_capacity(vlm: Pipeline, picture: Picture) -> None:
    """An answer that fills the last row fits; one more row is an error."""
    answer = vlm.ask(picture(0), QUESTION, schedule="prune", max_new_tokens=5)
    rows = answer.receipt.prompt_rows
    assert vlm.open(picture(0), "prune", rows + 5).ask(QUESTION, max_new_tokens=5).tokens == answer.tokens
    with pytest.raises(BadPrompt, match="no room"):
        vlm.open(picture(0), "prune", rows + 4).ask(QUESTION, max_new_tokens=5)


def test_the_model_context_ends_a_chat(vlm: Pipeline, picture: Picture) -> None:
    chat = vlm.open(picture(0), schedule="prune")
    chat.ask(QUESTION, max_new_tokens=40)
    with pytest.raises(BadPrompt, match="positions, the model has 128"):
        chat.ask("red ?", max_new_tokens=100)


@pytest.mark.parametrize("first", [0, 1])
def test_rows_fill_the_context_for_any_first_position(first: int, bundle_path: Path, picture: Picture) -> None:
    """A prompt and an answer that fill the context fit, and one more row does not, as in engines.limits."""
    bundle = Bundle.load(bundle_path)
    layout = bundle.manifest.layout
    positions = (tuple(range(first, first + layout.rows)),)
    layout = replace(layout, positions=positions, next_position=first + layout.rows)
    bundle = replace(bundle, manifest=replace(bundle.manifest, layout=layout))
    with Pipeline(bundle, ort.Backend(bundle, threads=1)) as vlm:
        answer = vlm.ask(picture(0), QUESTION, schedule="full", max_new_tokens=1)
        rows = answer.receipt.prompt_rows
        text, new = rows - layout.rows, bundle.manifest.dimensions.context - rows
        assert limits(bundle.manifest, 1, text, new).capacity(layout) == rows + new
        vlm.ask(picture(0), QUESTION, schedule="full", max_new_tokens=new)
        vlm.check(QUESTION, new)
        with pytest.raises(BadPrompt, match="need 129 positions, the model has 128"):
            vlm.check(QUESTION, new + 1)
        with pytest.raises(BadPrompt, match="need 129 positions, the model has 128"):
            vlm.ask(picture(0), QUESTION, schedule="full", max_new_tokens=new + 1)
    with pytest.raises(InputError, match="are 129 rows; the model's context has 128"):
        limits(bundle.manifest, 1, text, new + 1)


@pytest.mark.parametrize("capacity", [0, 11, 129, 20.5, "many"])
def test_capacity_out_of_bounds(vlm: Pipeline, picture: Picture, capacity: Any) -> None:
    with pytest.raises(InputError, match="above 11 .* at most 128"):
        vlm.open(picture(0), schedule="full", capacity=capacity)


def test_wrong_use_of_load(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownName, match="unknown backend 'orr'. Did you mean 'ort'"):
        Pipeline.load(bundle_path, backend="orr")
    with pytest.raises(InputError, match="threads must be"):
        Pipeline.load(bundle_path, threads=0)
    for backend, package in (("ort", "onnxruntime"), ("openvino", "openvino")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(BackendMissing, match=f"'{backend}' needs .*; pip install {package}$"):
            Pipeline.load(bundle_path, backend=backend)


def test_a_closed_pipeline(bundle_path: Path, picture: Picture) -> None:
    with Pipeline.load(bundle_path, threads=1) as pipeline:
        chat = pipeline.open(picture(0), schedule="prune")
    pipeline.close()
    with pytest.raises(SecateurError, match="closed"):
        chat.ask(QUESTION)
    with pytest.raises(SecateurError, match="closed"):
        pipeline.ask(picture(0), QUESTION, "full")


def test_exported_names() -> None:
    assert sorted(runtime.__all__) == runtime.__all__
    public = {n for n, v in vars(runtime).items() if isinstance(v, type)}
    assert public == set(runtime.__all__)


def test_runs_without_the_export_libraries(bundle_path: Path, tmp_path: Path, picture: Picture) -> None:
    """Only numpy, Pillow, tokenizers and onnxruntime may be imported on a device."""
    Image.fromarray(picture(0)).save(tmp_path / "a.png")
    blocked = (
        "torch",
        "transformers",
        "onnx",
        "onnxscript",
        "rich",
        "safetensors",
        "secateur.export",
        "secateur.families",
    )
    program = f"""
import sys
for name in {blocked!r}:
    sys.modules[name] = None
before = list(sys.path)
import secateur.runtime
assert "onnxruntime" not in sys.modules, "only the backend may import its library"
assert sys.path == before
with secateur.runtime.Pipeline.load({str(bundle_path)!r}, threads=1) as vlm:
    print(vlm.ask({str(tmp_path / "a.png")!r}, {QUESTION!r}, schedule="prune").text, end="")
"""
    root = Path(importlib.import_module("secateur").__file__ or "").parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    with Pipeline.load(bundle_path, threads=1) as vlm:
        assert done.stdout == vlm.ask(picture(0), QUESTION, schedule="prune").text


def test_only_the_given_schedules_are_open(bundle_path: Path, picture: Picture) -> None:
    with Pipeline.load(bundle_path, schedules=["early"]) as vlm:
        assert vlm.schedules == ("full", "early")
        opened = vlm._backend._sessions  # type: ignore[attr-defined]
        assert {name for name in opened if "." in name} == {"early.0"}
        assert vlm.ask(picture(1), QUESTION).receipt.schedule == "early"
        assert vlm.ask(picture(1), QUESTION, schedule="full").receipt.schedule == "full"
        with pytest.raises(InputError, match="'prune' was not opened"):
            vlm.ask(picture(1), QUESTION, schedule="prune")
    with pytest.raises(UnknownName, match="Did you mean 'early'"):
        Pipeline.load(bundle_path, schedules=["earl"])


def test_a_backend_with_a_maximum_batch(bundle_path: Path, picture: Picture) -> None:
    with Pipeline.load(bundle_path) as vlm:
        assert vlm.most_batch is None
        vlm._backend.most_batch = 2
        assert len(vlm.ask([picture(0), picture(1)], QUESTION, schedule="full", max_new_tokens=1)) == 2
        with pytest.raises(InputError, match="a batch of 3, the engines take at most 2.*--max-batch"):
            vlm.ask([picture(0)] * 3, QUESTION, schedule="full")
