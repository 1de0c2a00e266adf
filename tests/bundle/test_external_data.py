# SPDX-License-Identifier: Apache-2.0
"""Files that an ONNX file refers to are found wherever a tensor can be, as libprotobuf reads the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import onnx
import pytest
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from secateur.bundle.external_data import external_files


def tensor(location: str = "", name: str = "w") -> TensorProto:
    """Return a tensor whose values are in the file `location`, or a plain one."""
    made = numpy_helper.from_array(np.zeros(2, np.float32), name)
    if location:
        made.ClearField("raw_data")
        made.data_location = TensorProto.EXTERNAL
        for key, value in (("offset", "0"), ("location", location), ("length", "8")):
            entry = made.external_data.add()
            entry.key, entry.value = key, value
    return made


def graph(*initializers: TensorProto, nodes: Any = ()) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), "g", [], [], list(initializers))


def sparse(location: str) -> onnx.SparseTensorProto:
    return helper.make_sparse_tensor(tensor(location, "v"), tensor(f"{location}.index", "i"), [4])


def everywhere() -> onnx.ModelProto:
    """Return a model with a reference in each place where onnx.proto allows a tensor."""
    inner = graph(tensor("subgraph"), nodes=[helper.make_node("Constant", [], ["c"], value=tensor("deep"))])
    nodes = [
        helper.make_node("Constant", [], ["a"], value=tensor("attribute")),
        helper.make_node("Constant", [], ["b"], sparse_value=sparse("sparse_attribute")),
        helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=graph()),
        helper.make_node("X", [], ["z"], many=[tensor("list_0"), tensor("list_1")], graphs=[graph(tensor("graphs"))]),
    ]
    outer = graph(tensor("initializer"), tensor(), nodes=nodes)
    outer.sparse_initializer.append(sparse("sparse"))
    model = helper.make_model(outer)
    function = helper.make_function("d", "f", [], ["o"], [], [helper.make_opsetid("", 20)])
    function.node.append(helper.make_node("Constant", [], ["o"], value=tensor("function")))
    function.attribute_proto.append(helper.make_attribute("default", tensor("default")))
    model.functions.append(function)
    training = model.training_info.add()
    training.initialization.CopyFrom(graph(tensor("initialization")))
    training.algorithm.CopyFrom(graph(tensor("algorithm")))
    return model


def locations(message: Any) -> set[str]:
    """Return all locations in a message, found by reflection over its fields."""
    if isinstance(message, TensorProto):
        return {entry.value for entry in message.external_data if entry.key == "location"}
    found = set[str]()
    for field, value in message.ListFields():
        if field.message_type is not None:
            for one in value if hasattr(value, "append") else [value]:
                found |= locations(one)
    return found


def test_every_place_of_a_tensor(tmp_path: Path) -> None:
    path, model = tmp_path / "a.onnx", everywhere()
    path.write_bytes(model.SerializeToString())
    wanted = locations(model)
    assert len(wanted) == 15
    assert external_files(path, "onnx/gates/a.onnx") == {f"onnx/gates/{name}" for name in wanted}
    assert external_files(path, "a.onnx") == wanted


def test_names_that_leave_the_folder_stay_visible(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    for name in ("/etc/passwd", "../../x", "./x", "a/../b", "*/_ORT_MEM_ADDR_/*", "c\\d", "\n"):
        path.write_bytes(helper.make_model(graph(tensor(name))).SerializeToString())
        assert external_files(path, "onnx/a.onnx") == {f"onnx/{name}"}


def test_a_key_given_twice_counts_as_the_last(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"

    def nested(*parts: tuple[int, bytes]) -> bytes:
        return b"".join(bytes([field << 3 | 2, len(value)]) + value for field, value in parts)

    for keys, found in (((b"x", b"location"), {"b"}), ((b"location", b"x"), set())):
        entry = nested((1, keys[0]), (2, b"a"), (1, keys[1]), (2, b"b"))
        path.write_bytes(nested((7, nested((5, nested((13, entry)))))))
        assert locations(onnx.load(path, load_external_data=False)) == found == external_files(path, "a.onnx")


@hypothesis.given(st.integers(0, 1 << 16), st.binary(min_size=1, max_size=4), st.booleans())
def test_whatever_protobuf_accepts_is_seen(
    tmp_path_factory: pytest.TempPathFactory, at: int, new: bytes, cut: bool
) -> None:
    """On damaged files it finds what protobuf finds, or refuses the file."""
    whole = everywhere().SerializeToString()
    at %= len(whole)
    data = whole[:at] if cut else whole[:at] + new + whole[at + len(new) :]
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(data)
    try:
        model = onnx.load_model_from_string(data)
    except Exception:
        return
    try:
        found = external_files(path, "a.onnx")
    except ValueError:
        return
    assert locations(model) <= found


def test_plain_graphs_refer_to_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(helper.make_model(graph(tensor(name="location"))).SerializeToString())
    assert external_files(path, "a.onnx") == set()
    path.write_bytes(b"location")
    with pytest.raises(ValueError, match="field"):
        external_files(path, "a.onnx")
