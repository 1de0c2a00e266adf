# SPDX-License-Identifier: Apache-2.0
"""Print names and signatures of the Python bindings of TensorRT, TensorRT for RTX or CUDA's runtime API as JSON.

    pip download --no-deps tensorrt-cu12-bindings==10.3.0
    unzip -d bindings tensorrt_cu12_bindings-10.3.0-*.whl
    python tests/engines/names/snapshot.py tensorrt bindings > tests/engines/names/tensorrt-10.3.0.json

The same with `cuda` for a wheel of cuda-bindings, and with `tensorrt_rtx` for the folder of the installed package.

Needs neither TensorRT nor CUDA. TensorRT's bindings are linked against its libraries, but an import needs only the few
functions in NEEDED: libraries with these, made by `cc`, are enough to read names.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

CLASSES = (
    "Builder", "BuilderFlag", "DataType", "Dims", "EngineInspector", "ErrorCode", "ErrorCodeTRT",
    "ExecutionContextAllocationStrategy", "HardwareCompatibilityLevel", "IAttention", "IAttentionInputLayer",
    "IBuilderConfig", "ICudaEngine", "IErrorRecorder", "IExecutionContext", "IHostMemory", "ILayer", "ILogger",
    "INetworkDefinition", "IOptimizationProfile", "ITensor", "ITimingCache", "LayerInformationFormat", "LayerType",
    "Logger", "MemoryPoolType", "NetworkDefinitionCreationFlag", "OnnxParser", "OnnxParserFlag", "ParserError",
    "ProfilingVerbosity", "Runtime", "TensorIOMode", "TensorLocation",
)  # fmt: skip
"""Of TensorRT, what Secateur could use."""
RTX_CLASSES = (
    "ComputeCapability", "CudaGraphStrategy", "DynamicShapesKernelSpecializationStrategy", "IRuntimeCache",
    "IRuntimeConfig",
)  # fmt: skip
"""Of TensorRT for RTX, besides."""
RUNTIME = re.compile(
    r"cuda(Malloc|Free|Host|Mem|Stream|Event|Graph(Instantiate|Launch|Exec|Destroy)|Get|Set|Device|Runtime|Driver|Error|Success)"
)
"""Of CUDA likewise."""
MAJORS = range(10, 13)
NEEDED = ("getNvOnnxParserVersion", "getBuilderPluginRegistry", "getPluginRegistry", "initLibNvInferPlugins")

Members = dict[str, Any]


def stubs(folder: Path) -> None:
    """Create libraries named like TensorRT's, for every major version.

    Raises:
        FileNotFoundError: there is no C compiler.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        raise FileNotFoundError("cc")
    source = folder / "stub.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in NEEDED), encoding="utf-8")
    for major in MAJORS:
        for library in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
            name = f"lib{library}.so.{major}"
            command = [compiler, "-shared", "-o", str(folder / name), f"-Wl,-soname,{name}", str(source)]
            subprocess.run(command, check=True)


def tensorrt() -> Members:
    """Return version and names of the module tensorrt_bindings, after `stubs` made its libraries."""
    flags = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_LAZY)  # functions that are not called need not exist
    try:
        module = importlib.import_module("tensorrt_bindings")
    finally:
        sys.setdlopenflags(flags)
    classes = {name: members(getattr(module, name)) for name in CLASSES if hasattr(module, name)}
    return {"version": module.__version__, "names": public(module), "classes": classes}


def tensorrt_rtx() -> Members:
    """Return version and names of the module tensorrt_rtx."""
    module = importlib.import_module("tensorrt_rtx")
    every = (*CLASSES, *RTX_CLASSES)
    classes = {name: members(getattr(module, name)) for name in every if hasattr(module, name)}
    return {"version": module.__version__, "names": public(module), "classes": classes}


def cuda() -> Members:
    """Return version and names of the module cuda.bindings.runtime."""
    module = importlib.import_module("cuda.bindings.runtime")
    version = importlib.import_module("cuda.bindings").__version__
    chosen = {name: getattr(module, name) for name in dir(module) if RUNTIME.match(name)}
    functions = {name: arguments(value.__doc__) for name, value in chosen.items() if callable(value)}
    kinds = ("cudaDeviceProp", "cudaError_t", "cudaMemcpyKind", "cudaStreamCaptureMode", "cudaStreamCaptureStatus")
    classes = {name: members(getattr(module, name)) for name in kinds}
    names = sorted({*chosen, *kinds, *(name for name in dir(module) if re.fullmatch(r"cuda\w+_t", name))})
    return {"version": version, "names": names, "functions": functions, "classes": classes}


def public(module: ModuleType) -> list[str]:
    return sorted(
        name for name in dir(module) if not name.startswith("_") and not inspect.ismodule(getattr(module, name))
    )


def members(kind: Any) -> Members:
    """Return members by name: signatures of methods, "get" or "set" of attributes, "class", numbers of an enum."""
    values = getattr(kind, "__members__", None)
    if values is not None:
        return {name: int(value) for name, value in sorted(values.items())}
    found: Members = {}
    layers = "add_" if kind.__name__ == "INetworkDefinition" else "_"  # the parser adds them
    for name in ["__init__", *(name for name in dir(kind) if not name.startswith(("_", layers)))]:
        value = inspect.getattr_static(kind, name)
        if inspect.isclass(getattr(kind, name)):
            found[name] = "class"
        elif callable(getattr(kind, name)):
            if lines := signatures(name, getattr(kind, name).__doc__ or ""):
                found[name] = lines
        elif isinstance(value, property):
            found[name] = "set" if value.fset else "get"
        else:
            found[name] = "set" if hasattr(value, "__set__") else "get"
    return found


def signatures(name: str, doc: str) -> list[str]:
    """Return the signatures in a docstring of pybind11, one per overload, without module names."""
    lines = re.findall(rf"^(?:\d+\. )?({re.escape(name)}\((?!\*args).*)$", doc, re.MULTILINE)
    return [re.sub(r"\b(?:\w+\.)*tensorrt(?:_rtx)?\.", "", line) for line in lines]


def arguments(doc: str | None) -> list[str] | None:
    """Return the argument names in a docstring of cuda-python such as "cudaMemset(devPtr, int value, size_t count)"."""
    first = (doc or "").strip().split("\n")[0]
    if not (match := re.fullmatch(r"\w+\((.*)\)", first)):
        return None
    parts = filter(None, (part.strip() for part in match[1].split(",")))
    return [part.split(":")[0].split("=")[0].split()[-1] for part in parts]


def take(kind: str, folder: Path) -> Members:
    """Return the snapshot of the package in `folder`, made in a new process.

    Raises:
        FileNotFoundError: there is no C compiler.
        RuntimeError: the package cannot be imported.
    """
    with tempfile.TemporaryDirectory() as temporary:
        if kind == "tensorrt":
            stubs(Path(temporary))
        environment = os.environ | {"LD_LIBRARY_PATH": temporary, "PYTHONPATH": str(folder)}
        command = [sys.executable, __file__, kind]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    taken: Members = json.loads(done.stdout)
    return taken


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(take(sys.argv[1], Path(sys.argv[2]).resolve()), separators=(",", ":")).replace('},"', '},\n"'))
    else:
        print(json.dumps({"tensorrt": tensorrt, "tensorrt_rtx": tensorrt_rtx, "cuda": cuda}[sys.argv[1]]()))
