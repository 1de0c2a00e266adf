# SPDX-License-Identifier: Apache-2.0
from tests.model_fixtures.gates import exported, exported_slots, measured, random_rows, site

__all__ = ["exported", "exported_slots", "measured", "random_rows", "site"]
