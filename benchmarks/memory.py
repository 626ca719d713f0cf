"""Memory against generated tokens: a softmax transformer with its KV cache, and the same model as a Liger package.

Each runs in its own process and generates tokens one by one. Both are the 7M example model in float32. "Cache" is the
size of the tensors carried from step to step. RSS growth is the process's RSS minus its RSS after the first 64 tokens.

    python benchmarks/memory.py PACKAGE --tokens 8192 --plot docs/memory.png
"""

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path

import psutil

BASE = Path(__file__).parents[1] / "examples" / "pycode-7m" / "base"
WARM_UP = 64


def marks(tokens: int) -> set[int]:
    """Return the steps to record: the end of the warm-up, then evenly spaced steps."""
    return {WARM_UP, *range(tokens // 32, tokens + 1, tokens // 32)}


def record(points: list[dict[str, int]], step: int, cache_bytes: int) -> None:
    points.append({"tokens": step, "cache": cache_bytes, "rss": psutil.Process().memory_info().rss})


def run_transformer(tokens: int) -> list[dict[str, int]]:
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(BASE, dtype=torch.float32, trust_remote_code=False).eval()
    points: list[dict[str, int]] = []
    token, cache = torch.zeros((1, 1), dtype=torch.int64), None
    with torch.no_grad():
        for step in range(1, tokens + 1):
            output = model(token, past_key_values=cache, use_cache=True)
            token, cache = output.logits[:, -1:].argmax(-1), output.past_key_values
            if step in marks(tokens):
                cache_bytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
                record(points, step, cache_bytes)
    return points


def run_liger(package: Path, tokens: int) -> list[dict[str, int]]:
    from liger_export import load

    session = load(package)
    points: list[dict[str, int]] = []
    token = 0
    for step in range(1, tokens + 1):
        token = int(session.step(token).argmax())
        if step in marks(tokens):
            record(points, step, session.state_bytes)
    return points


def plot(results: dict[str, list[dict[str, int]]], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    titles = {"cache": "Cache carried from token to token", "grown": "Growth of the process (RSS)"}
    styles = {"transformer, KV cache": ("#c0392b", "o"), "liger-export package": ("#1f6fb2", "s")}
    for panel, (key, title) in zip(panels, titles.items(), strict=True):
        for name, (color, marker) in styles.items():
            points = results[name]
            megabytes = [(p["rss"] - points[0]["rss"] if key == "grown" else p["cache"]) / 1e6 for p in points]
            thousands = [p["tokens"] / 1e3 for p in points]
            panel.plot(thousands, megabytes, color=color, marker=marker, markersize=3, label=name)
            panel.annotate(
                f"{megabytes[-1]:.1f} MB", (thousands[-1], megabytes[-1]), xytext=(-6, 7), ha="right",
                textcoords="offset points", color=color,
            )  # fmt: skip
        panel.set(title=title, xlabel="tokens generated (thousands)", ylabel="MB")
        panel.margins(y=0.12)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, loc="upper left")
    figure.savefig(path, dpi=140)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="the 7M example model as an fp32 package")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens to generate (default: %(default)s)")
    parser.add_argument("--plot", type=Path, help="image file to draw")
    parser.add_argument("--system", choices=["transformer", "liger"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.system:
        points = run_transformer(args.tokens) if args.system == "transformer" else run_liger(args.package, args.tokens)
        print(json.dumps(points))
        return

    results = {}
    for system, name in (("transformer", "transformer, KV cache"), ("liger", "liger-export package")):
        command = [sys.executable, __file__, str(args.package), "--tokens", str(args.tokens), "--system", system]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        results[name] = json.loads(output.splitlines()[-1])
    print(f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} cores, {args.tokens:,} tokens")
    for name, points in results.items():
        grown = points[-1]["rss"] - points[0]["rss"]
        print(f"{name}: cache {points[-1]['cache']:,} bytes, RSS growth {grown:,} bytes since token {WARM_UP}")
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
