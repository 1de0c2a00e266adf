# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's parser and builder on small graphs, and docs/lint.md, updated by `python -m tests.export.nvidia`."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any, NamedTuple

import onnx

from secateur.engines.builder import build_log
from tests.export.operator_cases import RULES

PAGE = Path(__file__).parent.parent.parent / "docs" / "lint.md"
BEGIN, END = "<!-- table: make table -->\n", "<!-- end of table -->\n"


class Outcome(NamedTuple):
    """The first error of parser or builder ("" for none), and their warnings without the expected ones."""

    refusal: str
    warnings: list[str]


def outcome(model: onnx.ModelProto) -> Outcome:
    """Parse and build a graph whose dynamic dimensions, and inputs that are shapes, are 1."""
    trt: Any = importlib.import_module("tensorrt_rtx")  # mypy knows the simulation
    log = build_log(trt)
    log.clear()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model.SerializeToString()):
        return Outcome(f"parser: {parser.get_error(0).desc()}", log.warnings)
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    for tensor in (network.get_input(i) for i in range(network.num_inputs)):
        if tensor.is_shape_tensor:
            profile.set_shape_input(tensor.name, *[[1]] * 3)
        elif -1 in tuple(tensor.shape):
            profile.set_shape(tensor.name, *[[abs(size) for size in tensor.shape]] * 3)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    return Outcome("" if plan else f"builder: {log.errors[0]}", log.warnings)


def table() -> str:
    """Return a row for each rule."""
    rows = ["| graph | the lint | TensorRT for RTX | why the lint refuses it |", "|---|---|---|---|"]
    for name, rule in RULES.items():
        rows.append(f"| {name} | {rule.problem} | {'takes it' if rule.why else 'refuses it'} | {rule.why} |")
    return "\n".join(rows) + "\n"


def updated(page: str) -> str:
    """Return the page with an updated table."""
    return re.sub(f"(?<={re.escape(BEGIN)}).*(?={re.escape(END)})", lambda _: table(), page, flags=re.S)


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
