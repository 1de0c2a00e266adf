# SPDX-License-Identifier: Apache-2.0
"""Secateur: calibrated vision-token pruning that ships as ONNX graphs and TensorRT engines.

calibration/   checkpoint -> statistics -> schedule.json
export/        schedule   -> decoder segments and gates -> *.onnx + manifest.json
engines/       bundle     -> TensorRT plans of one device
runtime/       bundle     -> answer, with numpy and one backend
"""

__version__ = "0.1.0"
