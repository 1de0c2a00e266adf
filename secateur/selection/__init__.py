# SPDX-License-Identifier: Apache-2.0
"""How tokens are scored and chosen, shared by the pruning methods."""
