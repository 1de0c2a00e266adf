# SPDX-License-Identifier: Apache-2.0
"""Commands of `secateur`: one file per command, named like it.

A command defines HELP, `add_arguments(parser, argv)`, `run(arguments) -> result` and `show(result, console)`;
--json prints the result.
"""
