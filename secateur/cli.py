# SPDX-License-Identifier: Apache-2.0
"""`secateur COMMAND ...`: parse, call, print.

stdout carries the result (with --json one JSON document and nothing else), stderr progress and errors.
Exit code 0 done, 1 a check failed, 2 wrong use or bad input.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from rich.console import Console

from secateur import commands, plugins
from secateur.errors import InputError, SecateurError, SecateurWarning, escaped, printable
from secateur.version import __version__

BASE = ("numpy", "PIL", "tokenizers", "onnxruntime", "rich", "jinja2", "markupsafe")
"""Import names of the packages in every installation; others come with the extra `export`."""


class Printer(Console):
    """Console that raises an error when the output pipe is closed, for `one_line` to handle."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class Parser(argparse.ArgumentParser):
    """Parser that reports a mistake in one line, as for every other error."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} -h)")


def one_line(command: Callable[[], object]) -> int:
    """Run a command and return its exit code; errors raised on purpose become one line on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # characters that the terminal lacks are escaped
    try:
        with _warnings_in_one_line(), _log_in_lines():
            command()
        if sys.stdout is not None:
            sys.stdout.flush()
    except SecateurError as problem:
        print(f"secateur: error: {printable(str(problem))}", file=sys.stderr)
        return problem.exit_code
    except ModuleNotFoundError as problem:
        if problem.name is None or problem.name.partition(".")[0] == "secateur":
            raise
        package = "secateur" if problem.name.partition(".")[0] in BASE else "'secateur[export]'"
        print(f"secateur: error: {problem.name} is not installed; pip install {package}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("secateur: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the output pipe is closed, as in `secateur ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except MemoryError as problem:
        reason = f" ({printable(str(problem))})" if str(problem) else ""
        print(f"secateur: error: out of memory{reason}; close other programs, or ask for less", file=sys.stderr)
        return 2
    except OSError as problem:
        print(f"secateur: error: {printable(str(problem))}", file=sys.stderr)
        return 2
    return 0


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Within the block, each of our warnings is printed once, as one line on stderr; others are printed as before."""
    with warnings.catch_warnings():
        usual, shown = warnings.showwarning, set[str]()

        def show(message: Warning | str, category: type[Warning], *where: Any, **further: Any) -> None:
            if not issubclass(category, SecateurWarning):
                usual(escaped(str(message)), category, *where, **further)
            elif str(message) not in shown:
                shown.add(str(message))
                print(f"secateur: warning: {printable(str(message))}", file=sys.stderr)

        warnings.simplefilter("always", SecateurWarning)
        warnings.showwarning = show
        yield


@contextmanager
def _log_in_lines() -> Iterator[None]:
    """Within the block, messages that libraries log are `printable`: they quote files."""
    usual = logging.getLogRecordFactory()

    def record(*arguments: Any, **further: Any) -> logging.LogRecord:
        made = usual(*arguments, **further)
        with suppress(TypeError, ValueError):  # logging reports a wrong format
            made.msg, made.args = printable(made.getMessage()), ()
        return made

    logging.setLogRecordFactory(record)
    try:
        yield
    finally:
        logging.setLogRecordFactory(usual)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return one_line(lambda: _run(words))


def _run(argv: list[str]) -> None:
    arguments, unknown = _parser(argv).parse_known_args(argv)
    if unknown:
        raise InputError(f"unrecognized arguments: {' '.join(unknown)} (see secateur {arguments.command} -h)")
    command = plugins.load(commands, arguments.command, "command")
    result = command.run(arguments)
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        console = Printer(highlight=False, markup=False, emoji=False)  # what is printed may be of untrusted files
        command.show(_for_terminal(result, getattr(command, "TEXTS", ())), console)
    if "failed" in result:  # a check failed; its result is printed above
        raise SecateurError(result["failed"])


def _for_terminal(value: Any, texts: Collection[str], shown: Callable[[str], str] = printable) -> Any:
    """Return a result with every text `printable`; those in the fields `texts` keep their length and lines."""
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, list | tuple):
        return type(value)(_for_terminal(each, texts, shown) for each in value)
    if isinstance(value, dict):
        return {
            _for_terminal(key, texts): _for_terminal(each, texts, escaped if key in texts else shown)
            for key, each in value.items()
        }
    return value


def _parser(argv: list[str]) -> argparse.ArgumentParser:
    """Return the parser; only the chosen command adds its options, which may need the export packages."""
    available = plugins.names(commands)
    name = next((word for word in argv if not word.startswith("-")), None)
    if name is not None and name not in available:
        plugins.load(commands, name, "command")
    parser = Parser(prog="secateur", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--version", action="version", version=f"secateur {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="{" + ",".join(available) + "}")
    for command in available:
        module = plugins.load(commands, command, "command")
        subparser = subparsers.add_parser(
            command,
            help=module.HELP,
            description=module.__doc__,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        subparser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
        if command == name:
            module.add_arguments(subparser, argv)
    return parser
