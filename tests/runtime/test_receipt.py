# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import time

import numpy as np
import pytest

from secateur.runtime import Answer, GateReceipt, Receipt
from secateur.runtime.receipt import Stopwatch


def test_a_stopwatch_adds_up() -> None:
    watch = Stopwatch({"vision": 1000.0})
    for stage in ("vision", "decode", "decode"):
        with watch(stage):
            time.sleep(0.002)
    with pytest.raises(KeyError), watch("failed"):
        raise KeyError
    assert watch.milliseconds["vision"] > 1002 and watch.milliseconds["decode"] > 4 and "failed" in watch.milliseconds


def test_a_receipt_is_json() -> None:
    receipt = Receipt("btp", (GateReceipt(3, 9, 5, 5),), (20, 16), 1024, 20, 2, {"total": 1.5})
    assert json.loads(json.dumps(receipt.as_dict()))["gates"] == [
        {"layer": 3, "before": 9, "requested": 5, "applied": 5, "kind": "prune"}
    ]
    answer = Answer("red", (7, 2), ((1, 2),), receipt, np.zeros(3, np.float32))
    assert answer.timings == {"total": 1.5} and "first_logits" not in repr(answer)
