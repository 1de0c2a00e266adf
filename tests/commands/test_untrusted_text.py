# SPDX-License-Identifier: Apache-2.0
"""No text of a bundle, a checkpoint or a sample acts on the terminal or looks like a line of ours."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from secateur.demo import model_directory
from secateur.errors import LONGEST, escaped, printable
from secateur.export.bundle import ExportPlan, export
from secateur.export.targets import target
from secateur.families.base import Family
from secateur.report.page import render
from secateur.selection.budget import BudgetRequest
from tests.commands.calling import call
from tests.conftest import COMPRESSION, method, schedules

PLANTED = "\x1b[2K\rall checks passed\n\u202eall checks passed\x9b1A[red]"
Steps = tuple[str | int, ...]


def check(*printed: str) -> None:
    """Fail if a terminal would act on what was printed, or show a planted line as one of its own."""
    for text in printed:
        acting = {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp")} - {"\n"}
        assert not acting, (acting, text)
        assert not re.search(r"^all checks passed", text, re.MULTILINE), text


def places(value: Any, steps: Steps = ()) -> Iterator[tuple[Steps, bool]]:
    """Yield the steps to each text of a JSON document, and whether it is a key instead of a value."""
    if isinstance(value, str):
        yield steps, False
    elif isinstance(value, dict):
        for key, each in value.items():
            yield (*steps, key), True
            yield from places(each, (*steps, key))
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from places(each, (*steps, number))


def kinds(document: Any) -> list[tuple[Steps, bool]]:
    """Return one place of each kind: the inputs of all graphs are alike, and so are all keys of one object."""
    found: dict[Any, tuple[Steps, bool]] = {}
    for steps, key in places(document):
        alike = tuple("*" if isinstance(step, int) else step for step in (steps[:-1] if key else steps))
        found.setdefault((alike, key), (steps, key))
    return list(found.values())


def plant(document: Any, steps: Steps, key: bool, text: str = PLANTED) -> None:
    *way, last = steps
    for step in way:
        document = document[step]
    if key:
        document[f"{last}{text}"] = document.pop(last)
    else:
        document[last] = f"{document[last]}{text}"


def rewrite(path: Path, change: Callable[[Any], None]) -> None:
    """Change a JSON file of a bundle, and its sha256 in the manifest."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    manifest = path.parent / "manifest.json"
    if path != manifest:
        digest = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
        rewrite(manifest, lambda found: found["files"].update({path.name: digest}))


@pytest.fixture(scope="module")
def small(tiny: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with one pruned schedule."""
    folder = tmp_path_factory.mktemp("small") / "bundle"
    chosen = schedules(tiny, {"random": method("random")}, BudgetRequest(compression=COMPRESSION))
    export([ExportPlan(tiny, tuple(chosen))], target("cpu"), folder, verify=False)
    return folder


@pytest.fixture
def bundle(small: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small, tmp_path / "bundle"))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (24, 24), "red").save(tmp_path / "red.png")
    return tmp_path / "red.png"


def test_texts_of_a_manifest(bundle: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = bundle / "manifest.json"
    exported, accepted = json.loads(manifest.read_text()), list[tuple[Steps, bool]]()
    assert len(kinds(exported)) > 40
    for steps, key in kinds(exported):
        changed = copy.deepcopy(exported)
        plant(changed, steps, key)
        manifest.write_text(json.dumps(changed))
        code, out, err = call(capsys, "inspect", bundle)
        check(out, err)
        assert code in (0, 2) and "Traceback" not in err
        accepted += [(steps, key)] if code == 0 else []
    free = [(steps, key) for steps, key in accepted if steps[0] in ("source", "versions")]
    assert len(free) > 2
    for steps, key in sorted(free, key=lambda place: place[1]):  # keys last
        plant(exported, steps, key)
    manifest.write_text(json.dumps(exported))
    name = next(name for name in exported["schedules"] if name != "full")
    ask = ["--image", picture, "--prompt", "red ?", "--schedule", name]
    for words, expected in (
        (["inspect"], 0),
        (["run", *ask, "--max-new-tokens", 2], 0),
        (["overlay", *ask, "--out", picture.parent / "kept.png"], 0),
        (["profile", "--rounds", 1, "--warmup", 0], 0),
        (["eval", *asked(picture), "--timed", 1, "--html", picture.parent / "page.html"], 0),
        (["run", *ask, "--backend", "torch"], 2),
        (["check", "--against", "torch"], 2),
        (["build", "--dry-run", "--out", picture.parent / "trtexec"], 2),
        (["audit"], 2),
    ):
        code, out, err = call(capsys, words[0], bundle, *words[1:])
        check(out, err)
        assert code == expected and (out or err), (words, out, err)
    check((picture.parent / "page.html").read_text())


def asked(picture: Path) -> list[str | Path]:
    """Write one question for `secateur eval`, with planted texts in all its fields, and return the options."""
    record = {"question_id": PLANTED, "image": picture.name, "text": f"red ?{PLANTED}", "answer": PLANTED}
    questions = picture.parent / f"q{PLANTED}.jsonl"
    questions.write_text(json.dumps(record | {"category": PLANTED}))
    return ["--task", "gqa", "--data", questions]


def test_answers_and_vocabulary(bundle: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lines of an answer are legal, and are indented, so that none looks like a line of ours."""

    def plant_words(tokenizer: Any) -> None:
        special = {token["content"] for token in tokenizer["added_tokens"]}
        words = tokenizer["model"]["vocab"]
        tokenizer["model"]["vocab"] = {w if w in special else w + PLANTED: n for w, n in words.items()}

    rewrite(bundle / "tokenizer.json", plant_words)
    ask = ["--image", picture, "--prompt", "red ?\nyes ?", "--schedule", "full"]
    code, out, err = call(capsys, "run", bundle, *ask, "--max-new-tokens", 3)
    check(out, err)
    assert code == 0 and r"\x1b[2K\rall checks passed" in out and "\n          \\u202eall checks passed" in out
    assert "question  red ?\n          yes ?\n" in out
    code, out, err = call(capsys, "run", bundle, *ask, "--max-new-tokens", 3, "--json")
    assert PLANTED in json.loads(out)["answer"], "JSON has the answer as it is"
    _, out, err = call(capsys, "overlay", bundle, *ask, "--out", picture.parent / "kept.png")
    check(out, err)


@pytest.mark.parametrize("file", ["prompt.json", "preprocess.json"])
def test_texts_of_other_files(file: str, bundle: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exported = (bundle / file).read_text()
    for steps, key in kinds(json.loads(exported)):
        (bundle / file).write_text(exported)
        rewrite(bundle / file, lambda found: plant(found, steps, key))  # noqa: B023
        _, out, err = call(capsys, "run", bundle, "--image", picture, "--prompt", "red ?", "--schedule", "full")
        check(out, err)


def template(folder: Path) -> None:
    said = json.dumps(PLANTED)
    (folder / "chat_template.jinja").write_text("{{ raise_exception(" + said + ") }}")


def setting(*steps: str | int) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        document = json.loads((folder / "config.json").read_text())
        plant(document, steps, False)
        (folder / "config.json").write_text(json.dumps(document))

    return spoil


@pytest.mark.parametrize(
    "spoil",
    [
        template,
        setting("model_type"),
        setting("architectures", 0),
        setting("dtype"),
        setting("text_config", "hidden_act"),
    ],
)
def test_texts_of_a_checkpoint(
    spoil: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / f"model{PLANTED}"
    shutil.copytree(model_directory(), folder)
    spoil(folder)
    code, out, err = call(capsys, "calibrate", "--model", folder, "--method", "random", "--out", tmp_path / "s.json")
    check(out, err)
    assert code == 2 and err.startswith("secateur: error: ") and err.count("\n") == 1


def test_what_libraries_log_of_a_checkpoint(tmp_path: Path) -> None:
    """In a process of its own: pytest replaces the handlers."""
    folder = tmp_path / "model"
    shutil.copytree(model_directory(), folder)
    document = json.loads((folder / "config.json").read_text()) | {"use_return_dict": PLANTED}
    (folder / "config.json").write_text(json.dumps(document))
    words = [sys.executable, "-m", "secateur", "calibrate", "--model", str(folder), "--method", "random"]
    done = subprocess.run([*words, "--out", str(tmp_path / "s.json")], capture_output=True)
    text = done.stderr.decode()
    check(done.stdout.decode(), text)
    assert done.returncode == 2 and r"use_return_dict with value \x1b[2K\rall checks passed" in text


@pytest.mark.parametrize("line", ['{"image": "a\\u001b[2K\\rb.png", "text": "x"}', f"{PLANTED}", '{"\\u001b": 1}'])
def test_texts_of_samples_and_questions(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / f"q{PLANTED}.jsonl").write_text(line)
    words = ["--samples", tmp_path / f"q{PLANTED}.jsonl", "--sample-count", 1, "--out", tmp_path / "s.json"]
    code, out, err = call(capsys, "calibrate", *words)
    check(out, err)
    assert code == 2 and err.count("\n") == 1


def test_a_long_text_keeps_its_ends() -> None:
    text = printable("what" + "x" * 10_000 + "mend")
    assert text.startswith("whatxx") and text.endswith("xxmend") and len(text) == 2 * LONGEST + 5
    assert printable("x" * 2 * LONGEST) == "x" * 2 * LONGEST


def test_only_what_acts_is_escaped() -> None:
    plain = "é ü 漢字 ไทย العربية \U0001f468\u200d\U0001f469 a\u00a0b"
    assert printable(plain) == escaped(plain) == plain
    assert printable("a\nb\tc") == r"a\nb\tc" and escaped("a\nb\tc") == "a\nb\tc"
    assert printable("\ud800 \u2028 \u2066 \U000e0041") == r"\ud800 \u2028 \u2066 \U000e0041"


def test_reports_are_escaped_too(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<p>{{ name }}</p>\n")
    assert render(tmp_path, {}, name=f"<b>{PLANTED}") == (
        r"<p>&lt;b&gt;\x1b[2K\rall checks passed" + "\n" + r"\u202eall checks passed\x9b1A[red]</p>"
    )
