# SPDX-License-Identifier: Apache-2.0
"""A POSIX shell script that builds and times a bundle on a device that has TensorRT and no Python."""

from __future__ import annotations

import shlex
from pathlib import Path

from secateur.engines import trtexec
from secateur.engines.recipe import Recipe
from secateur.errors import BadOutput
from secateur.files import write_text

HEAD = """\
#!/bin/sh
# Builds the plans of a bundle with trtexec and times every graph, on a device that has TensorRT and no Python.
# Written by `secateur build --script`. Run it where it lies, beside its input files: sh THIS_FILE
#
# TRTEXEC  path of the program, if it is not found
# BUNDLE   path of the bundle's folder, if the two were moved apart
#
# A plan is kept if it is newer than its graph, this script and trtexec. The first failure ends the script.
# For steady times on a Jetson run `sudo nvpmodel -m 0 && sudo jetson_clocks` before.
# The results are for `secateur profile BUNDLE --import FOLDER`, on any machine.
set -eu

fail() {
    printf 'error: %s\\n' "$1" >&2
    exit 1
}

absolute() { # PATH
    printf '%s/%s\\n' "$(CDPATH='' cd -- "$(dirname -- "$1")" && pwd)" "$(basename -- "$1")"
}

script=$(absolute "$0")
if [ -n "${TRTEXEC:-}" ]; then
    TRTEXEC=$(command -v "$TRTEXEC") || fail "TRTEXEC names no program; set it to the path of trtexec"
    TRTEXEC=$(absolute "$TRTEXEC")
elif command -v trtexec >/dev/null; then
    TRTEXEC=$(command -v trtexec)
elif [ -x /usr/src/tensorrt/bin/trtexec ]; then
    TRTEXEC=/usr/src/tensorrt/bin/trtexec
else
    fail "trtexec was not found; install TensorRT's samples (libnvinfer-bin), or set TRTEXEC to the program"
fi
[ -z "${BUNDLE:-}" ] || BUNDLE=$(absolute "$BUNDLE")
cd -- "$(dirname -- "$script")"
[ -n "${BUNDLE:-}" ] || BUNDLE=@WAY@
[ -f "$BUNDLE/manifest.json" ] || fail "$BUNDLE is no bundle; set BUNDLE to its folder"

run() { # LOG ARGUMENT...
    log=$1
    shift
    if ! "$TRTEXEC" "$@" >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        fail "trtexec failed, see $(pwd)/$log"
    fi
}

build() { # GRAPH ONNX ARGUMENT...
    graph=$1
    onnx=$BUNDLE/$2
    shift 2
    [ -f "$onnx" ] || fail "$onnx is missing; copy the whole bundle"
    if [ -f "$graph.plan" ] && [ -f "$graph.layers.json" ] &&
        [ -z "$(find "$onnx" "$script" "$TRTEXEC" -newer "$graph.plan")" ]; then
        printf 'keep   %s\\n' "$graph"
        return
    fi
    printf 'build  %s\\n' "$graph"
    rm -f "$graph.plan"
    run "$graph.build.log" "--onnx=$onnx" "--saveEngine=$graph.plan.part" "$@"
    mv "$graph.plan.part" "$graph.plan"
}

measure() { # CASE ARGUMENT...
    printf 'time   %s\\n' "$1"
    case_name=$1
    shift
    rm -f "$case_name.times.json"
    run "$case_name.log" "$@"
    [ -s "$case_name.times.json" ] || fail "trtexec wrote no times, see $(pwd)/$case_name.log"
}
"""


def script(recipe: Recipe) -> str:
    """The text of the script, to lie in the folder of the recipe."""
    parts = [HEAD.replace("@WAY@", shlex.quote(recipe.way))]
    for graph in recipe.manifest.graphs:
        options = trtexec.build_options(graph.name, recipe.profiles[graph.name], recipe.settings)
        parts.append(_call("build", graph.name, graph.file, *options))
    for case, command in recipe.times().items():
        parts.append(_call("measure", case, *command[1:]))
    parts.append(f"printf '{len(recipe.manifest.graphs)} plans, {len(recipe.cases)} timings in %s\\n' \"$(pwd)\"")
    return "\n".join(parts) + "\n"


def write_script(recipe: Recipe, file: Path) -> None:
    """Write the script to `file` and make it executable.

    Raises:
        BadOutput: it cannot be written.
    """
    write_text(file, script(recipe))
    try:
        file.chmod(0o755)
    except OSError as problem:
        raise BadOutput(f"output {file} cannot be made executable: {problem.strerror}") from None


def _call(function: str, *words: str) -> str:
    return " \\\n    ".join([function, *map(shlex.quote, words)])
