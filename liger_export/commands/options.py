"""Options that several commands share, and parsers for option values."""

from pathlib import Path
from typing import Annotated

import typer

from liger_export.errors import InputError

__all__ = [
    "Adapters",
    "CheckpointArgument",
    "Device",
    "JsonFile",
    "Lowering",
    "Overwrite",
    "PackageArgument",
    "RunnableArgument",
    "parse_override",
    "split_names",
]

CheckpointArgument = Annotated[Path, typer.Argument(help="Liger checkpoint directory.")]
PackageArgument = Annotated[Path, typer.Argument(help="Package directory.")]
RunnableArgument = Annotated[Path, typer.Argument(help="Package or engine directory.")]
Adapters = Annotated[
    list[Path] | None, typer.Option("--adapter", metavar="DIR", help="LoRA adapter directory; repeatable.")
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        show_default="cuda if the package supports this GPU, else cpu",
        help="Device to run on: cpu or cuda.",
    ),
]
Lowering = Annotated[
    str | None,
    typer.Option("--lowering", show_default="fused if it can run here", help="Graph to run: stock or fused."),
]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the results to this JSON file.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]


def split_names(values: list[str] | None) -> tuple[str, ...]:
    """Names from a repeatable option whose values may be lists separated by commas."""
    return tuple(name.strip() for value in values or () for name in value.split(",") if name.strip())


def parse_override(text: str) -> tuple[str, str]:
    """Pattern and precision from ``PATTERN=PRECISION``. Raises InputError."""
    pattern, separator, precision = text.rpartition("=")
    if not separator:
        raise InputError(f"{text!r} is not an override.", "Write PATTERN=PRECISION, such as '*.down_proj.weight=int8'.")
    return pattern, precision
