"""Commands that make, describe and run a package: ``convert``, ``inspect`` and ``run``."""

import json
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from liger_export.commands.console import (
    exporter,
    note_ignored,
    print_note,
    print_speed,
    print_tables,
    progress_bar,
    show,
    stream_text,
)
from liger_export.commands.engine import genai as write_genai_folder
from liger_export.commands.opening import open_session
from liger_export.commands.options import (
    Adapters,
    BlockSize,
    CheckpointArgument,
    Device,
    HeadPrecision,
    Lowering,
    MinP,
    Overwrite,
    Quiet,
    RepetitionPenalty,
    RunnableArgument,
    Seed,
    Stop,
    Temperature,
    Threads,
    TopK,
    TopP,
    Verify,
    WeightPrecision,
    parse_override,
    split_names,
)
from liger_export.commands.tables import contract_table, engine_rows, megabytes, profile_table, summary_table
from liger_export.errors import InputError
from liger_export.package import FUSED
from liger_export.precision import CALIBRATION_TOKENS, FLOATS, METHODS, Calibration, Precision
from liger_export.runtime.defaults import read_defaults
from liger_export.runtime.profile import end_profile

if TYPE_CHECKING:
    from liger_export.package import Manifest

__all__ = ["convert", "inspect", "run"]

DEFAULTS = Precision()

Targets = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TARGET,...",
        help="GPUs to add a CUDA graph for (with --lowering fused), such as sm_86,sm_90; web adds graphs for browsers.",
        rich_help_panel="Graphs",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN=PRECISION",
        help="Precision of matching weights, such as '*.layers.0.*=int8'; repeatable, the last match wins.",
        rich_help_panel="Precision",
    ),
]
CalibrationText = Annotated[
    Path | None,
    typer.Option(
        help="Calibration text for gptq: a text or JSONL file, or a directory of them.", rich_help_panel="Rounding"
    ),
]


def convert(
    checkpoint: CheckpointArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="Package directory to create.")],
    adapter: Adapters = None,
    lowering: Annotated[
        str,
        typer.Option(
            help="stock (any ONNX Runtime); fused adds a faster graph for liger-export's operators.",
            rich_help_panel="Graphs",
        ),
    ] = "stock",
    targets: Targets = None,
    precision: WeightPrecision = DEFAULTS.weights,
    activations: Annotated[
        str | None,
        typer.Option(
            show_default="fp32",
            help=f"Precision of activations with int4 and int8: {', '.join(FLOATS)}.",
            rich_help_panel="Precision",
        ),
    ] = None,
    lm_head: HeadPrecision = None,
    embedding: Annotated[
        str | None,
        typer.Option(show_default="--lm-head", help="Precision of the embedding table.", rich_help_panel="Precision"),
    ] = None,
    override: Overrides = None,
    block_size: BlockSize = DEFAULTS.block_size,
    symmetric: Annotated[
        bool, typer.Option(help="Store no zero points.", rich_help_panel="Precision")
    ] = DEFAULTS.symmetric,
    method: Annotated[
        str, typer.Option(help=f"Rounding method: {', '.join(METHODS)}.", rich_help_panel="Rounding")
    ] = DEFAULTS.method,
    calibration: CalibrationText = None,
    calibration_tokens: Annotated[
        int,
        typer.Option(min=1, help="Tokens to use from the start of the calibration text.", rich_help_panel="Rounding"),
    ] = CALIBRATION_TOKENS,
    prefix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="System prompt whose state the package will contain.")
    ] = None,
    opset: Annotated[
        int,
        typer.Option(
            help="23; 27 adds a graph of standard ONNX operators only, including LinearAttention.",
            rich_help_panel="Graphs",
        ),
    ] = 23,
    genai: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Also write a folder for ONNX Runtime GenAI.", rich_help_panel="Graphs"),
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Convert a Liger checkpoint into an ONNX package.

    Merges adapters, traces the model into one ONNX graph, quantizes its weights and writes the package.

    Example:
      liger-export convert liger --adapter adapter -o package \\
          --precision int4 --method gptq --calibration texts/
    """
    settings = Precision(
        weights=precision,
        lm_head=lm_head,
        embedding=embedding,
        overrides=tuple(parse_override(each) for each in override or ()),
        block_size=block_size,
        symmetric=symmetric,
        method=method,
        activation_precision=activations,
    )
    text = Calibration(calibration, calibration_tokens) if calibration else None
    settings.check_names()
    settings.check_calibration(text)
    with exporter():
        from liger_export.convert import convert as run_convert
        from liger_export.engine.genai import require_convertible
    if genai is not None:
        require_convertible(checkpoint, settings, genai, overwrite=overwrite)
    with progress_bar("reading", in_bytes=True, visible=not quiet) as bar:
        manifest = run_convert(
            checkpoint,
            output,
            adapters=tuple(adapter or ()),
            lowering=lowering,
            targets=split_names(targets),
            precision=settings,
            calibration=text,
            prefix=prefix,
            opset=opset,
            overwrite=overwrite,
            progress=bar,
        )
    _print_package(output, manifest)
    if genai is not None:
        write_genai_folder(output, genai, overwrite=overwrite)


def _print_package(directory: Path, manifest: "Manifest") -> None:
    """Print what ``convert`` wrote, and notes on its limits."""
    for adapter in manifest.adapters:
        if not adapter["base_verified"]:
            print_note(f"adapter {adapter['name']} does not record its base weights; only shapes were checked")
    if manifest.activations == "bfloat16" and FUSED not in manifest.graphs:
        print_note("bfloat16 runs only with the fused graph, which this package lacks: add --lowering fused")
    note_ignored(read_defaults(directory))
    size = sum(entry["bytes"] for entry in manifest.files.values())
    typer.echo(f"{directory}: {megabytes(size)}, {manifest.precision}, {' and '.join(manifest.graphs)} lowering")


def inspect(
    package: RunnableArgument,
    contract: Annotated[
        bool, typer.Option("--contract", help="Describe the inputs and outputs of its graphs instead.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --contract: print JSON.")] = False,
) -> None:
    """Describe a package or engine, and verify its files.

    Example:
      liger-export inspect package --contract
    """
    with exporter("cli"):
        from liger_export.inspection import inspect as describe
        from liger_export.inspection import read_contract
    if as_json and not contract:
        raise InputError("--json prints the contract only.", "Add --contract.")
    if contract:
        found = read_contract(package)
        if as_json:
            typer.echo(json.dumps(found, indent=1))
            return
        for name, graph in found["graphs"].items():
            show(contract_table(name, graph))
        return
    summary = describe(package)
    show(summary_table(str(package), [*summary.rows, *engine_rows(summary.manifest)]))
    if summary.damage is not None:
        raise summary.damage


def run(
    package: RunnableArgument,
    prompt: Annotated[str, typer.Argument(help="Text to continue.")],
    max_new_tokens: Annotated[
        int, typer.Option("-n", "--max-new-tokens", min=0, help="Maximum tokens to write.")
    ] = 256,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    seed: Seed = None,
    stop: Stop = None,
    lookup: Annotated[
        int,
        typer.Option(
            min=0, help="Guess up to this many tokens from earlier text and check them in one call; same output."
        ),
    ] = 0,
    parse_special_tokens: Annotated[
        bool,
        typer.Option("--parse-special-tokens", help="Parse special tokens in the prompt; by default, they stay text."),
    ] = False,
    threads: Threads = None,
    verify: Verify = False,
    device: Device = None,
    lowering: Lowering = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Also show where a step's time goes, by operator; on the CPU.")
    ] = False,
) -> None:
    """Continue a prompt with a package or engine.

    Example:
      liger-export run package 'Once upon a time' -n 64 --temperature 0.8
    """
    with TemporaryDirectory(prefix="liger-export-") if profile else nullcontext() as folder:
        session, sampling = open_session(
            package,
            device=device,
            lowering=lowering,
            threads=threads,
            verify=verify,
            trace=Path(folder) / "trace" if folder else None,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )
        tokens = session.encode(prompt, parse_special_tokens=parse_special_tokens)
        pieces = session.generate(
            tokens, max_new_tokens=max_new_tokens, sampling=sampling, stop=tuple(stop or ()), lookup=lookup
        )
        print_speed(session, len(tokens), stream_text(prompt, pieces))
        if profile:
            print_tables(*map(profile_table, end_profile(session)))
