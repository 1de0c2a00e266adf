# SPDX-License-Identifier: Apache-2.0
"""Model families: one file each, named after the checkpoint's model_type."""
