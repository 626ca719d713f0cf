"""Commands that measure: ``validate``, ``evaluate`` and ``bench``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from liger_export.commands.console import (
    exporter,
    is_narrow,
    print_failure,
    print_note,
    progress_bar,
    quiet_transformers,
    show,
)
from liger_export.commands.options import Adapters, Device, JsonFile, Lowering, PackageArgument, Quiet, RunnableArgument
from liger_export.commands.tables import bench_table, evaluation_table, parity_table, position_tables, profile_table
from liger_export.files import new_file, require_writable
from liger_export.progress import Progress

if TYPE_CHECKING:  # these modules load PyTorch
    from torch import Tensor

    from liger_export.evaluate import EvaluatedModel, Evaluation

__all__ = ["bench", "evaluate", "validate"]


def validate(
    package: RunnableArgument,
    reference: Annotated[Path, typer.Option(help="Liger checkpoint that the package was converted from.")],
    adapter: Adapters = None,
    text: Annotated[
        Path | None, typer.Option(show_default="sampled from the package", help="Text to compare logits on.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens of that text to read.", rich_help_panel="Measurement")] = 8192,
    memory_tokens: Annotated[
        int, typer.Option(help="Tokens to measure memory growth over.", rich_help_panel="Measurement")
    ] = 4096,
    device: Device = None,
    lowering: Lowering = None,
    json: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Compare a package with its PyTorch model.

    The results are also written into the package. If it is read-only, pass --json.

    The exit code is 1 if a bound is missed.

    Example:
      liger-export validate package --reference liger --adapter adapter \\
          --text held-out.txt
    """
    with exporter():
        from liger_export.parity.opening import ROUNDED
        from liger_export.validate import ValidationSettings, can_record
        from liger_export.validate import validate as run
    quiet_transformers()
    _require_writable(json)
    settings = ValidationSettings(
        text=text,
        max_tokens=max_tokens,
        memory_tokens=memory_tokens,
        device=device,
        lowering=lowering,
        record=json is None or can_record(package),
    )
    with progress_bar("loading", counts=False, visible=not quiet) as bar:
        report = run(package, reference, settings, adapters=tuple(adapter or ()), progress=bar)
    show(parity_table(report, details=not is_narrow()))
    if report.device == ROUNDED:
        print_note(
            "the stock graph does not run in bfloat16: each operator computed in float32 and rounded; no memory check"
        )
    _write(json, report.to_json())
    if not settings.record:
        print_note(f"{package} is read-only, so the results are only in {json}")
    if not report.passed:
        print_failure("a bound was missed", "the package does not compute what the checkpoint computes")
        raise typer.Exit(1)


def evaluate(
    models: Annotated[list[Path], typer.Argument(help="Packages, Liger checkpoints or base checkpoints.")],
    text: Annotated[Path, typer.Option(help="Evaluation text: a text or JSONL file, or a directory of them.")],
    adapter: Annotated[
        list[Path] | None,
        typer.Option("--adapter", metavar="DIR", help="LoRA adapter of the last model; repeatable."),
    ] = None,
    sequence_length: Annotated[
        int, typer.Option(min=2, help="Tokens per block; blocks are independent.", rich_help_panel="Measurement")
    ] = 1024,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Blocks per forward pass in PyTorch.", rich_help_panel="Measurement")
    ] = 8,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=2, show_default="all", help="Tokens to read from the start of the text.", rich_help_panel="Measurement"
        ),
    ] = None,
    by_position: Annotated[
        bool, typer.Option("--by-position", help="Also show quality by position in a block.")
    ] = False,
    device: Annotated[
        str | None,
        typer.Option(show_default="a GPU if there is one", help="Device of PyTorch models.", rich_help_panel="PyTorch"),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Dtype of PyTorch models: float32, bfloat16 or float16.", rich_help_panel="PyTorch")
    ] = "float32",
    json: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Measure next-token prediction quality on text.

    To use several GPUs, run it as `accelerate launch -m liger_export evaluate`.

    Example:
      liger-export evaluate path/to/base package --text held-out.txt
    """
    with exporter():
        from liger_export.distributed import processes
        from liger_export.evaluate import open_model, report_json, text_blocks
    quiet_transformers()
    _require_writable(json)
    *others, last = models
    opened = [open_model(path, (), device, dtype) for path in others]
    opened.append(open_model(last, tuple(adapter or ()), device, dtype))
    is_main = processes().is_main_process
    with progress_bar("reading the text", visible=is_main and not quiet) as bar:
        blocks = [text_blocks(model, text, sequence_length, max_tokens) for model in opened]
        evaluations = _score(opened, blocks, batch_size, bar)
    if is_main:
        _print_evaluations(evaluations, by_position=by_position)
        _write(json, report_json(evaluations, text))


def _score(
    models: "Sequence[EvaluatedModel]", blocks: "Sequence[Tensor]", batch_size: int, progress: Progress
) -> "list[Evaluation]":
    """Score each model on its blocks, int64 [N, T]."""
    from liger_export.evaluate import Evaluation

    evaluations = []
    for model, tokens in zip(models, blocks, strict=True):
        progress.stage(model.name)
        evaluations.append(Evaluation(model, tokens, model.score(tokens, batch_size, progress)))
    return evaluations


def _print_evaluations(evaluations: "Sequence[Evaluation]", *, by_position: bool) -> None:
    show(evaluation_table(evaluations))
    differing = [each.model.name for each in evaluations if not each.compares_with(evaluations[0])]
    if differing:
        print_note(f"{', '.join(differing)} read different tokens from the first model, so results are not comparable")
    if by_position:
        show(*position_tables(evaluations))


def bench(
    package: PackageArgument,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="hf:DIR",
            help="Also measure this transformer with its KV cache. Beyond 4,096 tokens the cache is filled with random "
            "values and prefill is not measured.",
        ),
    ] = None,
    contexts: Annotated[
        str, typer.Option(help="Context lengths in tokens, separated by commas.", rich_help_panel="Measurement")
    ] = "128,4096,32768",
    tokens: Annotated[
        int, typer.Option(min=1, help="Tokens to decode at each context length.", rich_help_panel="Measurement")
    ] = 32,
    repeats: Annotated[
        int,
        typer.Option(
            min=1, help="Runs per model and context length, each in its own process.", rich_help_panel="Measurement"
        ),
    ] = 3,
    threads: Annotated[
        int | None,
        typer.Option(min=1, show_default="all cores", help="CPU threads per model.", rich_help_panel="Measurement"),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            help="Dtype of the transformer: float32 (fastest on most CPUs), bfloat16 or float16.",
            rich_help_panel="PyTorch",
        ),
    ] = "float32",
    json: JsonFile = None,
    plot: Annotated[Path | None, typer.Option(help="Also plot the results to this PNG, SVG or PDF file.")] = None,
    profile: Annotated[
        Path | None,
        typer.Option(help="Also show where a step's time goes, by operator, and plot it to this file."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Measure speed and memory on the CPU by context length.

    Example:
      liger-export bench package --against hf:path/to/base --plot bench.png
    """
    with exporter():
        from liger_export.bench import BenchSettings, parse_against, parse_contexts, require_plot, save_plot
        from liger_export.bench import bench as run
        from liger_export.bench.profiled import profile_steps, save_profile
        from liger_export.bench.settings import default_threads
    settings = BenchSettings(
        contexts=parse_contexts(contexts),
        tokens=tokens,
        repeats=repeats,
        threads=threads or default_threads(),
        dtype=dtype,
    )
    transformer = None if against is None else parse_against(against)
    _require_writable(json)
    for picture in filter(None, (plot, profile)):
        require_plot(picture)
    with progress_bar("starting", visible=not quiet) as bar:
        report = run(package, transformer, settings, bar)
    show(bench_table(report))
    _write(json, report.to_json())
    if plot is not None:
        save_plot(report, plot)
    if profile is not None:
        profiled = profile_steps(package, settings)
        show(profile_table(profiled))
        save_profile(profiled, profile)


def _require_writable(file: Path | None) -> None:
    """Check an output file before a long measurement. Raises OutputError."""
    if file is not None:
        require_writable(file)


def _write(file: Path | None, text: str) -> None:
    if file is not None:
        with new_file(file) as partial:
            partial.write_text(text, encoding="utf-8")
