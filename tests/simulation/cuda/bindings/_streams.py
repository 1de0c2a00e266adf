# SPDX-License-Identifier: Apache-2.0
"""Streams, events, and the recording of a stream as a graph."""

from __future__ import annotations

from simulated import counters, device
from simulated.device import Event, Stream, Work
from simulated.faults import Fault, Refused

from cuda.bindings._call import call, stream_of
from cuda.bindings._types import (
    cudaEvent_t,
    cudaGraph_t,
    cudaGraphExec_t,
    cudaStream_t,
    cudaStreamCaptureMode,
    cudaStreamCaptureStatus,
)

cudaStreamDefault = 0
cudaStreamNonBlocking = 1
cudaEventDefault = 0
cudaEventBlockingSync = 1
cudaEventDisableTiming = 2


@call
def cudaStreamCreate() -> cudaStream_t:
    return _new_stream(blocking=True)


@call
def cudaStreamCreateWithFlags(flags: int) -> cudaStream_t:
    return _new_stream(blocking=flags != cudaStreamNonBlocking)


def _new_stream(blocking: bool) -> cudaStream_t:
    handle = device.handle()
    device.streams[handle] = Stream(blocking)
    return cudaStream_t(handle)


@call
def cudaStreamDestroy(stream: cudaStream_t) -> None:
    if stream_of(stream).waiting:
        raise Fault("a stream is destroyed while its work waits")
    del device.streams[int(stream)]


@call
def cudaStreamSynchronize(stream: cudaStream_t) -> None:
    device.outside_capture()
    counters.syncs += 1
    stream_of(stream).run()


@call
def cudaStreamWaitEvent(stream: cudaStream_t, event: cudaEvent_t, flags: int) -> None:
    found = device.event(int(event))
    stream_of(stream).submit(Work("a wait", lambda: device.reach(found)))


@call
def cudaEventCreate() -> cudaEvent_t:
    return _new_event(cudaEventDefault)


@call
def cudaEventCreateWithFlags(flags: int) -> cudaEvent_t:
    return _new_event(flags)


def _new_event(flags: int) -> cudaEvent_t:
    handle = device.handle()
    device.events[handle] = Event(timing=not flags & cudaEventDisableTiming)
    return cudaEvent_t(handle)


@call
def cudaEventDestroy(event: cudaEvent_t) -> None:
    device.event(int(event))
    del device.events[int(event)]


@call
def cudaEventRecord(event: cudaEvent_t, stream: cudaStream_t) -> None:
    device.record(device.event(int(event)), stream_of(stream))


@call
def cudaEventSynchronize(event: cudaEvent_t) -> None:
    device.outside_capture()
    counters.syncs += 1
    device.reach(device.event(int(event)))


@call
def cudaEventElapsedTime(start: cudaEvent_t, end: cudaEvent_t) -> float:
    first, last = device.event(int(start)), device.event(int(end))
    if first.captured or last.captured:
        raise Refused("cudaErrorCapturedEvent")
    if not (first.timing and last.timing and first.stream and last.stream):
        raise Refused("cudaErrorInvalidResourceHandle")
    if first.at is None or last.at is None:
        raise Refused("cudaErrorNotReady")
    return (last.at - first.at) * 1e3


@call
def cudaStreamBeginCapture(stream: cudaStream_t, mode: cudaStreamCaptureMode) -> None:
    device.begin_capture(stream_of(stream))


@call
def cudaStreamIsCapturing(stream: cudaStream_t) -> cudaStreamCaptureStatus:
    capture = stream_of(stream).capture
    if capture is None:
        return cudaStreamCaptureStatus.cudaStreamCaptureStatusNone
    if capture.valid:
        return cudaStreamCaptureStatus.cudaStreamCaptureStatusActive
    return cudaStreamCaptureStatus.cudaStreamCaptureStatusInvalidated


@call
def cudaStreamEndCapture(stream: cudaStream_t) -> cudaGraph_t:
    handle = device.handle()
    device.graphs[handle] = device.end_capture(stream_of(stream))
    return cudaGraph_t(handle)


@call
def cudaGraphInstantiate(graph: cudaGraph_t, flags: int) -> cudaGraphExec_t:
    if int(graph) not in device.graphs:
        raise Refused("cudaErrorInvalidValue")
    handle = device.handle()
    device.instances[handle] = device.graphs[int(graph)]
    return cudaGraphExec_t(handle)


@call
def cudaGraphLaunch(graphExec: cudaGraphExec_t, stream: cudaStream_t) -> None:
    if int(graphExec) not in device.instances:
        raise Refused("cudaErrorInvalidValue")
    counters.launches += 1
    for work in device.instances[int(graphExec)].work:
        device.submit(stream_of(stream), work)


@call
def cudaGraphExecDestroy(graphExec: cudaGraphExec_t) -> None:
    if device.instances.pop(int(graphExec), None) is None:
        raise Refused("cudaErrorInvalidValue")


@call
def cudaGraphDestroy(graph: cudaGraph_t) -> None:
    if device.graphs.pop(int(graph), None) is None:
        raise Refused("cudaErrorInvalidValue")
