# SPDX-License-Identifier: Apache-2.0
"""Graphs in ONNX's own notation, and rules of the lint as a graph that is refused and one that is not."""

from __future__ import annotations

from typing import NamedTuple

import onnx
from onnx import parser

from secateur.engines.version import Version
from secateur.export.lint import lint

OLD, NEW, NEWEST = Version(10, 3), Version(10, 15), Version(11, 1)


def model(text: str, opset: int = 20, domains: str = "") -> onnx.ModelProto:
    """Parse a graph; its nodes are called first, second, third ..."""
    made = parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}{domains}]> g {text}')
    for node, name in zip(made.graph.node, ("first", "second", "third", "fourth"), strict=False):
        node.name = name
    for value in made.graph.initializer:
        if value.data_type == onnx.TensorProto.INT4:  # NVIDIA's parser reads it as raw data only
            value.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(value), value.name))
    return made


class Rule(NamedTuple):
    """Part of the problem that is reported, a graph that is refused, and a similar one that is not ("" for none)."""

    problem: str
    bad: str
    good: str = ""
    opset: int = 20
    version: Version = OLD
    why: str = ""
    """Why the lint refuses a graph that TensorRT for RTX takes; "" if that refuses it, too."""

    def check(self) -> None:
        findings = lint(model(self.bad, self.opset), self.version)
        assert any(self.problem in found.problem for found in findings), findings
        assert all(found.graph == "g" and found.node and found.mend and found.source for found in findings)
        if self.good:
            assert lint(model(self.good, self.opset), self.version) == ()
