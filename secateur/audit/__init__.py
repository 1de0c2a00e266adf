# SPDX-License-Identifier: Apache-2.0
"""What NVIDIA's compiler makes of the graphs of a bundle, on a machine without a GPU."""
