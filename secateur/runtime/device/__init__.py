# SPDX-License-Identifier: Apache-2.0
"""CUDA devices: streams, memory, engines and recorded steps, shared by the backends."""
