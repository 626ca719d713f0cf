"""The ``liger-export`` command: one subcommand a stage, from checkpoint to text."""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from liger_export.commands.console import (
    err,
    exporter,
    interrupt,
    out,
    print_error,
    print_speed,
    progress_bar,
    quiet_transformers,
    stream_text,
)
from liger_export.commands.tables import (
    bench_table,
    engine_rows,
    evaluation_table,
    heldout_table,
    megabytes,
    parity_table,
    position_tables,
    summary_table,
)
from liger_export.errors import BoundError, InputError, LigerExportError
from liger_export.files import require_writable
from liger_export.package.engines import BACKENDS, CHECK_TOKENS, CHUNK, TENSORRT_RTX
from liger_export.precision import CALIBRATION_TOKENS, FLOATS, METHODS, PRECISIONS, Calibration, Precision
from liger_export.runtime import Sampling, load

__all__ = ["app", "main"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Bring linearized language models onto devices.",
    epilog="Exit codes: 0 done, 1 a bound was missed, 2 bad input or environment.",
)
STORED = Precision()

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]
Device = Annotated[
    str | None, typer.Option("--device", help="cpu or cuda; default: a GPU that the package is made for.")
]
Lowering = Annotated[str | None, typer.Option("--lowering", help="stock or fused; default: fused if it can run here.")]
Adapters = Annotated[list[Path] | None, typer.Option("--adapter", help="LoRA adapter directory; repeatable.")]


@app.command()
def linearize(
    base: Annotated[str, typer.Argument(help="Checkpoint directory of a Llama, Mistral, Qwen2 or Qwen3, or a hub id.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Liger checkpoint directory to create.")],
    mixer: Annotated[str, typer.Option(help="What replaces softmax attention: gla, hgrn2, gsa or lolcats.")] = "gla",
    window: Annotated[int, typer.Option(min=1, help="Keys in the softmax window, the current one included.")] = 64,
    gate_normalizer: Annotated[
        float | None, typer.Option(help="Divisor of the log gate (gla, gsa); default: 16.")
    ] = None,
    recurrent_weight: Annotated[
        float | None, typer.Option(help="Share of the recurrence beside the window (gla, hgrn2, gsa); default: 0.5.")
    ] = None,
    slots: Annotated[
        int | None, typer.Option(min=1, help="Memory slots, the paper's pool size (gsa); default: the head size.")
    ] = None,
    feature_dim: Annotated[
        int | None, typer.Option(min=1, help="Outputs of a feature map (lolcats); default: the head size.")
    ] = None,
    keep_softmax_every: Annotated[int | None, typer.Option(help="Keep softmax attention in every n-th layer.")] = None,
    softmax_window: Annotated[
        int | None, typer.Option(min=1, help="Keys in those layers' window; default: 1024, or what the base has.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Turn a pretrained transformer into a Liger checkpoint; no weight changes."""
    with exporter():
        from liger_export.linearize import LinearizeSettings
        from liger_export.linearize import linearize as run
    settings = LinearizeSettings(
        mixer=mixer,
        window_size=window,
        gate_normalizer=gate_normalizer,
        recurrent_weight=recurrent_weight,
        num_slots=slots,
        feature_dim=feature_dim,
        keep_softmax_every=keep_softmax_every,
        softmax_window=softmax_window,
    )
    config = run(base, output, settings, overwrite=overwrite)
    kept = f", softmax in layers {', '.join(map(str, config.softmax_layers))} (from 0)" if config.softmax_layers else ""
    kept += f" (window {config.softmax_window})" if config.softmax_layers else ""
    typer.echo(f"{output}: {config.model_type}, {config.num_hidden_layers} layers, window {config.window_size}{kept}")


@app.command()
def finetune(
    checkpoint: Annotated[Path, typer.Argument(help="Liger checkpoint directory.")],
    data: Annotated[Path, typer.Option(help="Text or JSONL file, or a directory of such files.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Adapter (or, with transfer, checkpoint) to create.")],
    stage: Annotated[
        str, typer.Option(help="lora; or transfer, which trains the feature maps of lolcats and comes first.")
    ] = "lora",
    heldout: Annotated[Path | None, typer.Option(help="Text to measure on; default: the end of the data.")] = None,
    rank: Annotated[int, typer.Option(min=1, help="LoRA rank.")] = 8,
    target: Annotated[str, typer.Option(help="Projections to adapt.")] = "q_proj,k_proj,v_proj",
    sequence_length: Annotated[int, typer.Option(min=2, help="Tokens of a training block.")] = 1024,
    batch_size: Annotated[int, typer.Option(min=1, help="Blocks a forward pass.")] = 8,
    accumulate: Annotated[int, typer.Option(min=1, help="Forward passes an optimizer step.")] = 1,
    learning_rate: Annotated[float, typer.Option("--lr", help="Peak learning rate.")] = 1e-4,
    epochs: Annotated[float, typer.Option(help="Passes over the data.")] = 2.0,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps, instead of --epochs.")] = None,
    save_steps: Annotated[int, typer.Option(min=1, help="Optimizer steps between resume points.")] = 200,
    gradient_checkpointing: Annotated[bool, typer.Option(help="Save memory by computing layers twice.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of initialization and data order.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an unfinished run.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Restore quality with a small LoRA adapter. Runs under `accelerate launch -m liger_export` too."""
    with exporter():
        from liger_export.distributed import processes
        from liger_export.finetune import FinetuneSettings, transfer
        from liger_export.finetune import finetune as lora
    if stage not in ("lora", "transfer"):
        raise InputError(f"There is no stage {stage!r}.", "Choose lora or transfer.")
    run = lora if stage == "lora" else transfer
    quiet_transformers()
    is_main = processes().is_main_process  # accelerate launch runs this on every process
    settings = FinetuneSettings(
        rank=rank,
        target_modules=tuple(name.strip() for name in target.split(",")),
        sequence_length=sequence_length,
        batch_size=batch_size,
        gradient_accumulation=accumulate,
        learning_rate=learning_rate,
        epochs=epochs,
        max_steps=max_steps,
        save_steps=save_steps,
        gradient_checkpointing=gradient_checkpointing,
        seed=seed,
    )
    with progress_bar("loading", shown=is_main) as bar:
        result = run(
            checkpoint, data, output, settings, heldout=heldout, resume=resume, overwrite=overwrite, progress=bar
        )
    if not is_main:
        return
    out.print(heldout_table(result.before, result.after))
    out.print(
        f"{result.trained_parameters:,} parameters, {result.steps:,} steps, {result.after.tokens:,} tokens held out"
    )


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Liger checkpoint directory.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Package directory to create.")],
    adapter: Adapters = None,
    lowering: Annotated[
        str, typer.Option(help="stock (any ONNX Runtime), or fused: a second graph, for liger-export's own operators.")
    ] = "stock",
    targets: Annotated[
        list[str] | None,
        typer.Option(help="GPUs to compile the fused graph's kernels for, with commas, such as sm_86,sm_90."),
    ] = None,
    precision: Annotated[str, typer.Option(help=f"Weights: {', '.join(PRECISIONS)}.")] = "fp32",
    activations: Annotated[
        str | None,
        typer.Option(help=f"What int4 and int8 are multiplied with: {', '.join(FLOATS)}; default: fp32."),
    ] = None,
    lm_head: Annotated[str | None, typer.Option(help="Precision of the head; default: as the weights.")] = None,
    embedding: Annotated[str | None, typer.Option(help="Precision of the embedding; default: as the head.")] = None,
    override: Annotated[
        list[str] | None, typer.Option(help="PATTERN=PRECISION, such as '*.layers.0.*=int8'; repeatable, last holds.")
    ] = None,
    block_size: Annotated[int, typer.Option(help="Weights that share a scale: 32, 64 or 128.")] = STORED.block_size,
    symmetric: Annotated[bool, typer.Option(help="Store no zero points.")] = STORED.symmetric,
    method: Annotated[str, typer.Option(help=f"How to round: {', '.join(METHODS)}.")] = STORED.method,
    calibration: Annotated[
        Path | None, typer.Option(help="Text that gptq reads: a text or JSONL file, or a directory of such files.")
    ] = None,
    calibration_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of that text to read, from its start.")
    ] = CALIBRATION_TOKENS,
    overwrite: Overwrite = False,
) -> None:
    """Merge adapters, trace into one ONNX graph, quantize, and write a package."""
    stored = Precision(
        weights=precision,
        lm_head=lm_head,
        embedding=embedding,
        overrides=tuple(_override(each) for each in override or ()),
        block_size=block_size,
        symmetric=symmetric,
        method=method,
        activation_precision=activations,
    )
    stored.check_names()
    text = Calibration(calibration, calibration_tokens) if calibration else None
    stored.check_calibration(text)
    with exporter():
        from liger_export.convert import convert as run
    with progress_bar("reading", in_bytes=True) as bar:
        manifest = run(
            checkpoint,
            output,
            adapters=tuple(adapter or ()),
            lowering=lowering,
            targets=_names(targets),
            precision=stored,
            calibration=text,
            overwrite=overwrite,
            progress=bar,
        )
    for described in manifest.adapters:
        if not described["base_verified"]:
            err.print(f"note: adapter {described['name']} does not record its base weights; only shapes were checked")
    if manifest.activations == "bfloat16" and not targets:
        err.print("note: only a GPU computes in bfloat16, and without --lowering fused --targets no kernels are there")
    size = sum(entry["bytes"] for entry in manifest.files.values())
    typer.echo(f"{output}: {megabytes(size)}, {manifest.precision}, {' and '.join(manifest.graphs)} lowering")


def _names(given: list[str] | None) -> tuple[str, ...]:
    """What an option names, with commas or repeated."""
    return tuple(name.strip() for text in given or () for name in text.split(",") if name.strip())


def _override(text: str) -> tuple[str, str]:
    pattern, separator, precision = text.rpartition("=")
    if not separator:
        raise InputError(f"{text!r} is no override.", "Write PATTERN=PRECISION, such as '*.down_proj.weight=int8'.")
    return pattern, precision


@app.command()
def validate(
    package: Annotated[Path, typer.Argument(help="Package or engine directory.")],
    reference: Annotated[Path, typer.Option(help="The Liger checkpoint it was converted from.")],
    adapter: Adapters = None,
    text: Annotated[Path | None, typer.Option(help="Text to read; default: sampled by the package.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens to compare logits on.")] = 8192,
    memory_tokens: Annotated[int, typer.Option(help="Tokens to watch memory over.")] = 4096,
    device: Device = None,
    lowering: Lowering = None,
    json: Annotated[Path | None, typer.Option(help="Write the report here too.")] = None,
) -> None:
    """Measure a package against PyTorch; exit code 1 if a bound is missed."""
    with exporter():
        from liger_export.parity.bfloat16 import ROUNDED
        from liger_export.validate import validate as run
    quiet_transformers()
    if json is not None:
        require_writable(json)
    with progress_bar("comparing with PyTorch", count=False) as bar:
        report = run(
            package,
            reference,
            adapters=tuple(adapter or ()),
            text=text,
            max_tokens=max_tokens,
            memory_tokens=memory_tokens,
            device=device,
            lowering=lowering,
            progress=bar,
        )
    out.print(parity_table(report))
    if report.device == ROUNDED:
        err.print(
            "note: no GPU ran: a CPU computed each operator in float32 and rounded to bfloat16; memory not watched"
        )
    if json is not None:
        json.write_text(report.to_json(), encoding="utf-8")
    if not report.passed:
        err.print("[red]a bound was missed[/red]: the package does not compute what the checkpoint computes")
        raise typer.Exit(1)


@app.command()
def evaluate(
    models: Annotated[list[Path], typer.Argument(help="Packages, Liger checkpoints or base checkpoints.")],
    text: Annotated[Path, typer.Option(help="Text or JSONL file to read, or a directory of such files.")],
    adapter: Annotated[
        list[Path] | None, typer.Option("--adapter", help="LoRA adapter of the last model; repeatable.")
    ] = None,
    sequence_length: Annotated[int, typer.Option(min=2, help="Tokens of a block, each read from its start.")] = 1024,
    batch_size: Annotated[int, typer.Option(min=1, help="Blocks that PyTorch reads at once.")] = 8,
    max_tokens: Annotated[int | None, typer.Option(min=2, help="Read no more of the text.")] = None,
    by_position: Annotated[bool, typer.Option("--by-position", help="Show how quality changes along a block.")] = False,
    device: Annotated[str | None, typer.Option(help="Of PyTorch models; default: a GPU if there is one.")] = None,
    dtype: Annotated[str, typer.Option(help="Of PyTorch models: float32, bfloat16 or float16.")] = "float32",
    json: Annotated[Path | None, typer.Option(help="Write all figures here too, by position included.")] = None,
) -> None:
    """Measure next-token quality on text. Runs under `accelerate launch -m liger_export` too."""
    with exporter():
        from liger_export.distributed import processes
        from liger_export.evaluate import Evaluation, open_model, report_json, text_blocks
    quiet_transformers()
    if json is not None:
        require_writable(json)
    *others, last = models
    opened = [open_model(path, (), device, dtype) for path in others]
    opened.append(open_model(last, tuple(adapter or ()), device, dtype))
    blocks = [text_blocks(model, text, sequence_length, max_tokens) for model in opened]
    is_main = processes().is_main_process  # accelerate launch runs this on every process
    evaluations = []
    with progress_bar("reading", shown=is_main) as bar:
        for model, tokens in zip(opened, blocks, strict=True):
            bar.stage(model.name)
            evaluations.append(Evaluation(model, tokens, model.score(tokens, batch_size, bar)))
    if not is_main:
        return
    out.print(evaluation_table(evaluations))
    differing = [each.model.name for each in evaluations if not each.compares_with(evaluations[0])]
    if differing:
        err.print(f"note: {escape(', '.join(differing))} read other tokens than the first, so figures do not compare")
    if by_position:
        out.print(*position_tables(evaluations))
    if json is not None:
        json.write_text(report_json(evaluations, text), encoding="utf-8")


@app.command()
def bench(
    package: Annotated[Path, typer.Argument(help="Package directory.")],
    against: Annotated[
        str | None,
        typer.Option(
            help="hf:DIR, a transformer to measure beside it, with its KV cache. Beyond 4,096 tokens its cache is "
            "filled with random values and its prefill is not measured."
        ),
    ] = None,
    contexts: Annotated[str, typer.Option(help="Tokens to read before decoding, with commas.")] = "128,4096,32768",
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to decode at each context.")] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="Fresh processes per model and context.")] = 3,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of each model; default: all cores.")] = None,
    dtype: Annotated[
        str, typer.Option(help="Of the transformer: float32 (what CPUs compute fastest), bfloat16 or float16.")
    ] = "float32",
    json: Annotated[Path | None, typer.Option(help="Write all figures here too.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw them here too, as PNG, SVG or PDF.")] = None,
) -> None:
    """Measure speed and memory by context, on the CPU, alone or beside a transformer."""
    with exporter():
        from liger_export.bench import BenchSettings, parse_against, parse_contexts, require_plot, save_plot
        from liger_export.bench import bench as run
    settings = BenchSettings(contexts=parse_contexts(contexts), tokens=tokens, repeats=repeats, dtype=dtype)
    if threads is not None:
        settings = replace(settings, threads=threads)
    transformer = None if against is None else parse_against(against)
    if json is not None:
        require_writable(json)
    if plot is not None:
        require_plot(plot)
    with progress_bar("starting") as bar:
        report = run(package, transformer, settings, bar)
    out.print(bench_table(report))
    if json is not None:
        json.write_text(report.to_json(), encoding="utf-8")
    if plot is not None:
        save_plot(report, plot)


@app.command("build-engine")
def build_engine(
    package: Annotated[Path, typer.Argument(help="Package directory.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Engine directory to create.")],
    backend: Annotated[
        str, typer.Option(help=f"{', '.join(BACKENDS)}: the first are portable graphs for any engine.")
    ] = TENSORRT_RTX,
    sm: Annotated[
        list[str] | None,
        typer.Option(
            help="GPU architectures in one engine, with commas, such as 86,89,120; tensorrt builds for the GPU here."
        ),
    ] = None,
    activations: Annotated[str, typer.Option(help=f"{', '.join(FLOATS)}; state is float32.")] = "fp16",
    chunk: Annotated[int, typer.Option(min=0, help="Tokens of a prefill call, a multiple of 16; 0 for none.")] = CHUNK,
    check_tokens: Annotated[
        int,
        typer.Option(
            min=0,
            help="Compare with the package on so many tokens; 0 does not. Needs memory for two float32 models.",
        ),
    ] = CHECK_TOKENS,
    overwrite: Overwrite = False,
) -> None:
    """Build engines for named GPUs from a package; all backends but tensorrt need no GPU."""
    with exporter():
        from liger_export.engine.build import EngineSettings
        from liger_export.engine.build import build_engine as run
    settings = EngineSettings(
        backend=backend,
        targets=_names(sm),
        activations=activations,
        chunk=chunk,
        check_tokens=check_tokens,
    )
    with progress_bar("reading", count=False) as bar:
        manifest = run(package, output, settings, overwrite=overwrite, progress=bar)
    out.print(summary_table(str(output), engine_rows(manifest)))


@app.command()
def inspect(package: Annotated[Path, typer.Argument(help="Package or engine directory.")]) -> None:
    """Show what a package holds, and whether its files are as they were written."""
    with exporter():
        from liger_export.inspection import inspect as run
    summary = run(package)
    out.print(summary_table(str(package), [*summary.rows, *engine_rows(summary.manifest)]))
    if summary.damage is not None:
        raise summary.damage


@app.command()
def run(
    package: Annotated[Path, typer.Argument(help="Package or engine directory.")],
    prompt: Annotated[str, typer.Argument(help="Text to continue.")],
    max_new_tokens: Annotated[int, typer.Option("-n", "--max-new-tokens", min=0, help="Most tokens to write.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Keep the k most likely tokens; 0 for all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Keep tokens that add up to this probability.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Keep tokens this likely relative to the best.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: less repetition.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Seed of the random choice.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="String to stop at; repeatable.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; default: ONNX Runtime chooses.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check every file's SHA-256, not only its size.")] = False,
    device: Device = None,
    lowering: Lowering = None,
) -> None:
    """Continue a text, with ONNX Runtime or on an engine."""
    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    session = load(package, device=device, lowering=lowering, threads=threads, verify=verify)
    pieces = session.generate(prompt, max_new_tokens=max_new_tokens, sampling=sampling, stop=tuple(stop or ()))
    print_speed(session, prompt, stream_text(prompt, pieces))


def main(command: Callable[..., Any] = app) -> None:
    """Entry point: errors made on purpose become two lines and exit code 2."""
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, interrupt)
    try:
        command()
    except LigerExportError as error:
        print_error(error.cause, error.fix)
        raise SystemExit(1 if isinstance(error, BoundError) else 2) from None
    except BrokenPipeError:  # the reader of our output has left: nothing more to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except OSError as error:
        print_error(str(error), "Check the path and its permissions.")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        err.print("interrupted")
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
