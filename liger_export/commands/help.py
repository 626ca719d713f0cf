"""Help of the commands: options in groups, and an example at the end."""

import inspect
from typing import Any

from typer.core import TyperCommand

__all__ = ["GroupedHelp"]

EXAMPLE = "\nExample:\n"  # begins the last section of a command's docstring


class GroupedHelp(TyperCommand):
    """A command whose help shows options under the titles of their ``rich_help_panel``, without rich's tables.

    The section ``Example:`` of the docstring stands at the end of the help, as it is written.
    """

    def __init__(self, name: str | None, *, help: str | None = None, **settings: Any) -> None:
        text, _, example = inspect.cleandoc(help or "").partition(EXAMPLE)
        # The mark \b keeps the lines of the paragraph after it.
        super().__init__(name, help=text, **{**settings, "epilog": f"\b\nExample:\n{example}" if example else None})

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments, options without a group, and the groups in the order of their first option."""
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            group = getattr(parameter, "rich_help_panel", None) or "Options"
            is_argument = parameter.param_type_name == "argument"
            groups.setdefault("Arguments" if is_argument else group, []).append(record)
        for title, records in groups.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
