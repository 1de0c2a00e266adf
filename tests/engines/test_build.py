# SPDX-License-Identifier: Apache-2.0
"""The build on the simulated TensorRT, with real worker processes: built, kept and refused plans, remaining files."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest

from secateur.bundle.manifest import DEQUANTIZED, Quantization
from secateur.bundle.reader import Bundle, sha256
from secateur.bundle.strict_json import read_json
from secateur.engines.build import UNFINISHED, Built, _failed, build, build_lock
from secateur.engines.jobs import JobFailed
from secateur.engines.manifest import (
    ENGINES_FILE,
    TIMING_CACHE,
    BuilderSettings,
    Engines,
    Limits,
    Profile,
    plan_key,
)
from secateur.engines.platforms import Device, Platform
from secateur.engines.shapes import profiles
from secateur.engines.version import Version, check_target
from secateur.errors import BackendMissing, BadBundle, BadEngine, BadOutput, BuildFailed
from secateur.export.bundle import Exported

SIMULATION = Path(__file__).parent.parent / "simulation"
DEVICE = Device("Orin", "8.7", 16, "12.6", "12.6", "Linux-x86_64")
PLATFORM = Platform("trt", "10.3.0.30", ("87",), DEVICE)
LIMITS = Limits(1, 20, 10)
GRAPHS = ("embed", "segment_0", "btp.0")
Shapes = Mapping[str, tuple[Profile, ...]]


@dataclasses.dataclass
class Workshop:
    """A bundle of which only a few graphs are built, to save time."""

    root: Path

    @property
    def folder(self) -> Path:
        return self.root / "engines" / PLATFORM.folder

    def build(
        self,
        *graphs: str,
        limits: Limits = LIMITS,
        settings: BuilderSettings | None = None,
        platform: Platform = PLATFORM,
        past: int = 0,
    ) -> Built:
        """Build these graphs; without names, only embed."""
        bundle = Bundle.load(self.root)
        shapes = profiles(bundle.manifest, limits, "btp", past)
        few = tuple(bundle.manifest.graph(name) for name in graphs or ("embed",))
        schedules = {name: s for name, s in bundle.manifest.schedules.items() if name == "full"}
        small = dataclasses.replace(bundle.manifest, graphs=few, schedules=schedules)
        return build(
            dataclasses.replace(bundle, manifest=small), platform, shapes, limits, settings or BuilderSettings()
        )

    def read(self, file: str = ENGINES_FILE) -> Engines:
        return read_json(Engines, self.folder / file, BadEngine)

    def plan(self, graph: str) -> Path:
        return self.folder / self.read().plan(graph).file

    def change(self, graph: str) -> None:
        """Change the ONNX file but not the graph, and update its hash in the manifest."""
        manifest = Bundle.load(self.root).manifest
        path = self.root / manifest.graph(graph).file
        model = onnx.load(path, load_external_data=False)
        model.doc_string += "changed"
        path.write_bytes(model.SerializeToString())
        text = json.loads((self.root / "manifest.json").read_text())
        text["files"][manifest.graph(graph).file] = sha256(path)
        (self.root / "manifest.json").write_text(json.dumps(text))

    def leftovers(self) -> list[Path]:
        return list(self.folder.glob(".*.partial-*"))


@pytest.fixture
def workshop(trt_bundle: tuple[Path, Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    root = tmp_path / "bundle"
    shutil.copytree(trt_bundle[0], root)
    use(monkeypatch, SIMULATION)
    return Workshop(root)


def use(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    """Let the workers import from `folders` first."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(str(folder) for folder in folders))


def pretend(folder: Path, text: str) -> Path:
    """Write a module `tensorrt` that runs this text when it is imported."""
    folder.mkdir(exist_ok=True)
    (folder / "tensorrt.py").write_text(text)
    return folder


def test_builds_every_graph_once(workshop: Workshop) -> None:
    built = workshop.build(*GRAPHS)
    assert built.new == GRAPHS and built.warnings == () and built.folder == workshop.folder
    engines = workshop.read()
    assert engines == built.engines
    assert (engines.platform, engines.limits) == (PLATFORM, LIMITS)
    assert engines.flags["strongly_typed"] is True and engines.flags["workspace_mib"] == 2048
    assert engines.flags["tf32"] is False
    manifest = Bundle.load(workshop.root).manifest
    shapes = profiles(manifest, LIMITS, "btp")
    assert [plan.graph for plan in engines.plans] == list(GRAPHS)
    for plan in engines.plans:
        assert sha256(workshop.folder / plan.file) == plan.sha256
        assert plan.profiles == shapes[plan.graph]
        assert plan.source == plan_key(
            manifest, workshop.root, manifest.graph(plan.graph), plan.profiles, engines.flags
        )
        assert plan.memory > 0 and plan.seconds > 0
    assert engines.masked_past == 0
    assert not workshop.leftovers()
    before = workshop.plan("embed").stat().st_mtime_ns
    again = workshop.build(*GRAPHS)
    assert again.new == () and again.engines == engines
    assert workshop.plan("embed").stat().st_mtime_ns == before


def test_rebuilds_what_changed(workshop: Workshop) -> None:
    two, shorter = ("embed", "segment_0"), dataclasses.replace(LIMITS, new_tokens=5)
    workshop.build(*two)
    workshop.change("segment_0")
    assert workshop.build(*two).new == ("segment_0",)
    assert workshop.build(*two, limits=shorter).new == ("segment_0",)
    assert workshop.build(*two, limits=dataclasses.replace(shorter, text=15)).new == two
    assert workshop.build(settings=BuilderSettings(optimization_level=1)).new == ("embed",)


@pytest.mark.parametrize(
    "difference", [{"version": "10.16.1.7"}, {"device": dataclasses.replace(DEVICE, multiprocessors=8)}]
)
def test_each_platform_has_its_own_folder(workshop: Workshop, difference: dict[str, Any]) -> None:
    first = workshop.build()
    second = workshop.build(platform=dataclasses.replace(PLATFORM, **difference))
    assert second.new == ("embed",) and second.folder != first.folder
    shutil.copy(second.folder / ENGINES_FILE, first.folder / ENGINES_FILE)
    assert workshop.build().new == ("embed",)


def test_plans_of_the_real_compiler(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT for RTX without a GPU: its flags, and a change of the compute capabilities or the settings."""
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.delenv("PYTHONPATH")
    one, two = (Platform("rtx", "1.7.1.116", sm, None) for sm in (("86",), ("86", "89")))
    built = workshop.build(platform=one)
    assert built.new == ("embed",) and built.folder.name == "rtx-1.7.1.116-sm86"
    assert built.engines.platform == one and "optimization_level" not in built.engines.flags
    assert workshop.build(platform=one).new == ()
    assert workshop.build(platform=one, settings=BuilderSettings(optimization_level=1)).new == ()
    assert workshop.build(platform=one, settings=BuilderSettings(max_aux_streams=1)).new == ("embed",)
    assert workshop.build(platform=two).folder.name == "rtx-1.7.1.116-sm86-sm89"
    workshop.change("embed")
    assert workshop.build(platform=two).new == ("embed",)


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_a_damaged_plan_is_built_again(workshop: Workshop, damage: str) -> None:
    workshop.build()
    path = workshop.plan("embed")
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        path.unlink()
    built = workshop.build()
    assert built.new == ("embed",)
    assert built.warnings == (f"{path} is missing or damaged; it is built again",)
    assert workshop.build().new == ()


@pytest.mark.parametrize("text", ["{", '{"schema": 1}'])
def test_a_damaged_engines_file_is_replaced(workshop: Workshop, text: str) -> None:
    workshop.build()
    (workshop.folder / ENGINES_FILE).write_text(text)
    built = workshop.build()
    assert built.new == ("embed",)
    assert len(built.warnings) == 1 and "its plans are built again" in built.warnings[0]
    assert workshop.read() == built.engines


def test_a_damaged_timing_cache_is_replaced(workshop: Workshop) -> None:
    workshop.build()
    cache = workshop.folder / TIMING_CACHE
    cache.write_bytes(b"no cache at all")
    workshop.change("embed")
    built = workshop.build("embed", "btp.0")
    assert built.new == ("embed", "btp.0")
    assert built.warnings == (f"embed: {cache} is damaged or from another device; it was replaced",)


def test_a_timing_cache_that_is_a_folder(workshop: Workshop) -> None:
    (workshop.folder / TIMING_CACHE).mkdir(parents=True)
    said = f"graph 'embed': .*{workshop.folder / TIMING_CACHE} cannot be read: it is not a regular file, .*; remove it"
    with pytest.raises(BuildFailed, match=said):
        workshop.build()


def test_the_parser_names_what_it_does_not_support(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMULATED_UNSUPPORTED", "TopK")
    with pytest.raises(
        BuildFailed, match=r"graph 'btp.0': TensorRT cannot parse it: In node \d+ with name: \S+"
    ) as seen:
        workshop.build("embed", "btp.0")
    assert "\n" not in str(seen.value) and "TopK" in str(seen.value)
    assert "`secateur inspect` shows which versions can" in str(seen.value) and "--workspace" not in str(seen.value)
    assert [plan.graph for plan in workshop.read(UNFINISHED).plans] == ["embed"]
    assert not workshop.leftovers() and not list(workshop.folder.glob("btp.0*.plan"))


def test_engines_work_until_the_new_ones_are_there(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    two, shorter = ("embed", "segment_0"), dataclasses.replace(LIMITS, text=15)
    before = workshop.build(*two).engines
    monkeypatch.setenv("SIMULATED_OUT_OF_MEMORY", "segment_0")
    with pytest.raises(BuildFailed):
        workshop.build(*two, limits=shorter)
    assert workshop.read() == before
    assert all(sha256(workshop.plan(plan.graph)) == plan.sha256 for plan in before.plans)
    monkeypatch.delenv("SIMULATED_OUT_OF_MEMORY")
    built = workshop.build(*two, limits=shorter)
    assert built.new == ("segment_0",), "embed was finished before"
    assert workshop.read() == built.engines and built.engines.limits == shorter
    assert {path.name for path in workshop.folder.glob("*.plan")} == {plan.file for plan in built.engines.plans}
    assert not (workshop.folder / UNFINISHED).exists()


def test_a_worker_whose_build_was_killed_keeps_others_out(workshop: Workshop) -> None:
    workshop.build()
    with build_lock(workshop.folder) as lock:
        worker = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock,))
    with pytest.raises(BadOutput, match="another build is running"):
        workshop.build()
    worker.communicate(b"\n")
    assert workshop.build().new == ()


def test_the_worker_holds_the_lock(workshop: Workshop) -> None:
    text = """
import fcntl, json, pathlib, sys
lock = pathlib.Path(json.load(open(sys.argv[1] + "/job.json"))["plan"]).parent / ".lock"
held = [path for path in pathlib.Path("/proc/self/fd").iterdir() if path.exists() and path.samefile(lock)]
raise ImportError(f"{len(held)} locks")
"""
    fake = pretend(workshop.root / "fake", text)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(BuildFailed, match="1 locks"):
        use(patch, fake, SIMULATION)
        workshop.build()


def test_out_of_memory_names_a_remedy_and_the_next_build_continues(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMULATED_OUT_OF_MEMORY", "segment_0")
    with pytest.raises(BuildFailed, match="graph 'segment_0': TensorRT could not build it: .*OutOfMemory") as seen:
        workshop.build("embed", "segment_0")
    assert "--workspace, --optimization-level 2 (TensorRT only), and close the desktop" in str(seen.value)
    assert [plan.graph for plan in workshop.read(UNFINISHED).plans] == ["embed"]
    monkeypatch.delenv("SIMULATED_OUT_OF_MEMORY")
    assert workshop.build("embed", "segment_0").new == ("segment_0",)


def test_a_killed_worker(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
import json, os, pathlib, sys
plan = pathlib.Path(json.load(open(sys.argv[1] + "/job.json"))["plan"])
plan.with_name(f".{plan.name}.partial-{os.getpid()}").write_text("half")
os.kill(os.getpid(), 9)
"""
    use(monkeypatch, pretend(workshop.root / "fake", text), SIMULATION)
    with pytest.raises(BuildFailed, match=r"the build of 'embed' was killed \(SIGKILL\), most likely out of memory"):
        workshop.build()
    assert not workshop.leftovers() and not (workshop.folder / ENGINES_FILE).exists()


@pytest.mark.parametrize(("number", "name"), [(11, "SIGSEGV"), (40, "signal 40")])
def test_signals_are_named(number: int, name: str) -> None:
    problem = _failed("embed", JobFailed("its process ended", number), Path("a.log"))
    assert f"the build of 'embed' was killed ({name}), see a.log" in str(problem)


def test_a_crashed_worker(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, pretend(workshop.root / "fake", "raise KeyError('never heard of')"), SIMULATION)
    log = workshop.folder / "embed.build.log"
    with pytest.raises(
        BuildFailed,
        match=f"graph 'embed': its process ended with exit code 1: KeyError: 'never heard of'; the log is {log}",
    ):
        workshop.build()
    assert "never heard of" in log.read_text()


def test_an_interrupted_build_leaves_no_worker(workshop: Workshop) -> None:
    text = """
import sys, time
__version__ = "10.3.0.30"
if sys.argv[0].endswith("worker.py"):
    print("started", flush=True)
    time.sleep(60)
"""
    fake = pretend(workshop.root / "fake", text)
    environment = os.environ | {"PYTHONPATH": f"{fake}{os.pathsep}{SIMULATION}"}
    command = [sys.executable, "-m", "secateur", "build", str(workshop.root)]
    with subprocess.Popen(
        command,
        env=environment,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    ) as process:
        deadline = time.monotonic() + 60
        while not any("started" in log.read_text() for log in workshop.root.glob("engines/*/*.build.log")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and errors.strip() == "secateur: interrupted"
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert not list(workshop.root.glob(f"engines/*/{ENGINES_FILE}"))
    assert not list(workshop.root.glob("engines/*/.*.partial-*"))


def test_one_build_at_a_time(workshop: Workshop) -> None:
    workshop.build()
    with (workshop.folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BadOutput, match=f"another build is running in {workshop.folder}; wait until it ends"):
            workshop.build()
    assert workshop.build().new == ()


def test_partial_files_of_a_killed_build_are_removed(workshop: Workshop) -> None:
    workshop.folder.mkdir(parents=True)
    (workshop.folder / ".embed.plan.partial-1").write_text("half")
    workshop.build()
    assert not workshop.leftovers()


def test_version_eleven(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMULATED_TENSORRT_VERSION", "11.1.0.106")
    assert workshop.build(platform=dataclasses.replace(PLATFORM, version="11.1.0.106")).new == ("embed",)


def test_tensorrt_that_cannot_be_loaded(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "raise ImportError('libnvinfer.so.10: cannot open shared object file')"
    use(monkeypatch, pretend(workshop.root / "fake", text), SIMULATION)
    with pytest.raises(BuildFailed, match=r"TensorRT cannot be loaded \(libnvinfer.so.10: cannot open"):
        workshop.build()


def test_targets(trt_bundle: tuple[Path, Exported]) -> None:
    manifest = trt_bundle[1].manifest
    check_target(manifest)
    check_target(manifest, Version(11, 1))
    with pytest.raises(BadBundle, match="needs TensorRT 10.3, this is 10.2; install TensorRT 10.3 or later"):
        check_target(manifest, Version(10, 2))
    newer = dataclasses.replace(manifest, opset=21, quantization=Quantization("int4", 128, True, DEQUANTIZED))
    check_target(newer, Version(10, 15))
    with pytest.raises(BadBundle, match=r"weights as int4 need TensorRT 10.15, this is 10.3; export without --quant"):
        check_target(newer, Version(10, 3))
    for target in ("cpu", "cuda", "tensorrt-10.15"):
        with pytest.raises(BadBundle, match=f"for the target '{target}', not for TensorRT; export it with --target"):
            check_target(dataclasses.replace(manifest, target=target))


def test_the_plan_key_depends_on_everything_a_plan_is_built_from(trt_bundle: tuple[Path, Exported]) -> None:
    root, manifest = trt_bundle[0], trt_bundle[1].manifest
    graph = manifest.graph("segment_0")
    shapes = profiles(manifest, LIMITS, "btp")[graph.name]
    another = dataclasses.replace(manifest, files=manifest.files | {graph.file: "another"})
    made = {
        plan_key(manifest, root, graph, shapes, {"level": 3}),
        plan_key(manifest, root, graph, shapes, {"level": 2}),
        plan_key(manifest, root, graph, shapes[:1], {"level": 3}),
        plan_key(manifest, root, manifest.graph("segment_1"), shapes, {"level": 3}),
        plan_key(another, root, graph, shapes, {"level": 3}),
    }
    assert len(made) == 5
    assert plan_key(manifest, root, graph, tuple(shapes), {"level": 3}) in made


def test_a_version_that_refuses_an_empty_past(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """One masked row avoids it, and engines.json tells the runtime about it."""
    monkeypatch.setenv("SIMULATED_REFUSES_EMPTY", "1")
    with pytest.raises(
        BuildFailed, match="may be empty; if this TensorRT does not support empty tensors, build with --masked-past"
    ):
        workshop.build("segment_0")
    assert workshop.build("segment_0", past=1).engines.masked_past == 1
    assert workshop.read().masked_past == 1


def test_device_without_libraries(tmp_path: Path) -> None:
    """In a separate process: this one may have imported TensorRT."""
    fake = pretend(tmp_path / "fake", "raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    code = "from secateur.engines.library import TensorRT; TensorRT()"
    environment = os.environ | {"PYTHONPATH": str(fake)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert BackendMissing.__name__ in last and "TensorRT cannot be loaded (libnvinfer.so.10" in last
    assert "--backend ort" in last and "--dry-run" in last
