# SPDX-License-Identifier: Apache-2.0
"""POSIX shell script that builds and times a bundle on a device that has TensorRT and no Python."""

from __future__ import annotations

import shlex
from pathlib import Path

from secateur.bundle.atomic import write_text
from secateur.engines.manifest import graph_files
from secateur.engines.trtexec import Recipe, build_options
from secateur.errors import BadOutput

HEAD = """\
#!/bin/sh
# Builds the plans of a bundle with trtexec and times every graph, on a device that has TensorRT and no Python.
# Written by `secateur build --script`. Keep it next to the folder @FOLDER@ and run it: sh THIS_FILE
#
# TRTEXEC  path of trtexec, if it is not found
# BUNDLE   path of the bundle's folder, if one of the two was moved
#
# A plan is kept if it is newer than its graph, the weights, this script and trtexec. The script stops on failure.
# For stable times on a Jetson, run `sudo nvpmodel -m 0 && sudo jetson_clocks` first.
# The results in that folder are for `secateur profile BUNDLE --import FOLDER`, on any machine.
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
elif command -v trtexec >/dev/null; then
    TRTEXEC=$(command -v trtexec)
elif [ -x /usr/src/tensorrt/bin/trtexec ]; then
    TRTEXEC=/usr/src/tensorrt/bin/trtexec
else
    fail "trtexec was not found; install TensorRT's samples (libnvinfer-bin), or set TRTEXEC to the program"
fi
TRTEXEC=$(absolute "$TRTEXEC")
[ -z "${BUNDLE:-}" ] || BUNDLE=$(absolute "$BUNDLE")
cd -- "$(dirname -- "$script")"/@FOLDER@ || fail "the folder of the input files is missing; copy it too"
[ -n "${BUNDLE:-}" ] || BUNDLE=@WAY@
[ -f "$BUNDLE/manifest.json" ] || fail "$BUNDLE is no bundle; set BUNDLE to its folder"
rm -f ./*.times.json ./*.profile.json
for log in ./*.log; do
    case $log in *.build.log) ;; *) rm -f "$log" ;; esac
done

run() { # LOG ARGUMENT...
    log=$1
    shift
    if ! "$TRTEXEC" "$@" >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        fail "trtexec failed, see $(pwd)/$log"
    fi
}

build() { # GRAPH ONNX [WEIGHTS...] --ARGUMENT...
    graph=$1
    onnx=$BUNDLE/$2
    changed=
    for file in "$graph.plan" "$graph.layers.json"; do
        [ -f "$file" ] || changed=$file
    done
    shift
    while [ "${1#--}" = "$1" ]; do
        [ -f "$BUNDLE/$1" ] || fail "$BUNDLE/$1 is missing; copy the whole bundle"
        [ -n "$changed" ] || changed=$(find -L "$BUNDLE/$1" "$script" "$TRTEXEC" -newer "$graph.plan")
        shift
    done
    if [ -z "$changed" ]; then
        printf 'keep   %s\\n' "$graph"
        return
    fi
    printf 'build  %s\\n' "$graph"
    rm -f "$graph.plan" "$graph.plan.part"
    run "$graph.build.log" "--onnx=$onnx" "--saveEngine=$graph.plan.part" "$@"
    [ -s "$graph.plan.part" ] || fail "trtexec wrote no plan, see $(pwd)/$graph.build.log"
    mv "$graph.plan.part" "$graph.plan"
}

measure() { # CASE ARGUMENT...
    printf 'time   %s\\n' "$1"
    case_name=$1
    shift
    run "$case_name.log" "$@"
    [ -s "$case_name.times.json" ] || fail "trtexec wrote no times, see $(pwd)/$case_name.log"
}
"""


def script(recipe: Recipe) -> str:
    """Return the text of the script, which must be next to the folder of the recipe."""
    head = HEAD.replace("@WAY@", shlex.quote(recipe.bundle_path)).replace("@FOLDER@", shlex.quote(recipe.folder.name))
    parts = [head]
    for graph in recipe.manifest.graphs:
        options = build_options(graph.name, recipe.profiles[graph.name], recipe.settings)
        made_from = graph_files(recipe.manifest, recipe.bundle, graph)
        parts.append(_call("build", graph.name, *made_from, *options))
    for case, command in recipe.times().items():
        parts.append(_call("measure", case, *command[1:]))
    parts.append(f"printf '{len(recipe.manifest.graphs)} plans, {len(recipe.cases)} timings in %s\\n' \"$(pwd)\"")
    return "\n".join(parts) + "\n"


def folder_of(script: Path) -> Path:
    """Return the folder for the input files and results of a script: run.files next to run.sh.

    Raises:
        BadOutput: the script has this name itself.
    """
    folder = script.with_name(f"{script.stem}.files")
    if folder == script:
        raise BadOutput(f"output {script} has the name of the folder for its files; choose another name")
    return folder.absolute()


def write_script(recipe: Recipe, file: Path) -> None:
    """Write the script to `file`, next to the folder of the recipe, and make it executable.

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
