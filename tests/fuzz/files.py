"""Fuzz everything that reads files: packages, manifests, tokenizers, engines, states, adapters and checkpoints.

Each case damages one file (``mutations.py``) of a tiny model and opens it. It must be refused with one of our errors,
or, where hashes are checked, give the same answer as before. Any other exception is a fault, and so are a crash, 20
seconds or 2 GB. A case is a function of its seed and number.

    python -m tests.fuzz.files --cases 10000 --seed 0
"""

import argparse
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch

from liger_export.checkpoint import Adapter, MergedCheckpoint, open_liger
from liger_export.convert import convert
from liger_export.engine.build import build_engine
from liger_export.errors import LigerExportError
from liger_export.inspection import inspect
from liger_export.linearize import linearize
from liger_export.runtime import SavedState, load
from tests.fuzz.counts import Counts, Outcome
from tests.fuzz.mutations import damage, damage_json, linked
from tests.tiny import load_model, record_file, write_liger

__all__ = ["KINDS", "fuzz", "write_examples"]

CASE = "case"  # the folder that holds the damaged copy
SECONDS = 20
MOST_BYTES = 2 << 30
WORDS = {"refused": Outcome.REFUSED, "same": Outcome.SAME, "wrong": Outcome.WRONG, "raw": Outcome.RAW}


def write_examples(folder: Path) -> None:
    """Write the tiny inputs: a base, its Liger checkpoint, an adapter, a package, an engine directory and a state."""
    from peft import LoraConfig, get_peft_model

    from liger_export.checkpoint import Checkpoint, write_base_record
    from liger_export.engine.build import EngineSettings

    write_liger(folder / "liger")
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(load_model(folder / "liger"), lora).save_pretrained(folder / "adapter")
    (folder / "adapter" / "README.md").unlink(missing_ok=True)
    write_base_record(folder / "adapter", Checkpoint.open(folder / "liger"))
    convert(folder / "liger", folder / "package", adapters=(folder / "adapter",))
    build_engine(folder / "package", folder / "engine", EngineSettings(backend="onnx"))
    session = load(folder / "package", threads=1)
    session.prefill([1, 2, 3])
    (folder / "state").mkdir()
    session.state().save(folder / "state" / "state")


def _answer(directory: Path) -> Any:
    session = load(directory, threads=1, verify=True)
    logits = session.prefill([1, 2, 3])
    return session.encode("ab<|end|>"), logits.tobytes(), "".join(session.generate("b", max_new_tokens=2))


def _tokenizer_answer(directory: Path) -> None:
    """Read a damaged tokenizer whose hash is right: the parser itself is tested, and any answer is allowed."""
    manifest = directory / "manifest.json"
    if directory.name == CASE and (directory / "tokenizer.json").is_file():
        content = manifest.read_bytes()
        manifest.unlink()  # it is a link to the example's
        manifest.write_bytes(content)
        record_file(directory, "tokenizer.json")
    _answer(directory)


def _state_answer(directory: Path) -> Any:
    session = load(directory.parent / "package", threads=1)
    session.load_state(SavedState.read(directory / "state"))
    return session.step(5).tobytes()


def _adapter_answer(directory: Path) -> None:
    weights = open_liger(directory.parent / "liger").weights
    merged = MergedCheckpoint(weights, (Adapter.open(directory),))
    merged.check()
    for name in weights.tensors:
        merged.rows(name, 0, weights.tensors[name].shape[0])


def _checkpoint_answer(directory: Path) -> None:
    weights = MergedCheckpoint(open_liger(directory).weights)
    for name in weights.checkpoint.tensors:
        weights.rows(name, 0, weights.checkpoint.tensors[name].shape[0])


def _base_answer(directory: Path) -> None:
    try:
        linearize(str(directory), directory.with_name("output"))
    finally:
        shutil.rmtree(directory.with_name("output"), ignore_errors=True)


# The folder of each kind, and what opens it. Those that return an answer must return the same one, or refuse.
KINDS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "package": ("package", _answer),
    "manifest": ("package", _answer),
    "tokenizer": ("package", _tokenizer_answer),
    "engine": ("engine", _answer),
    "inspect": ("package", lambda directory: inspect(directory) and None),
    "state": ("state", _state_answer),
    "adapter": ("adapter", _adapter_answer),
    "checkpoint": ("liger", _checkpoint_answer),
    "base": ("liger-base", _base_answer),
}
ONLY = {"manifest": "manifest.json", "tokenizer": "tokenizer.json"}


def _run(examples: Path, seed: int, first: int, last: int) -> None:
    """Run cases in this process and print a line when each starts and ends."""
    torch.set_num_threads(1)
    expected = {kind: answer(examples / folder) for kind, (folder, answer) in KINDS.items()}
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries complain there
    for number in range(first, last):
        kind = list(KINDS)[number % len(KINDS)]
        folder, answer = KINDS[kind]
        random = Random(f"{seed} {number}")
        case = linked(examples / folder, examples / CASE)
        file = ONLY.get(kind) or random.choice(sorted(path.name for path in case.iterdir()))
        print(number, kind, "started", flush=True)
        done = f"{file}: {damage_json(case / file, random)}" if kind == "manifest" else damage(case, file, random)
        signal.alarm(SECONDS)
        try:
            result = answer(case)
            word = "same" if expected[kind] is None or result == expected[kind] else "wrong"
        except LigerExportError:
            word = "refused"
        except BaseException as error:  # the parser of tokenizers panics with one
            word, done = "raw", f"{done}: {type(error).__name__}: {error}".replace("\n", " ")[:300]
        signal.alarm(0)
        shutil.rmtree(case)
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10 > MOST_BYTES:
            os.abort()
        print(number, kind, word, done, flush=True)


def fuzz(examples: Path, cases: int, seed: int = 0, first: int = 0) -> Counts:
    """Run cases in other processes, going on after each that ends one."""
    counts, last = Counts(), first + cases
    while first < last:
        arguments = ["--examples", str(examples), "--seed", str(seed), "--first", str(first), "--cases"]
        command = [sys.executable, "-m", "tests.fuzz.files", "--worker", *arguments, str(last - first)]
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        started = ""
        for line in ended.stdout.splitlines():
            number, kind, word, *rest = line.split(" ", 3)
            started = f"{number} {kind}" if word == "started" else ""
            if word != "started":
                counts.add(kind, WORDS[word], f"{''.join(rest)} ({_repeat(seed, number)})")
            first = int(number) + 1
        if started:
            number, kind = started.split()
            outcomes = {-signal.SIGALRM: Outcome.HANG, -signal.SIGABRT: Outcome.MEMORY}
            counts.add(kind, outcomes.get(ended.returncode, Outcome.CRASH), _repeat(seed, number))
            shutil.rmtree(examples / CASE, ignore_errors=True)
        elif ended.returncode:
            raise RuntimeError(ended.stderr)
    return counts


def _repeat(seed: int, number: str) -> str:
    return f"python -m tests.fuzz.files --seed {seed} --first {number} --cases 1"


def main() -> int:
    """Print the table of outcomes and the faults. The exit status is 1 if there is a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.files", description="Fuzz what reads files.")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--examples", type=Path, help="folder of write_examples")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        _run(arguments.examples, arguments.seed, arguments.first, arguments.first + arguments.cases)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        write_examples(Path(folder))
        counts = fuzz(Path(folder), arguments.cases, arguments.seed, arguments.first)
    print(counts.table())
    print("\n".join(counts.faults[:20]), end="\n" if counts.faults else "")
    return 1 if counts.faults else 0


if __name__ == "__main__":
    sys.exit(main())
