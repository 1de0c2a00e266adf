# SPDX-License-Identifier: Apache-2.0
"""TensorRT's own error messages, which it would only print."""

from __future__ import annotations

from typing import Any

Recorder = Any
"""A trt.IErrorRecorder with `texts`: messages in order."""


def recorder(trt: Any) -> Recorder:
    """A new recorder, to be set as `error_recorder` of a builder, runtime, engine or context.

    trt  the module tensorrt
    """

    class Texts(trt.IErrorRecorder):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IErrorRecorder.__init__(self)
            self.texts: list[tuple[Any, str]] = []

        def get_num_errors(self) -> int:
            return len(self.texts)

        def get_error_code(self, index: int) -> Any:
            return self.texts[index][0]

        def get_error_desc(self, index: int) -> str:
            return self.texts[index][1]

        def has_overflowed(self) -> bool:
            return False

        def clear(self) -> None:
            self.texts.clear()

        def report_error(self, code: Any, description: str) -> bool:
            self.texts.append((code, description))
            return False  # this is no request to stop

    return Texts()


def described(recorded: Recorder) -> str:
    """The messages as one line, each once; "" if there are none."""
    lines = (" ".join(str(text).split()) for _, text in recorded.texts)
    return "; ".join(dict.fromkeys(lines))
