"""Packages on an NVIDIA GPU: are they what the CPU computes, and how fast are they.

python benchmarks/on_cuda.py check PACKAGE... --json check.json
python benchmarks/on_cuda.py check BF16_PACKAGE --reference FP32_PACKAGE
python benchmarks/on_cuda.py speed PACKAGE... --json speed.json

``check`` compares a package's CUDA session with its stock graph on the CPU, or with that of another package of the
same model: a text in one call, cut into calls, step by step, and among 63 others; then 4,096 steps replayed from
captured graphs with as many launched one by one. A CPU computes no bfloat16: of a package in it, each operator of the
stock graph is computed in float32 and rounded, as ``validate`` does it. ``speed`` decodes after a prompt, at
positions 1,024, 32,768 and 131,072, and divides the weights' bytes by the time and by what a plain copy moves.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch

from liger_export.export.cuda import KERNELS
from liger_export.package import FUSED_CUDA, MODEL_FILES
from liger_export.parity.compare import mean_kl, relative_l2, state_distance, top1_agreement
from liger_export.parity.opening import open_stock
from liger_export.runtime import Session, load
from liger_export.runtime import session as runtime

LENGTH = 300
CUTS = [1, 2, 65, 129, 200]
REPLAYS = 4096
SEQUENCES, SHARED = 64, 100  # texts that are read side by side, and tokens of each


def kernel_hashes(package: Path) -> dict[str, str]:
    """SHA-256 of every cubin that a package carries."""
    model = onnx.load(package / MODEL_FILES[FUSED_CUDA], load_external_data=False)
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == KERNELS)
    content = onnx.numpy_helper.to_array(tensor).tobytes()
    head, _, cubins = content.partition(b"\nend\n")
    hashes = {}
    for line in head.decode().splitlines()[2:]:
        _, capability, name, _, _, _, _, _, offset, size, _ = line.split(" ")
        cubin = cubins[int(offset) : int(offset) + int(size)]
        hashes[f"sm_{capability} {name}"] = hashlib.sha256(cubin).hexdigest()
    return hashes


def check(package: Path, reference: Path) -> dict[str, object]:
    """Distances of the CUDA session's logits and states to those of a package on the CPU, usually the same."""
    cpu, gpu = open_stock(reference), load(package, device="cuda")
    if cpu.manifest.config != gpu.manifest.config:
        raise SystemExit(f"{reference} is of another model than {package}: convert both from one checkpoint.")
    tokens = np.random.default_rng(0).integers(1, gpu.manifest.model_config.vocab_size, LENGTH)
    expected = cpu.all_logits(tokens.tolist())
    whole = gpu.all_logits(tokens.tolist())
    state = state_distance(gpu.state(), cpu.state())
    gpu.reset()
    parts = np.concatenate([gpu.all_logits(part.tolist()) for part in np.split(tokens, CUTS)])
    gpu.reset()
    steps = np.stack([gpu.step(int(token)) for token in tokens])
    gpu.reset()
    gpu.prefill(tokens.tolist())
    chosen = [gpu._choose(greedy(gpu)), int(gpu._logits.read().argmax())]
    result: dict[str, object] = {"package": package.name, "reference": reference.name}
    result |= {"cubins": kernel_hashes(package), "greedy": chosen}
    readings = {"one call": whole, "cut": parts, "steps": steps, f"among {SEQUENCES}": among_others(gpu, tokens)}
    for name, logits in readings.items():
        wanted = expected[: len(logits)]
        result[name] = {
            "relative_l2": relative_l2(logits, wanted),
            "kl": mean_kl(logits, wanted),
            "top1": top1_agreement(logits, wanted),
        }
    result["state"] = state
    result["replayed against eager"] = replay_distance(package)
    return result


def among_others(session: Session, tokens: np.ndarray) -> np.ndarray:
    """Logits after the first tokens of a text, read one a call in a batch of other texts: [T, vocab_size]."""
    session.reset()
    past = {name: np.repeat(each, SEQUENCES, axis=0) for name, each in session.state().tensors.items()}
    others = np.random.default_rng(2).integers(1, session.manifest.model_config.vocab_size, (SEQUENCES, SHARED))
    texts = np.concatenate([others[:-1], tokens[None, :SHARED]])
    found = []
    for position in range(SHARED):
        logits, past = session.run(np.ascontiguousarray(texts[:, position : position + 1]), position, past)
        found.append(logits[-1, 0])
    return np.stack(found)


def greedy(session: Session) -> runtime.Sampler:
    return runtime.Sampler(runtime.Sampling(), session._seen)


def replay_distance(package: Path) -> dict[str, float]:
    """Largest distance of a step's logits, replayed and launched one by one, over 4,096 steps; time of each."""
    replayed, eager = load(package, device="cuda"), load(package, device="cuda")
    eager._steps = [eager._bind(eager._text, turn, eager._logits, keep=1) for turn in (0, 1)]
    random, worst, seconds = np.random.default_rng(1), 0.0, {"replayed": 0.0, "eager": 0.0}
    for token in random.integers(1, replayed.manifest.model_config.vocab_size, REPLAYS):
        logits = []
        for name, session in (("replayed", replayed), ("eager", eager)):
            started = time.perf_counter()
            session._read(np.array([token]))
            seconds[name] += time.perf_counter() - started
            logits.append(session._logits.read())
        worst = max(worst, relative_l2(logits[0], logits[1]))
    return {"worst": worst, **{f"{name} ms": value / REPLAYS * 1e3 for name, value in seconds.items()}}


def copy_bandwidth() -> float:
    """Bytes a second that a plain copy reads and writes."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    seconds = timed(lambda: target.copy_(source), 20)
    return 2 * source.numel() / float(np.median(seconds))


def timed(call: Callable[[], object], repeats: int) -> list[float]:
    seconds = []
    for _ in range(repeats + 3):
        torch.cuda.synchronize()
        started = time.perf_counter()
        call()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return seconds[3:]


def speed(package: Path, bandwidth: float) -> dict[str, object]:
    """Decode and prefill of a package; the weights are all that the data file holds but the embedding table's rows."""
    started = time.perf_counter()
    session = load(package, device="cuda")
    opened = time.perf_counter() - started
    config = session.manifest.model_config
    read = session.manifest.files["model.onnx.data"]["bytes"]
    if not config.tie_word_embeddings:  # only one row of the table is read a token
        read -= read * config.vocab_size / weights_of(config)
    result: dict[str, object] = {"package": package.name, "opened s": opened, "read GB": read / 1e9}
    tokens = np.random.default_rng(0).integers(1, config.vocab_size, 1024).tolist()
    session.prefill(tokens)
    session.reset()
    result["prefill tokens/s"] = 1024 / min(timed(lambda: session.prefill(tokens), 2))
    saved = session.state()
    for position in (1024, 32768, 131072):
        session.load_state(replace(saved, position=position))
        seconds = np.array(timed(lambda: session._read(np.array([5])), 200)) * 1e3
        low, median, high = np.percentile(seconds, (10, 50, 90))
        share = read / (median / 1e3) / bandwidth
        result[f"decode at {position}"] = {"ms": median, "10%": low, "90%": high, "share of copy": share}
    return result


def weights_of(config) -> float:  # type: ignore[no-untyped-def]
    """Weights of all matrices, in rows of the embedding's width."""
    width, layers = config.hidden_size, config.num_hidden_layers
    heads = config.head_dim * (2 * config.num_attention_heads + 2 * config.num_key_value_heads)
    return float(2 * config.vocab_size + layers * (heads + 3 * config.intermediate_size) * width / width)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["check", "speed"])
    parser.add_argument("packages", type=Path, nargs="+")
    parser.add_argument("--reference", type=Path, help="package to check against; default: each against its own")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    bandwidth = copy_bandwidth()
    report = {"gpu": torch.cuda.get_device_name(), "copy TB/s": bandwidth / 1e12, "results": []}
    for package in args.packages:
        result = check(package, args.reference or package) if args.what == "check" else speed(package, bandwidth)
        print(json.dumps({name: value for name, value in result.items() if name != "cubins"}), flush=True)
        report["results"].append(result)
        if args.json:
            args.json.write_text(json.dumps(report, indent=1))
    print(json.dumps({name: value for name, value in report.items() if name != "results"}))


if __name__ == "__main__":
    main()
