# SPDX-License-Identifier: Apache-2.0
"""A device in host memory, shared by the simulated libraries beside this package: CUDA, TensorRT, TensorRT for RTX.

It is strict instead of fast. Work on a stream waits until somebody synchronises, new memory holds 0xFF, and what would
be undefined on a real device (a range outside an allocation, memory freed while work still needs it) raises Fault. What
a real device reports is reported the same way: an error code, None or False.
"""

from __future__ import annotations

from simulated.device import Counters, Device
from simulated.faults import Fault, Refused

__all__ = ["Counters", "Device", "Fault", "Refused", "counters", "device"]

device = Device()
counters = device.counters
