# SPDX-License-Identifier: Apache-2.0
"""The commands of `secateur`: one file each, named as the user types it.

A command defines HELP, `add_arguments(parser, argv)`, `run(arguments) -> result` and `show(result, console)`;
the result is what --json prints.
"""
