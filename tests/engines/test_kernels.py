# SPDX-License-Identifier: Apache-2.0
"""Kernels of an engine, from lines of the log of TensorRT for RTX 1.7.1.116 (shortened: formats and tactics)."""

from __future__ import annotations

from secateur.engines.kernels import Kernel, kernels, moved

PREFILL = """Layers:
Name: [ShapeHostToDeviceCopy 0], LayerType: ShapeHostToDevice, Inputs: [], Outputs: [ { Name: (Unnamed Layer* 41) [Shuffle]_output, Location: Device, Dimensions: [1], Datatype: Int64, Format: Format not available due to dynamic shapes }], ParameterType: ShapeH2D, shapeValues0: [-6], TacticValue: 0x0000000000000000, StreamId: 0, Metadata:
Name: __mye6398_0_myl1_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata:
Name: node_MatMul_83+node_MatMul_81+node_MatMul_79_myl1_2, LayerType: gemm, Inputs: [ { Name: __mye24303_46_myl1, Dimensions: [1,-1,2048], Strides: [-1,2048,1], StrideOrder: [2,1,0], Datatype: Half, Format: (Linear) Row major linear format }], Constants: [ { Name: __mye24298_dconst_myl1, Dimensions: [1,2048,2560], Strides: [5242880,2560,1], StrideOrder: [2,1,0], Datatype: Half, Format: (Linear) Row major linear format }, { Name: __mye23412node_MatMul_83_alpha_myl1, Dimensions: [1], Strides: [1], StrideOrder: [0], Datatype: Float, Format: (Linear) Row major linear format }], Outputs: [ { Name: __mye24303_myl1, Dimensions: [1,-1,2560], Strides: [-1,2560,1], StrideOrder: [2,1,0], Datatype: Half, Format: (Linear) Row major linear format }], TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: [ONNX Layer: node_MatMul_83]
Name: __mye28498_myl1_3, LayerType: signal, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, EventId: 1, Metadata:
Name: __mye28500_myl1_4, LayerType: wait, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 1, EventId: 1, Metadata:
Name: _gemm_mha_v2_myl1_10, LayerType: kgen, Inputs: [ { Name: __mye24447_52_myl1, Dimensions: [16,-1,128], Strides: [128,2048,1], StrideOrder: [1,2,0], Datatype: Half, Format: (Arbitrary) Format with stride order = [1,2,0] }], Constants: [], Outputs: [ { Name: __mye24447_myl1, Dimensions: [16,-1,128], Strides: [128,2048,1], StrideOrder: [1,2,0], Datatype: Half, Format: (Arbitrary) Format with stride order = [1,2,0] }], TacticName: _gemm_mha_v2_0x70272ca6516e76d7eaeb0bc4e29cf803, StreamId: 0, Metadata: [ONNX Layer: node_matmul_1]
"""  # noqa: E501
DECODE = """
Name: __mye5114_0_myl3_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata:
Name: __myl_FcAdd_myl3_1, LayerType: runtime_fusion, Inputs: [ { Name: hidden_states [profile 1], Dimensions: [1,1,2048], Strides: [2048,2048,1], StrideOrder: [2,1,0], Datatype: Half, Format: (Linear) Row major linear format }], Constants: [ { Name: __mye17302dconst_myl3, Dimensions: [1,2048,2560], Strides: [5242880,1,2048], StrideOrder: [2,0,1], Datatype: Int4, Format: (Linear) Row major linear format }], Outputs: [ { Name: __mye17210_myl3, Dimensions: [1,1,2560], Strides: [2560,2560,1], StrideOrder: [2,1,0], Datatype: Half, Format: (Linear) Row major linear format }], TacticName: , StreamId: 0, Metadata:
Name: _gemv_mha_v1_myl3_2, LayerType: kgen, Inputs: [ { Name: attention_mask [profile 1], Dimensions: [1,7], Strides: [7,1], StrideOrder: [1,0], Datatype: Int64, Format: (Linear) Row major linear format }], Constants: [], Outputs: [ { Name: new_key.0 [profile 1], Dimensions: [1,1,2,128], Strides: [256,256,128,1], StrideOrder: [3,2,1,0], Datatype: Half, Format: (Linear) Row major linear format }], TacticName: , StreamId: 0, Metadata:
"""  # noqa: E501
# A weight as input in fp32 and a MatMul in fp16: cast in every prefill, multiplied and written out in every step.
INPUT = """Layers:
Name: __myl_Cast_myl0_1, LayerType: kgen, Inputs: [ { Name: w, Dimensions: [1,512,256], Strides: [131072,256,1], StrideOrder: [2,1,0], Datatype: Float, Format: (Linear) Row major linear format }], Constants: [], Outputs: [ { Name: y.1_7_myl0, Dimensions: [1,512,256], Strides: [131072,256,1], StrideOrder: [2,1,0], Datatype: Half, Format: (Linear) Row major linear format }], TacticName: __myl_Cast_0xb9be3cfeed98d38dd4fb8196f5fb76ba, StreamId: 0, Metadata: [ONNX Layer: node_of_wh]
Name: __myl_Move_myl0_2, LayerType: kgen, Inputs: [ { Name: y.1_7_myl0, Dimensions: [1,512,256], Strides: [131072,256,1], StrideOrder: [2,1,0], Datatype: Half, Format: (Linear) Row major linear format }], Constants: [], Outputs: [ { Name: y.2_myl0, Dimensions: [1,512,256], Strides: [131072,256,1], StrideOrder: [2,1,0], Datatype: Half, Format: (Linear) Row major linear format }], TacticName: , StreamId: 0, Metadata:
Name: __myl_ReshMulTran_myl1_0, LayerType: kgen, Inputs: [ { Name: w [profile 1], Dimensions: [1,512,256], Strides: [131072,256,1], StrideOrder: [2,1,0], Datatype: Half, Format: (Linear) Row major linear format }, { Name: x [profile 1], Dimensions: [1,1,512], Strides: [512,512,1], StrideOrder: [2,1,0], Datatype: Half, Format: (Linear) Row major linear format }], Constants: [], Outputs: [ { Name: __myln_k_arg__bb1_4_myl1, Dimensions: [1,512,256], Strides: [131072,1,512], StrideOrder: [2,0,1], Datatype: Half, Format: (Transposed) Transposed format }], TacticName: , StreamId: 0, Metadata: [ONNX Layer: node_of_y]
Name: __myl_Move_myl1_1, LayerType: kgen, Inputs: [], Constants: [], Outputs: [ { Name: __myln_k_arg__bb1_3_myl1, Dimensions: [256], Strides: [1], StrideOrder: [0], Datatype: Int32, Format: (Linear) Row major linear format }], TacticName: , StreamId: 0, Metadata: [ONNX Layer: node_of_y]
Name: __myl_ReshMulSum_myl1_2, LayerType: kgen, Inputs: [ { Name: w [profile 1], Dimensions: [1,512,256], Strides: [131072,256,1], StrideOrder: [2,1,0], Datatype: Float, Format: (Linear) Row major linear format }, { Name: x [profile 1], Dimensions: [1,1,512], Strides: [512,512,1], StrideOrder: [2,1,0], Datatype: Half, Format: (Linear) Row major linear format }], Constants: [], Outputs: [ { Name: y [profile 1], Dimensions: [1,1,256], Strides: [256,256,1], StrideOrder: [2,1,0], Datatype: Half, Format: (Linear) Row major linear format }], TacticName: , StreamId: 0, Metadata:
"""  # noqa: E501


def test_profiles_kinds_and_bytes() -> None:
    prefill, decode = kernels(PREFILL + DECODE, 2)
    product = "node_MatMul_83+node_MatMul_81+node_MatMul_79_myl1_2"
    assert prefill == (
        Kernel(product, "gemm", None, True, False),
        Kernel("_gemm_mha_v2_myl1_10", "kgen", None, False, False),
    )
    assert decode == (
        Kernel("__myl_FcAdd_myl3_1", "runtime_fusion", 2048 * 2 + 2048 * 2560 // 2 + 2560 * 2, True, False),
        Kernel("_gemv_mha_v1_myl3_2", "kgen", 7 * 8 + 256 * 2, False, False),
    )
    assert [(kernel.attention, kernel.product) for kernel in (*prefill, *decode)] == [(False, True), (True, False)] * 2
    assert moved(prefill) is None and moved(decode) == 4096 + 2621440 + 5120 + 56 + 512


def test_work_of_a_weights_size() -> None:
    first, second = kernels(INPUT, 2, ["w"])
    assert [kernel.copy for kernel in first] == [True, True]  # the second copies the copy
    assert [(kernel.copy, kernel.product) for kernel in second] == [(True, False), (False, False), (False, True)]
    assert not any(kernel.copy for kernel in (*kernels(INPUT, 2)[0], *kernels(INPUT, 2)[1]))
