# SPDX-License-Identifier: Apache-2.0
"""Loggers and error recorders: how the library reports, beside returning None or False."""

from __future__ import annotations

import sys
from typing import Any

from tensorrt._enumerations import ErrorCodeTRT
from tensorrt._values import Bound, Enumeration


class Severity(Enumeration):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger(metaclass=Bound):
    """Subclasses write `log`."""

    Severity = Severity
    INTERNAL_ERROR = Severity.INTERNAL_ERROR
    ERROR = Severity.ERROR
    WARNING = Severity.WARNING
    INFO = Severity.INFO
    VERBOSE = Severity.VERBOSE

    def __init__(self) -> None:
        self._bound = True

    def log(self, severity: Any, msg: str) -> None:
        raise RuntimeError("Tried to call pure virtual function ILogger::log")


class Logger(ILogger):
    """Writes to stderr."""

    def __init__(self, min_severity: Severity = Severity.WARNING) -> None:
        ILogger.__init__(self)
        self.min_severity = min_severity

    def log(self, severity: Severity, msg: str) -> None:
        if int(severity) <= int(self.min_severity):
            print(f"[TRT] [{severity.name[0]}] {msg}", file=sys.stderr)


class IErrorRecorder(metaclass=Bound):
    """Subclasses write all methods."""

    MAX_DESC_LENGTH = 127

    def __init__(self) -> None:
        self._bound = True

    def report_error(self, arg0: ErrorCodeTRT, arg1: str) -> bool:
        raise RuntimeError("Tried to call pure virtual function IErrorRecorder::report_error")


class Reporter:
    """Where an object reports errors: always to its logger, and to its recorder if it has one."""

    __slots__ = ("logger", "recorder")

    def __init__(self, logger: ILogger, recorder: IErrorRecorder | None = None) -> None:
        if not isinstance(logger, ILogger):
            raise TypeError(f"incompatible function arguments: the logger is {type(logger).__name__}")
        self.logger = logger
        self.recorder = recorder

    def error(self, code: ErrorCodeTRT, message: str) -> None:
        described = f"Error Code {int(code)}: {message}"
        self.logger.log(Severity.ERROR, described)
        if self.recorder is not None:
            self.recorder.report_error(code, described[: IErrorRecorder.MAX_DESC_LENGTH])

    def warn(self, message: str) -> None:
        self.logger.log(Severity.WARNING, message)

    def inherit(self) -> Reporter:
        """What an object made by this one starts with."""
        return Reporter(self.logger, self.recorder)
