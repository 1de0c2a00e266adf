# SPDX-License-Identifier: Apache-2.0
"""Where the time goes: every graph and the whole chain, measured here or by trtexec, in one report."""
