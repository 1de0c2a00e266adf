# SPDX-License-Identifier: Apache-2.0
"""What pruning costs and what it gains: accuracy on held-out questions, and prefill time."""
