"""Help of the command line: options and commands under the headings of their groups, in plain text.

Typer's own help with frames imports the whole of Rich, with Markdown and the lexers of a dozen languages: half of the
time of `raprune --help`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

OPTIONS = "Options"
"""Heading of the options that name no group."""

COMMANDS = "Commands"
"""Heading of the commands that name no group."""

NAME_COLUMNS = 26
"""Width in characters of the widest name that has its text beside it; a longer one has it on the next line."""


class PlainCommand(TyperCommand):
    """Command whose help lists its options by the panel that each names (`rich_help_panel`)."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_parameters(self.get_params(ctx), ctx, formatter)


class PlainGroup(TyperGroup):
    """Group whose help lists its options and commands by the panel that each names (`rich_help_panel`)."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_parameters(self.get_params(ctx), ctx, formatter)
        panels: dict[str, list[Any]] = {}
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                panels.setdefault(getattr(command, "rich_help_panel", None) or COMMANDS, []).append(command)
        for panel, commands in panels.items():
            with _section(formatter, panel):
                formatter.write_dl(
                    [(command.name, " ".join((command.help or "").split("\n\n")[0].split())) for command in commands],
                    col_max=NAME_COLUMNS,
                )


def _write_parameters(params: list[Any], ctx: Any, formatter: Any) -> None:
    panels: dict[str, list[tuple[str, str]]] = {}
    for param in params:
        record = param.get_help_record(ctx)
        if record is not None:
            panels.setdefault(getattr(param, "rich_help_panel", None) or _unnamed(param), []).append(record)
    for panel, records in sorted(panels.items(), key=lambda item: item[0] not in ("Arguments", OPTIONS)):
        with _section(formatter, panel):
            formatter.write_dl(records, col_max=NAME_COLUMNS)


def _unnamed(param: Any) -> str:
    return "Arguments" if param.param_type_name == "argument" else OPTIONS


@contextmanager
def _section(formatter: Any, heading: str) -> Iterator[None]:
    with formatter.section(typer.style(heading, bold=True)):
        yield
