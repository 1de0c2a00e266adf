# SPDX-License-Identifier: Apache-2.0
"""Bundles with a hostile file and correct hashes are refused in one line, or give an answer of the model's tokens.

Each bundle is loaded and asked in a process with little memory, which must answer in time.
"""

from __future__ import annotations

import copy
import hashlib
import json
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

ROOT = Path(__file__).parent.parent.parent
FILES = ("manifest.json", "schedules/prune.json", "preprocess.json", "prompt.json", "tokenizer.json")
EXAMPLES = 60 if hypothesis.settings().derandomize else 1500  # in make test and in make fuzz
SECONDS = 60
HOSTILE: list[Any] = [
    None, True, -1, 0, 1, 2, 3, 17, 2**31 - 1, 2**31, 2**63, 10**18, 10**400, 0.5, -1e308, 1e308, 1e-308, "", "a", "B",
    "../x", "/etc/passwd", "\0", "\x1b[2J", "\ud800", "T+100000000", "S-5", "S+3", "9x", "x" * 5000, "float16",
    "<image>", "(a+)+$", "a*a*a*b", "(((", "Regex", [], {}, [[]], [1] * 5000, {"a": 1}, [0, 0],
    [10**9, 10**9], "vision", "full",
]  # fmt: skip
REPEATED = 1 << 24
"""Characters of a repeated list, about: the test itself must not fill the memory."""
STEPS = ["Replace", "Split", "Prepend", "FixedLength", "Precompiled", "Sequence", "NFKC", "Metaspace", "BPE", "Unigram"]


class Worker:
    """The process that asks the bundles; a new one takes the place of one that ended or hung."""

    def __init__(self, first: Path) -> None:
        self._first = first
        self._process: subprocess.Popen[str] | None = None

    def ask(self, folder: Path) -> tuple[str, str]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.runtime.untrusted_worker"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            assert self._send(self._first)[0] == "answer"
        return self._send(folder)

    def _send(self, folder: Path) -> tuple[str, str]:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        process.stdin.write(f"{folder}\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], SECONDS)[0]:
            self.close()
            return "hung", f"no outcome after {SECONDS} seconds"
        line = process.stdout.readline()
        if not line:
            code = process.wait()
            self.close()
            return "ended", f"the process ended with {code}"
        kind, text = json.loads(line)
        return kind, text

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._process = None


@pytest.fixture(scope="module")
def worker(bundle_path: Path) -> Iterator[Worker]:
    made = Worker(bundle_path)
    yield made
    made.close()


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value in a JSON document."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(place for key, value in items for place in places(value, (*path, key)))]


def changed(data: st.DataObject, tree: Any) -> Any:
    """Return a copy of a JSON document in which a value is replaced, removed, repeated, moved or nested."""
    tree = copy.deepcopy(tree)
    *above, last = data.draw(st.sampled_from(places(tree)[1:]), "place")
    holder = tree
    for key in above:
        holder = holder[key]
    how = data.draw(
        st.sampled_from(["replace"] * 5 + ["add"] * 3 + ["remove", "repeat", "swap", "nest", "type", "key"]), "how"
    )
    value = holder[last]
    if how == "add" and type(value) in (int, float):
        holder[last] = value + data.draw(st.sampled_from([-1, 1, 10, -10, 1000, 10**9]), "number")
    elif how == "remove":
        del holder[last]
    elif how == "repeat" and isinstance(value, list):
        times = data.draw(st.sampled_from([2, 100, 2000]), "times")
        holder[last] = value * min(times, 1 + REPEATED // max(len(json.dumps(value)), 1))
    elif how == "swap":
        other = tree
        for key in data.draw(st.sampled_from(places(tree)[1:]), "other"):
            other = other[key]
        holder[last] = copy.deepcopy(other)
    elif how == "nest":
        for _ in range(data.draw(st.sampled_from([1, 50]), "depth")):
            value = [value]
        holder[last] = value
    elif how == "type" and isinstance(value, dict | str) or value is None:
        step: Any = {"type": data.draw(st.sampled_from(STEPS), "step")}
        names = st.sampled_from(
            ["pattern", "content", "length", "prepend", "vocab", "behavior", "replacement", "normalizers"]
        )
        values = st.sampled_from([*HOSTILE, {"Regex": "(a|b)*c"}, {"String": ""}, {"Regex": r"\w+"}])
        holder[last] = step | data.draw(st.dictionaries(names, values, max_size=4), "fields")
    elif how == "key" and isinstance(holder, dict):
        holder[str(data.draw(st.sampled_from(HOSTILE), "key"))] = holder.pop(last)
    else:
        holder[last] = copy.deepcopy(data.draw(st.sampled_from(HOSTILE), "value"))
    return tree


def write(root: Path, name: str, content: bytes) -> None:
    """Write a file, and its hash into the manifest."""
    (root / name).write_bytes(content)
    if name != "manifest.json":
        manifest = json.loads((root / "manifest.json").read_text())
        manifest["files"][name] = hashlib.sha256(content).hexdigest()
        (root / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def root(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy whose files are replaced."""
    return Path(shutil.copytree(bundle_path, tmp_path_factory.mktemp("untrusted") / "bundle"))


def tried(worker: Worker, root: Path, bundle_path: Path, name: str, content: bytes) -> None:
    write(root, name, content)
    try:
        kind, text = worker.ask(root)
    finally:
        for original in (name, "manifest.json"):
            shutil.copy(bundle_path / original, root / original)
    hypothesis.event(kind)
    assert kind in ("answer", "refused"), f"{kind}: {text[:500]}"
    assert "\n" not in text and len(text) < 20_000


@pytest.mark.parametrize("name", FILES)
@hypothesis.given(data=st.data())
@hypothesis.settings(
    max_examples=EXAMPLES, suppress_health_check=list(hypothesis.HealthCheck), report_multiple_bugs=False
)
def test_json_with_other_values(worker: Worker, root: Path, bundle_path: Path, name: str, data: st.DataObject) -> None:
    tree = json.loads((bundle_path / name).read_text())
    for _ in range(data.draw(st.integers(1, 3), "changes")):
        if len(places(tree)) > 1:
            tree = changed(data, tree)
    tried(worker, root, bundle_path, name, json.dumps(tree).encode())


@pytest.mark.parametrize("name", FILES)
@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=EXAMPLES // 3, suppress_health_check=list(hypothesis.HealthCheck))
def test_json_with_other_bytes(worker: Worker, root: Path, bundle_path: Path, name: str, data: st.DataObject) -> None:
    whole = (bundle_path / name).read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1), "at")
    new = data.draw(
        st.sampled_from([b"", b"[" * 100_000, b"9" * 5000, b"\xff", b"\0", b'"', b"}", b",", b"1e999", b"NaN"])
    )
    tried(worker, root, bundle_path, name, whole[:at] + new + whole[at + data.draw(st.integers(0, 3)) :])
