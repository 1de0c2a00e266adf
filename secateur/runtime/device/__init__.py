# SPDX-License-Identifier: Apache-2.0
"""CUDA devices: streams, memory, buffers, engines and recorded steps, used by the backends."""
