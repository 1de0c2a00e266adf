# SPDX-License-Identifier: Apache-2.0
"""Secateur: calibrated vision-token pruning that ships as ONNX graphs.

calibration/   checkpoint -> statistics -> schedule.json
export/        schedule   -> decoder segments and gates -> *.onnx + manifest.json
runtime/       bundle     -> answer, with numpy and one backend
"""

__version__ = "0.1.0"
