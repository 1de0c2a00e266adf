# SPDX-License-Identifier: Apache-2.0
"""The index of the first largest value without TopK, in ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from secateur.export.first_maximum import replace_single_topk

SIZE = 5


def topk(count: int = 1, used: int = 1, **attributes: Any) -> onnx_ir.Model:
    """A TopK of the rows `x`, and its output number `used` (0 values, 1 index)."""
    node = helper.make_node("TopK", ["x", "count"], ["values", "index"], **attributes)
    kind = (TensorProto.FLOAT, TensorProto.INT64)[used]
    graph = helper.make_graph(
        [node],
        "topk",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", SIZE])],
        [helper.make_tensor_value_info(("values", "index")[used], kind, ["B", count])],
        [numpy_helper.from_array(np.array([count], np.int64), "count")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx_ir.serde.deserialize_model(model)


def test_equal_values_give_the_lower_index() -> None:
    model = topk()
    replace_single_topk(model)
    assert "TopK" not in {node.op_type for node in model.graph}
    proto = onnx_ir.serde.serialize_model(model)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    rows = np.random.default_rng(0).integers(-2, 3, (50, SIZE)).astype(np.float32)
    rows[0] = -np.inf
    rows[1, 2:] = np.inf
    (index,) = session.run(None, {"x": rows})
    np.testing.assert_array_equal(index[:, 0], rows.argmax(1))
    (index,) = session.run(None, {"x": np.full((1, SIZE), np.nan, np.float32)})
    assert 0 <= index[0, 0] < SIZE, "a row number in any case"


@pytest.mark.parametrize(
    "model", [topk(2), topk(used=0), topk(largest=0), topk(axis=0)], ids=["two", "values", "smallest", "columns"]
)
def test_others_stay(model: onnx_ir.Model) -> None:
    replace_single_topk(model)
    assert [node.op_type for node in model.graph] == ["TopK"]
