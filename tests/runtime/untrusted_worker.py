# SPDX-License-Identifier: Apache-2.0
"""Load bundles and ask each a question, with a bound on memory: one folder a line on stdin, one outcome a line.

python -m tests.runtime.untrusted_worker

An outcome is ["answer", text], ["refused", message] or ["raw", error] for an error that is not raised on purpose.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path

import numpy as np

from secateur.errors import SecateurError
from secateur.runtime import Pipeline

MEMORY = 1 << 30
"""Bytes beyond those of this process after the first bundle."""
PICTURE = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
NEW_TOKENS = 3


def ask(folder: str) -> tuple[str, str]:
    """Return the outcome for the bundle in a folder; the schedule is `prune`, or else the first one."""
    try:
        with Pipeline.load(folder, threads=1) as vlm:
            name = "prune" if "prune" in vlm.schedules else vlm.schedules[0]
            with vlm.open(PICTURE, name) as chat:
                answers = [chat.ask(text, max_new_tokens=NEW_TOKENS) for text in ("what color is the seven ?", "where")]
            vocabulary = vlm.bundle.manifest.dimensions.vocabulary
        for answer in answers:
            assert len(answer.tokens) <= NEW_TOKENS and all(0 <= token < vocabulary for token in answer.tokens)
            assert np.isfinite(answer.first_logits).all()
        return "answer", json.dumps([answer.tokens for answer in answers])
    except SecateurError as problem:
        return "refused", str(problem)
    except BaseException as problem:
        return "raw", f"{type(problem).__name__}: {problem}"


def main() -> None:
    for number, line in enumerate(sys.stdin):
        outcome = ask(line.rstrip("\n"))
        if number == 0:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY,) * 2)
        print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    main()
