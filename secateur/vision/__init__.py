# SPDX-License-Identifier: Apache-2.0
"""Vision encoders and image preprocessing, shared by the model families."""
