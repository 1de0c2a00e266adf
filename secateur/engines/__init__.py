# SPDX-License-Identifier: Apache-2.0
"""TensorRT plans of a bundle for one device, and trtexec commands with their results."""
