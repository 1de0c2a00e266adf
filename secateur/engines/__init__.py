# SPDX-License-Identifier: Apache-2.0
"""ONNX graphs of a bundle -> TensorRT plans of one device; trtexec commands and their results."""
