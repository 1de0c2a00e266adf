# SPDX-License-Identifier: Apache-2.0
"""Find the plans of a bundle for a device, and check that they are undamaged and match the graphs."""

from __future__ import annotations

import hashlib
from mmap import ACCESS_READ, mmap

from secateur.bundle.manifest import GraphSpec
from secateur.bundle.reader import Bundle
from secateur.bundle.strict_json import read_json
from secateur.engines.manifest import ENGINES, ENGINES_FILE, MEND, Device, EnginePlan, Engines, plan_key
from secateur.errors import BadEngine


class Plans:
    """Contents of BUNDLE/engines/<device>/engines.json, and the plans beside it.

    Raises:
        BadEngine: there is none for this device and TensorRT version, or it is damaged.
    """

    def __init__(self, bundle: Bundle, device: Device) -> None:
        self._manifest, self._root = bundle.manifest, bundle.root
        self._folder = bundle.root / ENGINES / device.folder
        file = self._folder / ENGINES_FILE
        if not file.is_file():
            others = sorted(found.parent.name for found in (bundle.root / ENGINES).glob(f"*/{ENGINES_FILE}"))
            there = f"only for {', '.join(others)}" if others else "nor for any other device"
            raise BadEngine(f"{bundle.root} has no engines for {device.folder}, {there}; {MEND}")
        try:
            self.engines = read_json(Engines, file, BadEngine)
        except BadEngine as problem:
            raise BadEngine(f"{problem}; {MEND}") from None
        if difference := self.engines.device.differs(device):
            raise BadEngine(f"the engines in {self._folder} were built for {difference}; {MEND}")

    def read(self, graph: GraphSpec) -> tuple[EnginePlan, mmap]:
        """Return the plan of `graph`, and its memory-mapped file, which may have gigabytes.

        Raises:
            BadEngine: the plan is missing, damaged, or from another export of the bundle.
        """
        plan = self.engines.plan(graph.name)
        path = self._folder / plan.file
        if plan.source != plan_key(self._manifest, self._root, graph, plan.profiles, self.engines.flags):
            raise BadEngine(f"{path} was built from another export of this bundle; {MEND}")
        try:
            with path.open("rb") as file:
                blob = mmap(file.fileno(), 0, access=ACCESS_READ)
        except OSError as problem:
            raise BadEngine(f"{path} cannot be read ({problem.strerror}); {MEND}") from None
        except ValueError:
            raise BadEngine(f"{path} is empty; {MEND}") from None
        if hashlib.sha256(blob).hexdigest() != plan.sha256:
            raise BadEngine(f"{path} is damaged or truncated: its sha256 is not that of {ENGINES_FILE}; {MEND}")
        return plan, blob
