# SPDX-License-Identifier: Apache-2.0
"""Graphs as written, run by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from secateur.bundle.manifest import GraphSpec, TensorSpec
from secateur.export.graphs import Graph
from secateur.export.to_onnx import to_onnx


class Norm(nn.Module):
    """A norm in fp32 of rows in fp16, as in a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = LlamaRMSNorm(8)

    def forward(self, rows: Tensor) -> Tensor:
        out: Tensor = self.norm(rows.float())
        return out


def test_a_norm_takes_rows_of_the_dtype_of_its_weights(tmp_path: Path) -> None:
    tensors = (TensorSpec("rows", "float16", ("B", 8)),), (TensorSpec("out", "float32", ("B", 8)),)
    path, module = tmp_path / "norm.onnx", Norm()
    to_onnx(Graph(GraphSpec("norm", "gate", path.name, *tensors), module), path, 23)
    assert [node.op_type for node in onnx.load(path).graph.node] == ["Cast", "RMSNormalization"]
    rows = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float16)
    found = onnxruntime.InferenceSession(path).run(None, {"rows": rows})[0]
    assert np.allclose(found, module(torch.from_numpy(rows)).detach().numpy(), atol=1e-6)
