# SPDX-License-Identifier: Apache-2.0
"""Flags of trtexec by TensorRT version.

Source: samples/common/sampleOptions.cpp of the branches release/10.3, 10.13, 10.16, 11.0 and 11.1 of NVIDIA/TensorRT.
An unknown flag ends trtexec with "Unknown option". The commands of trtexec.py use flags of all versions.
"""

from __future__ import annotations

from secateur.engines.version import Version

BUILD = """--onnx --saveEngine --stronglyTyped --minShapes --optShapes --maxShapes --profile --memPoolSize
--timingCacheFile --noBuilderCache --errorOnTimingCacheMiss --builderOptimizationLevel --maxAuxStreams
--profilingVerbosity --versionCompatible --hardwareCompatibilityLevel --stripWeights --stripAllWeights --refit
--allowWeightStreaming --noTF32 --skipInference --tempdir""".split()
RUN = """--loadEngine --shapes --useProfile --weightStreamingBudget --allocationStrategy --iterations --warmUp
--duration --sleepTime --idleTime --infStreams --useCudaGraph --noDataTransfers --useSpinWait --separateProfileRun
--useManagedMemory --exposeDMA --loadInputs --avgRuns --percentile --device --verbose""".split()
REPORT = """--dumpProfile --dumpLayerInfo --dumpOptimizationProfile --exportTimes --exportProfile --exportLayerInfo
--exportOutput --dumpOutput --dumpRawBindingsToFile --getPlanVersionOnly""".split()
PLUGINS = "--staticPlugins --dynamicPlugins --setPluginsToSerialize".split()

ADDED = {
    Version(10, 13): """--maxTactics --tilingOptimizationLevel --l2LimitForTiling --asyncFileReader
--markUnfusedTensorsAsDebugTensors --saveAllDebugTensors""".split(),
    Version(10, 16): """--decomposableAttentions --refitFromOnnx --cpuOnly --enablePluginOverride --adjustForDLA
--reportCapabilityDLA""".split(),
    Version(11, 0): "--includeDataTransfers --noCudaGraph --noSpinWait".split(),
    Version(11, 1): "--loadRefOutputs --refPair --accuracyAlgorithm --accuracyThreshold --atol --rtol".split(),
}
BEFORE_11 = """--fp16 --bf16 --fp8 --int8 --int4 --best --calib --calibProfile --minShapesCalib --optShapesCalib
--maxShapesCalib --precisionConstraints --layerPrecisions --layerOutputTypes --restricted --weightless""".split()
"""Accepted up to 10.16, removed in 11.0: the graph defines the precision."""
IDLE_FROM_11 = "--stronglyTyped --useCudaGraph --noDataTransfers --useSpinWait --separateProfileRun --directIO".split()
"""Default since 11.0; accepted with a warning."""


def known(version: Version) -> frozenset[str]:
    """Return the flags that trtexec accepts in a version from 10.3 on."""
    flags = {*BUILD, *RUN, *REPORT, *PLUGINS, "--directIO"}
    for since, added in ADDED.items():
        if version >= since:
            flags.update(added)
    return frozenset(flags | set(BEFORE_11) if version < Version(11, 0) else flags)
