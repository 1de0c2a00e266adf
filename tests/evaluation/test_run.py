# SPDX-License-Identifier: Apache-2.0
"""Evaluation with a pipeline that returns canned answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from secateur.bundle.layout import Layout, ModelIdentity, View
from secateur.bundle.manifest import GraphSpec, TensorSpec
from secateur.bundle.preprocess import Preprocess
from secateur.bundle.schedule import Budget, Gate, Schedule
from secateur.errors import BadImage, BadPrompt, InputError, UnknownName
from secateur.evaluation import batching
from secateur.evaluation.results import Evaluation, GateLine, SplitPart
from secateur.evaluation.run import WITH_GATES, EvaluationSettings, evaluate, flops_ratio_with_gates, select_schedules
from secateur.evaluation.tasks import base
from secateur.evaluation.tasks.base import Question, Source
from secateur.runtime import Answer, Pipeline
from secateur.runtime.image import load_image
from secateur.runtime.receipt import GateReceipt, Receipt

IDENTITY = ModelIdentity("f", 4, 9, "x")
METHODS = {"full": ("full", 0.0), "ours": ("btp", 0.6), "small": ("downsample", 0.55)}


OUTPUTS = ("features", "deepstack.0", "received.-2", "class_token.-2")
VISION = GraphSpec("vision", "vision", "vision.onnx", (), tuple(TensorSpec(n, "float32", ("B", 9)) for n in OUTPUTS))


class Canned:
    """Pipeline in which schedule s answers prompt p with answers[s][p], else "no"."""

    def __init__(self, answers: dict[str, set[str]]) -> None:
        self.answers, self.calls = answers, list[tuple[str, int, int]]()
        self.schedules = tuple(answers)
        layout = Layout((1,), (View(1, 9, (3, 3)),))
        self.bundle = SimpleNamespace(
            root=Path("/x/canned"),
            manifest=SimpleNamespace(
                layout=layout,
                source="demo",
                target="cpu",
                dtype="fp32",
                segments=(1, 2, 3),
                vision=VISION,
                dimensions=SimpleNamespace(planes=1),
            ),
            preprocess=Preprocess((4, 4), "bilinear", None, 1 / 255, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)),
            schedule=self.schedule,
        )

    def schedule(self, name: str) -> Schedule:
        method, compression = METHODS[name]
        gates = () if name == "full" else (Gate(1, 4),)
        budget = Budget(9 * (1 - compression), compression, 1.0, 0.5, (1,))
        calibration = {"pruned_and_selector_of_dense_flops": 0.75} if name == "ours" else {}
        return Schedule(name, method, IDENTITY, gates, budget, calibration=calibration)

    most_batch: int | None = None
    image_sizes = "4x4", "8x4"

    def describe(self) -> dict[str, str]:
        return {"GPU": "Orin"}

    def check(self, prompt: str, max_new_tokens: int) -> None:
        if len(prompt) > 50:
            raise BadPrompt("the prompt is too long")

    def ask(
        self,
        image: Any,
        prompt: Any,
        schedule: str,
        max_new_tokens: int,
        temperature: float,
        image_size: str | None = None,
    ) -> Any:
        assert temperature == 0, "an evaluation draws nothing at random, whatever the checkpoint says"
        if not isinstance(image, list):
            return self.ask([image], [prompt], schedule, max_new_tokens=max_new_tokens, temperature=0)[0]
        self.calls.append((schedule, len(image), max_new_tokens))
        if any(len(p) > 50 for p in prompt):
            raise BadPrompt("the prompt is too long")
        gates = () if schedule == "full" else (GateReceipt(layer=1, before=9, requested=4, applied=4, kind="prune"),)
        kept = () if schedule == "full" else ((0, 2, 5, 8),)
        milliseconds = {
            "vision": 1.0,
            "encode": 1.5,
            "prefill": 2.0,
            "first_token": 3.0 + len(self.calls),
            "decode": 0.0,
        }
        milliseconds |= {"decode_per_token": 0.0, "total": 3.0}
        receipt = Receipt(schedule, "4x4", (), gates, (12,), 100, 12, 1, milliseconds)
        said = ["yes" if p in self.answers[schedule] else "no" for p in prompt]
        return [Answer(text, (1,), kept, receipt, np.zeros(3, np.float32)) for text in said]


class Yes(base.Task):
    """Task in which "yes" is always right."""

    def __init__(self, prompts: list[str], load: Callable[[], Image.Image] | None = None) -> None:
        self._prompts, self._load = prompts, load
        super().__init__(Source())

    def read(self, source: Source) -> list[Question]:
        blank = self._load or (lambda: Image.new("RGB", (8, 8), "red"))
        return [
            Question(f"q{i}", f"q.jsonl line {i}", f"{i // 2}.png", blank, p, ("yes",), "ab"[i % 2], str(i))
            for i, p in enumerate(self._prompts)
        ]

    def score(self, question: Question, answer: str) -> float:
        return float(answer == question.answers[0])


def silent(bar: str, note: str, done: int, total: int) -> None:
    assert 1 <= done <= total


def result(vlm: Canned, task: base.Task, **options: Any) -> Evaluation:
    names = select_schedules(vlm.schedules, "all")
    settings = EvaluationSettings(**options)
    return evaluate(
        cast(Pipeline, vlm), task, names, settings, silent, source="yes", backend="ort", command="secateur eval"
    )


PROMPTS = [f"p{i}" for i in range(10)]


def test_every_figure() -> None:
    vlm = Canned({"full": set(PROMPTS[:8]), "ours": set(PROMPTS[2:9]), "small": set(PROMPTS[:4])})
    found = result(vlm, Yes(PROMPTS), timed=4, batch=3)
    full, ours, small = found.schedules
    assert (full.name, full.score, full.retention, full.mcnemar, full.split) == ("full", 0.8, 1.0, None, None)
    assert full.retention_interval == (1, 1) and full.gates == ()
    assert ours.score == 0.7 and ours.retention == pytest.approx(0.875) and ours.retention_interval is not None
    assert ours.mcnemar is not None and (ours.mcnemar.only_full, ours.mcnemar.only_this) == (2, 1)
    # full is right on 0 to 7, the small image on 0 to 3; ours is right on all of 4 to 7 and two of 0 to 3.
    assert ours.split is not None and ours.split.reference == "small"
    assert (ours.split.hard, ours.split.easy) == (SplitPart(4, 1.0), SplitPart(4, 0.5))
    assert small.split is None and small.mcnemar is not None
    assert ours.groups == {"a": 0.8, "b": 0.6}
    assert ours.gates == (GateLine(1, "prune", 4),) and ours.cache_bytes == 100
    assert ours.stage_ms == {"vision": 1.0, "encode": 1.5, "prefill": 2.0} and ours.ttft_ms.p50 <= ours.ttft_ms.p95
    assert (found.questions, found.timed, found.bundle, found.grid) == (10, 4, "canned", (3, 3))
    assert (found.segments, found.encoder_scores) == (3, ("received.-2", "class_token.-2"))
    assert found.image_sizes == ("4x4", "8x4")
    assert (full.flops_ratio_with_gates, ours.flops_ratio_with_gates) == (None, 0.75)
    assert json.loads(found.to_json()) == json.loads(json.dumps(found.as_dict()))
    assert set(found.machine) == {"cpu", "cores", "GPU", "python", "onnxruntime", "secateur"}
    assert found.machine["GPU"] == "Orin"


def test_schedules_take_turns() -> None:
    vlm = Canned({"full": set(), "ours": set(), "small": set()})
    result(vlm, Yes(PROMPTS), timed=3, batch=8)
    scored = [(name, size) for size in (8, 2) for name in ("full", "ours", "small")]
    assert [(name, size) for name, size, _ in vlm.calls[:6]] == scored
    rest = vlm.calls[6:]
    assert len(rest) == (batching.WARM_UP + 3) * 3 and all(call[1:] == (1, 1) for call in rest)
    rounds = [[name for name, _, _ in rest[i : i + 3]] for i in range(0, len(rest), 3)]
    assert all(sorted(each) == ["full", "ours", "small"] for each in rounds)
    assert [each[0] for each in rounds[batching.WARM_UP :]] == ["full", "ours", "small"]


def test_a_timed_answer_keeps_only_figures() -> None:
    vlm = cast(Pipeline, Canned({"full": set()}))
    times = batching.timed(vlm, Yes(PROMPTS).questions[:3], ["full"], silent)
    assert [t.cache_bytes for t in times["full"]] == [100] * 3 and times["full"][0].milliseconds["prefill"] == 2
    assert set(vars(times["full"][0])) == {"milliseconds", "cache_bytes"}


def test_questions_about_one_picture_are_resampled_together() -> None:
    """Two pictures each have one right and one wrong answer, so every resample scores 0.5."""
    found = result(Canned({"full": {"p0", "p2"}}), Yes(PROMPTS[:4]))
    assert found.schedules[0].score_interval == (0.5, 0.5)


@pytest.mark.parametrize("value", [None, "0.5", float("nan")])
def test_an_invalid_cost_of_gates_is_none(value: object) -> None:
    schedule = cast(Any, Canned({"full": set()})).schedule("full")
    assert flops_ratio_with_gates(replace(schedule, calibration={WITH_GATES: value})) is None


def test_full_without_right_answers() -> None:
    found = result(Canned({"full": set(), "ours": {"p1"}, "small": set()}), Yes(PROMPTS))
    full, ours, small = found.schedules
    assert full.retention is None and ours.retention is None and ours.retention_interval is None
    assert ours.split is not None and ours.split.hard == SplitPart(0, None)
    assert ours.mcnemar is not None and ours.mcnemar.only_this == 1
    assert "NaN" not in found.to_json()


def test_one_question() -> None:
    found = result(Canned({"full": {"p0"}, "ours": set()}), Yes(["p0"]))
    assert [s.score for s in found.schedules] == [1, 0] and found.timed == 1
    assert found.schedules[1].retention_interval == (0, 0) and found.schedules[1].split is None


def test_half_right_answers_have_no_mcnemar() -> None:
    class Half(Yes):
        binary = False

    found = result(Canned({"full": {"p0"}, "ours": set()}), Half(["p0", "p1"]))
    assert [s.mcnemar for s in found.schedules] == [None, None]


def test_a_question_that_cannot_be_asked_is_named(tmp_path: Path) -> None:
    vlm = Canned({"full": set()})
    with pytest.raises(BadPrompt, match=r"question 'q2' \(q.jsonl line 2\): the prompt is too long"):
        result(vlm, Yes(["p0", "p1", "p" * 60, "p3"]))
    assert not vlm.calls, "known before the first question is asked"
    (tmp_path / "bad.png").write_text("no image")
    with pytest.raises(
        BadImage, match=r"question 'q0' \(q.jsonl line 0\): image .*bad.png is not an image that is read"
    ):
        result(vlm, Yes(["p0"], partial(load_image, tmp_path / "bad.png")))


def test_overlays_show_different_images_as_the_model_sees_them() -> None:
    vlm = Canned({"full": {"p0"}, "ours": set(), "small": set()})
    names = ("full", "ours", "small")
    vlm.calls.clear()
    made = batching.overlays(cast(Pipeline, vlm), Yes(PROMPTS), names, 4, 7, silent)
    assert vlm.calls == [(name, 4, 7) for name in names]  # one batch per schedule
    assert [o.question for o in made] == ["p0", "p2", "p4", "p6"] and made[0].expected == "yes"
    assert made[0].image.size == (4, 4) and made[0].image.getpixel((1, 1)) == (255, 0, 0)
    assert made[0].answers["full"].text == "yes" and made[0].answers["full"].layers == ()
    assert (made[0].answers["ours"].layers, made[0].answers["ours"].kept) == ((1,), ((0, 2, 5, 8),))
    assert batching.overlays(cast(Pipeline, vlm), Yes(PROMPTS), names, 0, 7, silent) == []


def test_pictures_show_what_the_model_sees() -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (9, 7, 3), np.uint8))
    vlm = Canned({"full": {"q"}})
    vlm.bundle.preprocess = Preprocess((9, 7), "nearest", (5, 5), 1 / 255, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))
    (shown,) = batching.overlays(cast(Pipeline, vlm), Yes(["q"], lambda: image), ["full"], 1, 7, silent)
    assert (np.asarray(shown.image) == np.asarray(image)[2:7, 1:6]).all()


def test_schedules_by_name() -> None:
    names = ("full", "ours", "small")
    assert select_schedules(names, "all") == ["full", "ours", "small"]
    assert select_schedules(names, "small, ours,small") == ["full", "small", "ours"] and select_schedules(
        names, "full"
    ) == ["full"]
    with pytest.raises(UnknownName, match="unknown schedule 'our'. Did you mean 'ours'?"):
        select_schedules(names, "our")
    for nothing in ("", ",", " , "):
        with pytest.raises(InputError, match=f"--schedules is '{nothing}', which has no name"):
            select_schedules(names, nothing)


def test_settings_have_bounds() -> None:
    for name, flag in (("timed", "timed"), ("batch", "batch"), ("max_new_tokens", "max-new-tokens")):
        with pytest.raises(InputError, match=f"--{flag} is 0; it must be at least 1"):
            EvaluationSettings(**{name: 0})


def test_batches_are_no_larger_than_the_backend_takes() -> None:
    vlm = Canned({"full": set(PROMPTS), "ours": set(PROMPTS)})
    vlm.most_batch = 2
    result(vlm, Yes(PROMPTS), timed=1, batch=25)
    assert max(size for _, size, _ in vlm.calls) == 2
