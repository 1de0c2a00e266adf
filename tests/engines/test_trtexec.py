# SPDX-License-Identifier: Apache-2.0
"""The commands, compared with the flags of each version and with trtexec's grammar."""

from __future__ import annotations

from pathlib import Path

import pytest

from secateur.engines import trtexec
from secateur.engines.cases import Case, input_files
from secateur.engines.manifest import BuilderSettings, Limits, Profile, Range
from secateur.engines.shapes import cases, dynamic, profiles
from secateur.engines.trtexec import Recipe
from secateur.engines.version import Version
from secateur.export.bundle import Exported
from tests.engines.flags import BEFORE_11, IDLE_FROM_11, known

VERSIONS = [Version(10, 3), Version(10, 13), Version(10, 16), Version(11, 0), Version(11, 1), Version(11, 4)]
Shapes = dict[str, tuple[int, ...]]


@pytest.fixture(scope="module")
def recipe(trt_bundle: tuple[Path, Exported], tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder, exported = trt_bundle
    manifest, limits = exported.manifest, Limits(1, 40, 20)
    out = tmp_path_factory.mktemp("a folder, with: 'odd' letters")
    return Recipe(manifest, profiles(manifest, limits, "btp"), cases(manifest, limits), BuilderSettings(), out, folder)


def parse_shapes(text: str) -> Shapes:
    """Parse shapes like trtexec: split at commas, at the last colon, at x."""
    made = {}
    for part in text.split(","):
        name, _, shape = part.rpartition(":")
        assert not {"'", ":", ","} & set(name)
        made[name] = tuple(int(size) for size in shape.split("x"))
    return made


def parse_profiles(command: list[str]) -> list[list[Shapes]]:
    """Return min, opt and max of each profile; its ranges must directly follow --profile=N."""
    flags = [word.partition("=") for word in command]
    starts = [i for i, (flag, _, _) in enumerate(flags) if flag == "--profile"]
    if not starts:
        first = [i for i, (flag, _, _) in enumerate(flags) if flag == "--minShapes"]
        starts = [first[0] - 1] if first else []
    else:
        assert [flags[i][2] for i in starts] == [str(n) for n in range(len(starts))]
    found = []
    for start in starts:
        following = flags[start + 1 : start + 4]
        assert [flag for flag, _, _ in following] == ["--minShapes", "--optShapes", "--maxShapes"]
        found.append([parse_shapes(value) for _, _, value in following])
    assert sum(flag.endswith("Shapes") for flag, _, _ in flags) == 3 * len(starts)
    return found


@pytest.mark.parametrize("version", VERSIONS, ids=str)
def test_every_version_has_every_flag(recipe: Recipe, version: Version) -> None:
    for command in [*recipe.builds().values(), *recipe.times().values()]:
        program, *flags = command
        assert program == "trtexec"
        assert not {flag.partition("=")[0] for flag in flags} - known(version)


def test_the_table_of_flags() -> None:
    old, new = known(Version(10, 3)), known(Version(11, 1))
    assert old - new == set(BEFORE_11)
    assert {"--noCudaGraph", "--maxTactics"} <= new - old
    assert known(Version(10, 13)) - old == {
        "--maxTactics",
        "--tilingOptimizationLevel",
        "--l2LimitForTiling",
        "--asyncFileReader",
        "--markUnfusedTensorsAsDebugTensors",
        "--saveAllDebugTensors",
    }
    assert set(IDLE_FROM_11) <= old & new


def test_build_commands_have_the_profiles(recipe: Recipe) -> None:
    for graph, command in recipe.builds().items():
        stated = parse_profiles(command)
        assert len(stated) == len(recipe.profiles[graph])
        for shapes, profile in zip(stated, recipe.profiles[graph], strict=True):
            for which, found in zip(("min", "opt", "max"), shapes, strict=True):
                assert found == {name: getattr(r, which) for name, r in profile.ranges.items()}


def test_build_command() -> None:
    ranges = {"past_key.0": Range((0, 1, 2), (0, 1, 2), (9, 1, 2)), "x": Range((1,), (1,), (1,))}
    made = trtexec.build(
        "g", "../g.onnx", "g.plan", [Profile("a", ranges), Profile("b", ranges)], BuilderSettings(100, 2, 1)
    )
    shapes = ["past_key.0:0x1x2,x:1", "past_key.0:0x1x2,x:1", "past_key.0:9x1x2,x:1"]
    per_profile = [f"--{which}Shapes={text}" for which, text in zip(("min", "opt", "max"), shapes, strict=True)]
    assert made == [
        "trtexec",
        "--onnx=../g.onnx",
        "--saveEngine=g.plan",
        "--stronglyTyped",
        "--noTF32",
        "--memPoolSize=workspace:100M",
        "--timingCacheFile=timing.cache",
        "--builderOptimizationLevel=2",
        "--maxAuxStreams=1",
        "--profilingVerbosity=detailed",
        "--skipInference",
        "--exportLayerInfo=g.layers.json",
        "--profile=0",
        *per_profile,
        "--profile=1",
        *per_profile,
    ]
    assert "--profile=0" not in trtexec.build("g", "g.onnx", "g.plan", [Profile("all", ranges)], BuilderSettings())


def test_time_command() -> None:
    case = Case("s.decode-P7-S1", "s", "decode", 1, {"x": (1, 2), "fixed": (4,)}, ("full",))
    made = trtexec.time(case, "s.plan", ["x"], {"x": "s.inputs/x.bin"}, 2)
    assert made[1:5] == ["--loadEngine=s.plan", "--useProfile=1", "--shapes=x:1x2", "--loadInputs=x:s.inputs/x.bin"]
    assert set(made[5:]) == {
        "--useCudaGraph",
        "--noDataTransfers",
        "--useSpinWait",
        "--separateProfileRun",
        "--warmUp=500",
        "--duration=10",
        "--iterations=200",
        "--avgRuns=1",
        "--percentile=50,90,95,99",
        "--exportTimes=s.decode-P7-S1.times.json",
        "--exportProfile=s.decode-P7-S1.profile.json",
    }
    plain = trtexec.time(case, "s.plan", [], {}, 1)
    assert not {word.partition("=")[0] for word in plain} & {"--useProfile", "--shapes", "--loadInputs"}


def test_time_commands_have_every_dynamic_and_integer_input(recipe: Recipe) -> None:
    commands = recipe.times()
    assert list(commands) == [case.name for case in recipe.cases]
    for case in recipe.cases:
        graph = recipe.manifest.graph(case.graph)
        options = dict(word.split("=", 1) for word in commands[case.name][1:] if "=" in word)
        assert parse_shapes(options["--shapes"]) == {name: case.shapes[name] for name in dynamic(graph)}
        assert options["--loadEngine"] == f"{case.graph}.plan"
        assert options.get("--useProfile", "0") == str(case.profile)
        loaded = dict(part.rsplit(":", 1) for part in options.get("--loadInputs", "").split(",") if part)
        integers = {spec.name for spec in graph.inputs if spec.dtype == "int64" and 0 not in case.shapes[spec.name]}
        assert loaded == input_files(recipe.manifest, case) and set(loaded) == integers


def test_paths_lead_to_the_bundle(recipe: Recipe) -> None:
    for graph, command in recipe.builds().items():
        onnx = recipe.folder / command[1].removeprefix("--onnx=")
        assert onnx.resolve() == (recipe.bundle / recipe.manifest.graph(graph).file).resolve()
