# SPDX-License-Identifier: Apache-2.0
"""One file per kind of questions; the file name is what the user types behind --task."""
