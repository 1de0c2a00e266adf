# SPDX-License-Identifier: Apache-2.0
"""All trtexec commands for a bundle in execution order, and their input files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from secateur.bundle.atomic import write_text
from secateur.bundle.manifest import Manifest
from secateur.bundle.strict_json import to_json
from secateur.engines import inputs, trtexec
from secateur.engines.cases import CASES_FILE, Case, Cases
from secateur.engines.manifest import ENGINES, BuilderSettings, Profile
from secateur.engines.plan_key import identity
from secateur.engines.shapes import dynamic
from secateur.errors import BadMeasurement, BadOutput

FOLDER = f"{ENGINES}/{trtexec.TRTEXEC}"
"""Default working folder of the commands, relative to the bundle."""


@dataclass(frozen=True)
class Recipe:
    """Plans to build and cases to time.

    folder  working folder of the commands, with plans, inputs and results
    bundle  absolute folder of the bundle
    """

    manifest: Manifest
    profiles: Mapping[str, tuple[Profile, ...]]
    cases: tuple[Case, ...]
    settings: BuilderSettings
    folder: Path
    bundle: Path

    def builds(self, ending: str = "") -> dict[str, list[str]]:
        """Return the build command of each graph; the plan is called <graph>.plan plus this ending."""
        return {
            graph.name: trtexec.build(
                graph.name,
                f"{self.way}/{graph.file}",
                f"{graph.name}.plan{ending}",
                self.profiles[graph.name],
                self.settings,
            )
            for graph in self.manifest.graphs
        }

    def times(self) -> dict[str, list[str]]:
        """Return the timing command of each case."""
        return {
            case.name: trtexec.time(
                case,
                f"{case.graph}.plan",
                dynamic(self.manifest.graph(case.graph)),
                inputs.files(self.manifest, case),
                len(self.profiles[case.graph]),
            )
            for case in self.cases
        }

    @property
    def way(self) -> str:
        """Relative path from `folder` to the bundle."""
        return Path(os.path.relpath(self.bundle, self.folder.resolve())).as_posix()

    def write(self, fresh: bool = True) -> None:
        """Write the input files and cases.json into `folder`, and remove the results of previous timings.

        fresh  remove previous results of the same cases and the same bundle too

        Raises:
            BadOutput: a file cannot be written.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise BadOutput(f"output {self.folder} is not a folder; choose another one")
        new, old = Cases(identity(self.manifest), self.cases), None
        with suppress(BadMeasurement):
            old = Cases.read(self.folder)
        if old == new and not fresh:
            return
        for case in (*(old.cases if old else ()), *self.cases):
            shutil.rmtree(self.folder / case.inputs, ignore_errors=True)
            for file in (case.times, case.layer_times, case.log):
                with suppress(OSError):
                    (self.folder / file).unlink()
        for case in self.cases:
            inputs.write(self.manifest, case, self.folder)
        write_text(self.folder / CASES_FILE, to_json(new))
