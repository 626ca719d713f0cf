"""Commands that write a package in another form: ``build-engine``, ``genai`` and ``triton``."""

from pathlib import Path
from typing import Annotated

import typer

from liger_export.commands.console import exporter, progress_bar, show
from liger_export.commands.options import Overwrite, PackageArgument, Quiet, split_names
from liger_export.commands.tables import engine_rows, summary_table
from liger_export.package.engines import BACKENDS, CHECK_TOKENS, PREFILL_TOKENS, TENSORRT_RTX
from liger_export.precision import FLOATS

__all__ = ["build_engine", "genai", "triton"]


def build_engine(
    package: PackageArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="Engine directory to create.")],
    backend: Annotated[
        str, typer.Option(help=f"{', '.join(BACKENDS)}; onnx writes portable graphs for any engine.")
    ] = TENSORRT_RTX,
    sm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SM,...",
            help="GPU architectures to build for, such as 86,89,120. tensorrt builds for this machine's GPU.",
        ),
    ] = None,
    activations: Annotated[
        str, typer.Option(help=f"Activations: {', '.join(FLOATS)}; state is float32.", rich_help_panel="Graphs")
    ] = "fp16",
    chunk: Annotated[
        int,
        typer.Option(
            min=0,
            help="Tokens per prefill call, a multiple of 16; 0 builds no prefill graph.",
            rich_help_panel="Graphs",
        ),
    ] = PREFILL_TOKENS,
    check_tokens: Annotated[
        int,
        typer.Option(
            min=0,
            help="Tokens to compare with the package on; 0 skips the comparison, which needs memory for two float32 "
            "models.",
            rich_help_panel="Graphs",
        ),
    ] = CHECK_TOKENS,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Build engines for specific GPUs, or portable graphs.

    Only the tensorrt backend needs a GPU.

    Example:
      liger-export build-engine package --sm 86,89,120 -o engine
    """
    with exporter():
        from liger_export.engine.build import EngineSettings
        from liger_export.engine.build import build_engine as run
    settings = EngineSettings(
        backend=backend,
        targets=split_names(sm),
        activations=activations,
        chunk=chunk,
        check_tokens=check_tokens,
    )
    with progress_bar("reading", counts=False, visible=not quiet) as bar:
        manifest = run(package, output, settings, overwrite=overwrite, progress=bar)
    show(summary_table(str(output), engine_rows(manifest)))


def triton(
    package: PackageArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="Model repository to create.")],
    name: Annotated[
        str | None, typer.Option(show_default="the package's directory", help="Start of the models' names.")
    ] = None,
    batch: Annotated[
        int, typer.Option(help="Maximum sequences per call, of one token each.", rich_help_panel="Limits")
    ] = 8,
    sequences: Annotated[
        int, typer.Option(help="Maximum sequences that a model holds; further ones wait.", rich_help_panel="Limits")
    ] = 64,
    idle: Annotated[
        int,
        typer.Option(
            metavar="SECONDS", help="Time after which an unused sequence is dropped.", rich_help_panel="Limits"
        ),
    ] = 600,
    overwrite: Overwrite = False,
) -> None:
    """Write a repository for Triton Inference Server.

    The server then keeps the states, and clients send only new tokens.

    Example:
      liger-export triton package -o repository --batch 16
    """
    with exporter():
        from liger_export.engine.triton import TritonSettings, write_repository
    settings = TritonSettings(name=name or package.resolve().name, batch=batch, sequences=sequences, idle_seconds=idle)
    names = write_repository(package, output, settings, overwrite=overwrite)
    typer.echo(f"{output}: {' and '.join(names)}")


def genai(
    package: PackageArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="Model folder to create.")],
    overwrite: Overwrite = False,
) -> None:
    """Write a model folder for ONNX Runtime GenAI.

    Example:
      liger-export genai package -o genai
    """
    with exporter():
        from liger_export.engine.genai import write_genai
    write_genai(package, output, overwrite=overwrite)
    typer.echo(f"{output}: for ONNX Runtime GenAI")
