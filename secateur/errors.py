# SPDX-License-Identifier: Apache-2.0
"""Errors that Secateur raises on purpose.

    SecateurError                 exit code 1: a check failed
    ├── ExportMismatch            an exported graph does not equal its module
    ├── BuildFailed               TensorRT could not build a plan
    ├── BackendMissing            (2) the library of a backend, or the tool of a command, is not installed
    └── InputError (ValueError)   (2) wrong use or bad input
        ├── UnknownName           no method, model, backend or schedule of that name
        ├── BadSchedule           an invalid schedule, or one of another model
        ├── BadModel              a checkpoint that cannot be loaded or exported
        ├── BadBundle             a bundle that is damaged, foreign or unsafe
        ├── BadEngine             damaged plans, or plans of another device or TensorRT
        ├── BadMeasurement        a file without valid timings
        ├── Unparsable            a graph that a TensorRT version cannot take
        ├── BadImage              a file that is not an image
        ├── BadPrompt             a prompt that does not fit
        └── BadOutput             an output that exists, or cannot be written

Text of files that others wrote is quoted as it is, and made `printable` where it is printed.

A message is one line: what is wrong, the value, the bound, the fix. What the user should know but is no error is a
`warnings.warn(text, SecateurWarning)`; the commands print each as one line on stderr, programs may filter them.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable

LONGEST = 300
"""Characters shown of an error of another library, and of each end of a longer text."""
JOINERS = "\u200c\u200d"
"""Invisible characters that belong to words and emoji."""


class SecateurError(Exception):
    """Base class of all errors; `exit_code` is the exit code of the command line."""

    exit_code = 1


class SecateurWarning(UserWarning):
    """Something that the user should know: it is not an error, but may change a result."""


class ExportMismatch(SecateurError):
    pass


class BuildFailed(SecateurError):
    pass


class BackendMissing(SecateurError):
    exit_code = 2


class InputError(SecateurError, ValueError):
    exit_code = 2


class UnknownName(InputError):
    """No plug-in or schedule has this name; the message suggests the nearest ones."""

    def __init__(self, kind: str, name: str, available: Iterable[str], mend: str = "") -> None:
        names = sorted(available)
        close = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        listed = ", ".join(names) if names else "none"
        super().__init__(f"unknown {kind} '{name}'.{hint} Available: {listed}.{' ' + mend if mend else ''}")


class BadSchedule(InputError):
    pass


class BadModel(InputError):
    pass


class BadBundle(InputError):
    pass


class BadEngine(InputError):
    pass


class BadMeasurement(InputError):
    pass


class Unparsable(InputError):
    pass


class BadImage(InputError):
    pass


class BadPrompt(InputError):
    pass


class BadOutput(InputError):
    pass


def printable(text: str) -> str:
    """Return a text of untrusted files for one line of a terminal: escaped, and without its middle if it is long."""
    shown = escaped(text, keep="")
    return shown if len(shown) <= 2 * LONGEST else f"{shown[:LONGEST]} ... {shown[-LONGEST:]}"


def escaped(text: str, keep: str = "\n\t") -> str:
    """Return `text` with escapes for the characters that a terminal or browser acts on instead of showing them.

    These are control characters, ends of lines, halves of surrogate pairs, and invisible characters such as those that
    change the direction of writing.
    """
    if text.isprintable():
        return text
    found = {c for c in set(text) - set(keep) if not _is_shown(c)}
    return text.translate({ord(c): c.encode("unicode_escape").decode() for c in found}) if found else text


def _is_shown(character: str) -> bool:
    return character in JOINERS or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


def first_line(problem: BaseException) -> str:
    """Return the first line of an error's message, and the next if it ends with a colon; the type if it says little."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    said = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    if isinstance(problem, LookupError | AttributeError | ArithmeticError) or not said:
        said = f"{type(problem).__name__} {said}".rstrip()
    return shortened(said)


def shortened(text: str) -> str:
    """Return at most the first `LONGEST` characters of a text, with dots for the others."""
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."
