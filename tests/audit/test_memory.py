# SPDX-License-Identifier: Apache-2.0
"""The computed memory of a bundle equals what the runtime allocates."""

from __future__ import annotations

from pathlib import Path

import pytest

from secateur.audit.memory import cached_bytes, device_memory
from secateur.audit.results import GraphAudit, ProfileAudit
from secateur.bundle.reader import Bundle
from secateur.engines.manifest import Limits
from secateur.export.bundle import Exported
from secateur.runtime.backends.ort import Backend
from secateur.runtime.chain import Chain

Trt = tuple[Path, Exported]


@pytest.mark.parametrize("batch", [1, 2])
def test_the_cache_is_that_of_the_runtime(trt_bundle: Trt, batch: int) -> None:
    bundle = Bundle.load(trt_bundle[0], verify=False)
    manifest, backend = bundle.manifest, Backend(bundle)
    chain = Chain(manifest, backend)
    sizes = {name: chain.cache(batch, 100, name).bytes for name in manifest.schedules}
    backend.close()
    assert sizes["btp"] < sizes["full"]
    assert {name: batch * cached_bytes(manifest, name, 100) for name in manifest.schedules} == sizes


def test_weights_are_counted_once(trt_bundle: Trt) -> None:
    bundle = Bundle.load(trt_bundle[0], verify=False)
    used = {weight.file for weight in bundle.manifest.weights}
    assert len(used) < len(bundle.manifest.weights)
    graphs = [
        GraphAudit(name, "", 0, 50, (ProfileAudit("all", {}, 1, 0, 0, (), scratch, None, None, ()),))
        for name, scratch in (("embed", 300), ("btp.0", 700))
    ]
    found = device_memory(bundle, Limits(1, 20, 10), graphs)
    full, btp = found["full"], found["btp"]
    assert full.weights == btp.weights == sum(bundle.path(file).stat().st_size for file in used)
    assert (full.plans, full.activations) == (50, 300), "without the gate"
    assert (btp.plans, btp.activations) == (100, 700)
    assert btp.total == btp.weights + 800 + btp.cache and btp.cache < full.cache
