# SPDX-License-Identifier: Apache-2.0
"""The file formats of schedules and bundles. Knows no other package."""
