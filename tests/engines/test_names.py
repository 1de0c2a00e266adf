# SPDX-License-Identifier: Apache-2.0
"""Every used name of other libraries exists with its signature in each supported version.

TensorRT cannot be installed everywhere, but its bindings can be read: tests/engines/names contains their names.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.engines.names.snapshot import take
from tests.engines.names.uses import KINDS, MODULES, SNAPSHOTS, Snapshot, complaints, parameters, strangers

PACKAGE = Path(__file__).parent.parent.parent / "secateur"
OBJECTS: Mapping[str, Mapping[str, str]] = {  # file, expression, class
    "engines/builder.py": {
        "self._builder": "Builder",
        "self._parser": "OnnxParser",
        "self.config": "IBuilderConfig",
        "profile": "IOptimizationProfile",
    },
    "engines/compiler.py": {"network": "INetworkDefinition"},
    "engines/device.py": {"engine": "ICudaEngine"},
    "engines/library.py:TensorRT": {"config": "IBuilderConfig", "engine": "ICudaEngine"},
    "engines/library.py:TensorRTForRTX": {
        "config": "IBuilderConfig",
        "engine": "ICudaEngine",
        "runtime_config": "IRuntimeConfig",
        "context": "IExecutionContext",
    },
    "engines/runtime_cache.py": {"config": "IRuntimeConfig", "self._cache": "IRuntimeCache"},
    "engines/worker.py": {
        "making.config": "IBuilderConfig",
        "config": "IBuilderConfig",
        "runtime": "Runtime",
        "engine": "ICudaEngine",
    },
    "runtime/device/engine.py": {
        "self.runtime": "Runtime",
        "driver.runtime": "Runtime",
        "engine": "ICudaEngine",
        "self._engine": "ICudaEngine",
        "self._context": "IExecutionContext",
    },
}
ONLY = {
    "engines/library.py:TensorRTForRTX": "tensorrt_rtx",
    "engines/runtime_cache.py": "tensorrt_rtx",
}
"""Files, and classes of a file, that use only one of the two libraries."""
OVERRIDES = {"clear", "get_error_code", "get_error_desc", "get_num_errors", "has_overflowed", "report_error"}
"""What the library calls of an IErrorRecorder; its own num_errors, which reads, is written as get_num_errors."""
SOURCES = {str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}
for _file in {name.partition(":")[0] for name in OBJECTS if ":" in name}:
    _whole = SOURCES.pop(_file)
    for _node in ast.parse(_whole).body:
        if isinstance(_node, ast.ClassDef):
            SOURCES[f"{_file}:{_node.name}"] = ast.get_source_segment(_whole, _node) or ""
PLACES = ("engines/", "runtime/backends/", "runtime/device/")
FILES = {file: source for file, source in SOURCES.items() if file.startswith(PLACES)}
IMPORTED = {"tensorrt": "tensorrt_bindings", "tensorrt_rtx": "tensorrt_rtx", "cuda": "cuda.bindings"}
WRONG = [
    "trt.NetworkDefinitionCreationFlag.STRONGLY",
    "trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH",
    "trt.BuilderFlag.FP16",
    "trt.nptypes",
    "config.max_aux_stream = 0",
    "engine.num_io_tensors = 2",
    "engine.num_io_tensors()",
    "engine.device_memory_size",
    "context.execute_async_v2(1)",
    "context.set_tensor_address(name)",
    "context.set_input_shape(name, shapes=x)",
    "config.get_timing_cache().serialise()",
    "builder.create_network(flag=1)",
    "trt.Builder()",
    "cudart.cudaMalloc()",
    "cudart.cudaMemcpyKind.cudaMemcpyHostToGpu",
    "cudart.cudaMemCpyAsync(1, 2, 3, 4, 5)",
]
RIGHT = """
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
config.max_aux_streams = 0
config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
blob = config.get_timing_cache().serialize()
context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
context.set_input_shape(name, shape=shape)
cudart.cudaMemcpyAsync(1, 2, 3, cudart.cudaMemcpyKind.cudaMemcpyHostToDevice, stream)
"""
TYPICAL = {"builder": "Builder", "config": "IBuilderConfig", "engine": "ICudaEngine", "context": "IExecutionContext"}


def test_the_snapshots_cover_the_supported_versions() -> None:
    versions = {kind: [s.version for s in SNAPSHOTS if s.kind == kind] for kind in ("tensorrt", "cuda")}
    for start in ("10.3.", "10.13.", "10.15.", "10.16.", "11."):
        assert any(version.startswith(start) for version in versions["tensorrt"])
    assert [s.version for s in SNAPSHOTS if s.kind == "tensorrt_rtx"] == ["1.7.1.116"]
    for start in ("12.6.", "13."):
        assert any(version.startswith(start) for version in versions["cuda"])


@pytest.mark.parametrize("file", FILES)
def test_names_exist_in_every_version(file: str) -> None:
    kinds = (ONLY[file], "cuda") if file in ONLY else KINDS
    assert complaints(FILES[file], OBJECTS.get(file, {}), kinds) == []


@pytest.mark.parametrize("file", ONLY)
def test_files_of_one_library_use_what_the_other_lacks(file: str) -> None:
    assert complaints(FILES[file], OBJECTS[file])


@pytest.mark.parametrize("file", FILES)
def test_the_table_names_every_object(file: str) -> None:
    """Every variable is checked, and no entry is out of date."""
    objects = OBJECTS.get(file, {})
    assert strangers(FILES[file], objects) == set()
    expressions = {ast.unparse(n.value) for n in ast.walk(ast.parse(FILES[file])) if isinstance(n, ast.Attribute)}
    assert objects.keys() <= expressions


def test_only_these_files_use_tensorrt() -> None:
    users = {file for file, source in SOURCES.items() if _uses_modules(source)}
    assert OBJECTS.keys() <= users | ONLY.keys() and users <= FILES.keys()


def _uses_modules(source: str) -> bool:
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)]
    names = {name for snapshot in SNAPSHOTS for name in snapshot.names}
    return any(ast.unparse(node.value) in MODULES and node.attr in names for node in nodes)


def test_an_error_recorder_has_all_methods() -> None:
    classes = [node for node in ast.walk(ast.parse(FILES["engines/device.py"])) if isinstance(node, ast.ClassDef)]
    recorders = [c for c in classes if any("IErrorRecorder" in ast.unparse(base) for base in c.bases)]
    assert recorders
    for recorder in recorders:
        assert {f.name for f in recorder.body if isinstance(f, ast.FunctionDef)} - {"__init__"} == OVERRIDES


@pytest.mark.parametrize("source", WRONG)
def test_a_wrong_name_is_found(source: str) -> None:
    assert complaints(source, TYPICAL)


def test_right_names_pass() -> None:
    assert complaints(RIGHT, TYPICAL) == []


@pytest.mark.parametrize("use", ["other.execute_async_v3", "other.cudaMalloc"])
def test_an_unknown_object_is_found(use: str) -> None:
    assert strangers(f"{use}(1)", TYPICAL) == {use}


@pytest.mark.parametrize("kind", IMPORTED)
def test_the_installed_bindings_agree(kind: str) -> None:
    """If the installed bindings differ from a snapshot, make a new one, see names/snapshot.py."""
    package = IMPORTED[kind]
    if kind == "tensorrt" and shutil.which("cc") is None:
        pytest.skip("there is no C compiler for the stub libraries")
    if importlib.util.find_spec(package.partition(".")[0]) is None or importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    taken = take(kind, Path(spec.origin).parents[package.count(".") + 1])
    known = [s for s in SNAPSHOTS if s.kind == kind and s.version == taken["version"]]
    assert known, f"there is no snapshot of {kind} {taken['version']}"
    assert known[0] == Snapshot(
        kind, taken["version"], frozenset(taken["names"]), taken["classes"], taken.get("functions", {})
    )


def test_used_names_of_polygraphy_exist() -> None:
    """Check imported names and the arguments of their calls."""
    pytest.importorskip("polygraphy")
    calls = [call for source in SOURCES.values() for call in polygraphy_calls(source)]
    assert calls
    for function, call in calls:
        inspect.signature(function).bind(*call.args, **{str(keyword.arg): keyword.value for keyword in call.keywords})


def test_a_wrong_call_of_polygraphy_is_found() -> None:
    pytest.importorskip("polygraphy")
    begin = "from polygraphy.comparator import Comparator\n"
    ((function, call),) = polygraphy_calls(begin + "Comparator.run(runners, loader=feeds)")
    with pytest.raises(TypeError, match="loader"):
        inspect.signature(function).bind(*call.args, **{str(keyword.arg): keyword.value for keyword in call.keywords})
    with pytest.raises(AttributeError):
        list(polygraphy_calls(begin + "Comparator.compare(runs)"))


def polygraphy_calls(source: str) -> Iterator[tuple[Any, ast.Call]]:
    """Return the calls with their arguments; raises AttributeError for a name that does not exist."""
    tree = ast.parse(source)
    imported: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "polygraphy":
            module = importlib.import_module(str(node.module))
            imported |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, *rest = ast.unparse(node.func).split(".")
            if first in imported:
                yield functools.reduce(getattr, rest, imported[first]), node


@pytest.mark.parametrize("snapshot", SNAPSHOTS, ids=lambda s: f"{s.kind}-{s.version}")
def test_the_simulation_has_no_other_names(snapshot: Snapshot, simulated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulation only has names that all versions have."""
    if snapshot.kind == "cuda":
        module = importlib.import_module("cuda.bindings.runtime")
    elif snapshot.kind == "tensorrt_rtx":
        module = importlib.import_module("tensorrt_rtx")
        assert module.__version__ == snapshot.version
    else:
        numbers = (*snapshot.version.split("."), "0")[:4]
        monkeypatch.setenv("SIMULATED_TENSORRT_VERSION", ".".join(numbers))
        module = importlib.import_module("tensorrt")
    names = set(module.__all__)
    assert names and names <= snapshot.names
    for name in names:
        value = getattr(module, name)
        if name in snapshot.classes:
            _same_members(value, snapshot.classes[name])
        elif name in snapshot.functions and snapshot.functions[name] is not None:
            assert list(inspect.signature(value).parameters) == snapshot.functions[name], name


def _same_members(kind: Any, real: Mapping[str, Any]) -> None:
    """Members of a simulated class exist in the real one, with the same kind and arguments."""
    if hasattr(kind, "__members__"):
        assert {name: int(value) for name, value in kind.__members__.items()}.items() <= real.items()
        return
    inherited = set(dir(bytearray)) if issubclass(kind, bytearray) else set()
    for name in (name for name in dir(kind) if not name.startswith("_") and name not in inherited):
        assert name in real, f"{kind.__name__}.{name}"
        value = inspect.getattr_static(kind, name)
        if isinstance(value, property):
            assert real[name] == ("set" if value.fset else "get"), f"{kind.__name__}.{name}"
        elif inspect.isfunction(value):
            given = [(p.name, p.default is not p.empty) for p in inspect.signature(value).parameters.values()]
            assert given[1:] in [parameters(line) for line in real[name]], f"{kind.__name__}.{name}"
