# SPDX-License-Identifier: Apache-2.0
"""Profile of every graph and of whole chains, timed in this process or by trtexec, with a report."""
