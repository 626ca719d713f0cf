"""Packages on an NVIDIA GPU: accuracy against the CPU, and speed.

    python benchmarks/on_cuda.py check PACKAGE... --json check.json
    python benchmarks/on_cuda.py check BF16_PACKAGE --reference FP32_PACKAGE
    python benchmarks/on_cuda.py speed PACKAGE... --json speed.json

``check`` compares a package's CUDA session with its own stock graph on the CPU, or with that of another package of the
same model. It reads a text in one call, in several calls, token by token, and in a batch with 63 other texts. Then it
compares 4,096 steps replayed from captured graphs with the same steps launched one by one. The CPU has no bfloat16
kernels: each operator of a bfloat16 stock graph is computed in float32 and rounded, as in ``validate``.

``speed`` measures prefill, and decoding at positions 1,024, 32,768 and 131,072. It reports the rate at which decoding
reads the weights as a share of the bandwidth of a plain copy.
"""

import argparse
import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from common import copy_bandwidth, synchronized_seconds, time_report

from liger_export.config import LigerConfig
from liger_export.export.cuda import KERNELS
from liger_export.package import FUSED_CUDA, MODEL_FILES
from liger_export.parity.compare import mean_kl, relative_l2, state_distance, top1_agreement
from liger_export.parity.opening import open_stock
from liger_export.runtime import Session, load
from liger_export.runtime.dynamic import DynamicExecutor

LENGTH = 300
CUTS = [1, 2, 65, 129, 200]
REPLAYS = 4096
BATCH, BATCH_TOKENS = 64, 100  # texts read in one batch, and tokens of each


def kernel_hashes(package: Path) -> dict[str, str]:
    """Return the SHA-256 of every cubin in a package."""
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
    """Measure how far a CUDA session's logits and states are from those of a package, usually the same, on the CPU."""
    cpu, gpu = open_stock(reference), load(package, device="cuda")
    if cpu.manifest.config != gpu.manifest.config:
        raise SystemExit(
            f"{reference} is a package of a different model than {package}: convert both from one checkpoint."
        )
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
    chosen = [gpu.executor.argmax(), int(gpu.executor.last_logits().argmax())]
    result: dict[str, object] = {"package": package.name, "reference": reference.name}
    result |= {"cubins": kernel_hashes(package), "greedy": chosen}
    readings = {"one call": whole, "cut": parts, "steps": steps, f"among {BATCH}": logits_in_batch(gpu, tokens)}
    for name, logits in readings.items():
        reference_logits = expected[: len(logits)]
        result[name] = {
            "relative_l2": relative_l2(logits, reference_logits),
            "kl": mean_kl(logits, reference_logits),
            "top1": top1_agreement(logits, reference_logits),
        }
    result["state"] = state
    result["replayed against eager"] = replay_distance(package)
    return result


def logits_in_batch(session: Session, tokens: np.ndarray) -> np.ndarray:
    """Read the first tokens of a text one per call, in a batch with other texts; return its logits [T, vocab_size]."""
    session.reset()
    past = {name: np.repeat(each, BATCH, axis=0) for name, each in session.state().tensors.items()}
    others = np.random.default_rng(2).integers(1, session.manifest.model_config.vocab_size, (BATCH, BATCH_TOKENS))
    texts = np.concatenate([others[:-1], tokens[None, :BATCH_TOKENS]])
    found = []
    for position in range(BATCH_TOKENS):
        logits, past = session.run(np.ascontiguousarray(texts[:, position : position + 1]), position, past)
        found.append(logits[-1, 0])
    return np.stack(found)


def replay_distance(package: Path) -> dict[str, float]:
    """Compare steps replayed from captured graphs with steps launched one by one: the largest distance, the times."""
    session = load(package, device="cuda")
    replayed, eager = session.executor, without_capture(load(package, device="cuda"))
    random, worst, seconds = np.random.default_rng(1), 0.0, {"replayed": 0.0, "eager": 0.0}
    for token in random.integers(1, session.manifest.model_config.vocab_size, REPLAYS):
        logits = []
        for name, executor in (("replayed", replayed), ("eager", eager)):
            started = time.perf_counter()
            executor.read(np.array([token]))
            seconds[name] += time.perf_counter() - started
            logits.append(executor.last_logits())
        worst = max(worst, relative_l2(logits[0], logits[1]))
    return {"worst": worst, **{f"{name} ms": value / REPLAYS * 1e3 for name, value in seconds.items()}}


def without_capture(session: Session) -> DynamicExecutor:
    """Return an executor of a session's model that launches kernels one by one."""
    executor = session.executor
    assert isinstance(executor, DynamicExecutor)
    lowering, device = executor.lowering, executor.device
    return DynamicExecutor(executor.model, session.manifest, lowering=lowering, device=device, capture=False)


def speed(package: Path, bandwidth: float) -> dict[str, object]:
    """Measure prefill and decoding. Each token reads the whole data file, except a separate embedding table."""
    started = time.perf_counter()
    session = load(package, device="cuda")
    opened = time.perf_counter() - started
    config = session.manifest.model_config
    read = session.manifest.files["model.onnx.data"]["bytes"]
    if not config.tie_word_embeddings:  # a token reads only one row of the table
        read -= read * config.vocab_size / matrix_rows(config)
    result: dict[str, object] = {"package": package.name, "opened s": opened, "read GB": read / 1e9}
    tokens = np.random.default_rng(0).integers(1, config.vocab_size, 1024).tolist()
    session.prefill(tokens)
    session.reset()
    result["prefill tokens/s"] = 1024 / min(synchronized_seconds(lambda: session.prefill(tokens), 2))
    saved = session.state()
    for position in (1024, 32768, 131072):
        session.load_state(replace(saved, position=position))
        times = time_report(synchronized_seconds(lambda: session.executor.read(np.array([5])), 200))
        result[f"decode at {position}"] = {**times, "share of copy": read / (times["ms"] / 1e3) / bandwidth}
    return result


def matrix_rows(config: LigerConfig) -> int:
    """Return the number of weights in all matrices, divided by the hidden size."""
    projections = 2 * config.head_dim * (config.num_attention_heads + config.num_key_value_heads)
    return 2 * config.vocab_size + config.num_hidden_layers * (projections + 3 * config.intermediate_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["check", "speed"])
    parser.add_argument("packages", type=Path, nargs="+", metavar="PACKAGE")
    parser.add_argument("--reference", type=Path, help="package whose stock graph is the reference; default: its own")
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    bandwidth = copy_bandwidth()
    report = {"gpu": torch.cuda.get_device_name(), "copy TB/s": bandwidth / 1e12, "results": []}
    for package in args.packages:
        result = check(package, args.reference or package) if args.mode == "check" else speed(package, bandwidth)
        print(json.dumps({name: value for name, value in result.items() if name != "cubins"}), flush=True)
        report["results"].append(result)
        if args.json:
            args.json.write_text(json.dumps(report, indent=1))
    print(json.dumps({name: value for name, value in report.items() if name != "results"}))


if __name__ == "__main__":
    main()
