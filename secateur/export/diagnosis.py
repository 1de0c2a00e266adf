# SPDX-License-Identifier: Apache-2.0
"""Why a check after an export failed, in one line: values out of range, other kept tokens, or a wrong graph."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from secateur.bundle.graph_plan import runs
from secateur.bundle.reader import Bundle
from secateur.errors import SecateurError
from secateur.export.comparison import example
from secateur.export.parity import MODEL, Parity, walks
from secateur.families.base import Family
from secateur.runtime.backends import ort
from secateur.runtime.backends import torch as eager
from secateur.runtime.chain import Chain
from secateur.runtime.range_check import RangeCheck

REPORT = "please report it with the model and `pip freeze`"


def diagnose(bundle: Bundle, family: Family, parity: Sequence[Parity]) -> str:
    """Return the cause of the failed checks and a mend; `parity` has at least one that failed, the worst first."""
    failed, dtype = [each for each in parity if not each.passed], bundle.manifest.dtype
    counted = f"{len(failed)} of {len(parity)} checks fail"
    if dtype != "fp32" and (found := _out_of_range(bundle, family)):
        return f"{counted}: {found}"
    worst = f"{failed[0].name}, error {failed[0].error:.2e} over {failed[0].tolerance:.0e}"
    own = next((each for each in failed if each.name.startswith(MODEL)), None)
    if own is not None:
        return (
            f"{counted}: the decoder's segments differ from the model's own forward pass (error {own.error:.2e} over "
            f"{own.tolerance:.0e}), so a bundle of this model would be wrong; {REPORT}"
        )
    if dtype != "fp32":
        return f"{counted}; worst: {worst}; export with --dtype fp32; if that fails too, {REPORT}"
    return f"{counted}; worst: {worst}: a graph does not compute what torch computes; {REPORT}"


def _out_of_range(bundle: Bundle, family: Family) -> str:
    """Run every schedule and return the first value that its dtype cannot hold: graph, tensor and row; "" if none."""
    kinds = (eager,) if bundle.manifest.dtype == "bf16" else (ort, eager)
    for kind in kinds:
        with closing(ort.Backend(bundle) if kind is ort else eager.Backend(bundle, family=family)) as backend:
            watched = RangeCheck(backend, bundle.manifest, share=1.0)
            for run in runs(bundle.manifest).values():
                given = example(run.manifest, bundle.prompt)
                try:
                    walks(Chain(run.manifest, watched), given, bundle.prompt, run.schedule)
                except SecateurError:
                    if watched.found is None:
                        raise
                    return str(watched.found)
    return ""
