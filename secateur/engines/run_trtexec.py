# SPDX-License-Identifier: Apache-2.0
"""Finds trtexec on this machine and runs a recipe. Unlike the script of script.py, it continues after a failure."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from secateur.bundle.atomic import write_text
from secateur.engines.build import build_lock
from secateur.engines.cases import layers
from secateur.engines.manifest import graph_files
from secateur.engines.trtexec import TRTEXEC, Recipe
from secateur.errors import BackendMissing, BadOutput
from secateur.progress import Progress

VARIABLE = "TRTEXEC"
PART = ".part"
"""Suffix of a plan that trtexec has not finished."""
USUAL = Path("/usr/src/tensorrt/bin/trtexec")


def find(given: str = "") -> Path:
    """Return the path of `given`, else of $TRTEXEC, else of trtexec on PATH, else of trtexec in TensorRT's packages.

    Raises:
        BackendMissing: it does not exist, or is not executable.
    """
    wanted = given or os.environ.get(VARIABLE, "")
    found = shutil.which(wanted or TRTEXEC) or (None if wanted else shutil.which(USUAL))
    if found is None:
        where = f"'{wanted}' is not a program" if wanted else f"trtexec is neither on PATH nor at {USUAL}"
        raise BackendMissing(
            f"{where}; install it with TensorRT (package libnvinfer-bin) or give --trtexec its path; without it, "
            "`--import` reads the results of another device and `--backend ort` times this one"
        )
    return Path(found).absolute()


def run(recipe: Recipe, program: Path, progress: Progress) -> None:
    """Build missing plans and time every case, in the folder of the recipe. trtexec's output goes to .log files.

    A plan is kept if its command is unchanged and its graph, the weights and trtexec are older. A failed command
    leaves its log and no result.

    Raises:
        BadOutput: the folder cannot be written, or another build is running there.
    """
    builds, times = recipe.builds(PART), recipe.times()
    with build_lock(recipe.folder) as lock:
        recipe.write()
        for done, (graph, command) in enumerate(builds.items()):
            progress("build", graph, done, len(builds))
            _build(recipe, graph, [str(program), *command[1:]], lock)
        progress("build", "", len(builds), len(builds))
        for done, case in enumerate(recipe.cases):
            progress("time", case.name, done, len(times))
            if _plan(recipe, case.graph).exists():
                _call([str(program), *times[case.name][1:]], recipe.folder / case.log, lock)
        progress("time", "", len(times), len(times))


def _build(recipe: Recipe, graph: str, command: Sequence[str], lock: int) -> None:
    plan, spelled = _plan(recipe, graph), recipe.folder / f"{graph}.build.txt"
    made_from = [Path(command[0])]
    made_from += [
        recipe.bundle / name for name in graph_files(recipe.manifest, recipe.bundle, recipe.manifest.graph(graph))
    ]
    same = spelled.exists() and spelled.read_text(encoding="utf-8") == shlex.join(command)
    if same and plan.exists() and (recipe.folder / layers(graph)).exists():
        if plan.stat().st_mtime > max(file.stat().st_mtime for file in made_from):
            return
    part = plan.with_name(plan.name + PART)
    for file in (spelled, plan, part):
        file.unlink(missing_ok=True)
    if _call(command, recipe.folder / f"{graph}.build.log", lock) and part.exists():
        part.replace(plan)
        write_text(spelled, shlex.join(command))


def _call(command: Sequence[str], log: Path, lock: int) -> bool:
    """Run a command in the folder of its log, and return whether it succeeded."""
    try:
        with log.open("wb") as output:
            done = subprocess.run(command, cwd=log.parent, stdout=output, stderr=subprocess.STDOUT, pass_fds=(lock,))
        return done.returncode == 0
    except OSError as problem:
        raise BadOutput(f"{command[0]} cannot be run in {log.parent}: {problem.strerror}") from None


def _plan(recipe: Recipe, graph: str) -> Path:
    return recipe.folder / f"{graph}.plan"
