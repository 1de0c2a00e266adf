# SPDX-License-Identifier: Apache-2.0
"""Receipts as JSON, and the stopwatch."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from secateur.runtime import Answer, GateReceipt, Receipt
from secateur.runtime.preprocess import Fitted
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
    fitted = Fitted((12, 24), (0.5, 0.5), (0, 0, 6, 6), "letterbox")
    receipt = Receipt("btp", "24x12", (fitted,), (GateReceipt(3, 9, 5, 5),), (20, 16), 1024, 20, 2, {"total": 1.5})
    written = json.loads(json.dumps(receipt.as_dict()))
    assert written["gates"] == [{"layer": 3, "before": 9, "requested": 5, "applied": 5, "kind": "prune"}]
    assert written["image_size"] == "24x12"
    image = {"bucket": [12, 24], "scale": [0.5, 0.5], "padding": [0, 0, 6, 6], "fit": "letterbox"}
    assert written["images"] == [image]
    answer = Answer("red", (7, 2), ((1, 2),), receipt, np.zeros(3, np.float32))
    assert answer.timings == {"total": 1.5} and "first_logits" not in repr(answer)
