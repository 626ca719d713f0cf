"""Greedy tokens of a package's fused graph, by ONNX Runtime alone: run by ``tests.arm.wheel`` on both architectures.

    python greedy.py PACKAGE LIBRARY COUNT < PROMPTS

PROMPTS is a list of lists of token ids, in JSON. Prints the chosen tokens and the logits after each prompt, in JSON.
"""

import json
import platform
import sys
from pathlib import Path

import numpy as np
import onnxruntime

Arrays = dict[str, np.ndarray]


def open_graph(package: Path, library: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.register_custom_ops_library(library)
    return onnxruntime.InferenceSession(package / "model.fused.onnx", options, providers=["CPUExecutionProvider"])


def zero_states(graph: onnxruntime.InferenceSession) -> Arrays:
    """States of a text that has no tokens."""
    states = {}
    for node in graph.get_inputs():
        if node.name.startswith("past_key_values."):
            dtype = np.float16 if node.type == "tensor(float16)" else np.float32
            states[node.name] = np.zeros([1, *node.shape[1:]], dtype)
    return states


def greedy(graph: onnxruntime.InferenceSession, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
    """Read the prompt in one call and choose ``count`` tokens. Also return the logits after the prompt."""
    states, call, position, chosen = zero_states(graph), prompt, 0, []
    first: list[float] = []
    outputs = ["logits", *(name.replace("past_key_values", "present") for name in states)]
    for _ in range(count):
        positions = np.arange(position, position + len(call), dtype=np.int64)[None]
        feed = {"input_ids": np.array([call], np.int64), "position_ids": positions, **states}
        feed |= {"logits_to_keep": np.array(1, np.int64), "temperature": np.array(0, np.float32)}
        logits, *present = graph.run(outputs, feed)
        states = dict(zip(states, present, strict=True))
        position += len(call)
        first = first or logits[0, 0].tolist()
        chosen.append(int(logits[0, 0].argmax()))
        call = chosen[-1:]
    return chosen, first


def main() -> None:
    package, library, count = sys.argv[1:]
    graph = open_graph(Path(package), library)
    answers = [greedy(graph, prompt, int(count)) for prompt in json.load(sys.stdin)]
    tokens, logits = zip(*answers, strict=True)
    versions = {"machine": platform.machine(), "onnxruntime": onnxruntime.__version__}
    json.dump({**versions, "tokens": tokens, "logits": logits}, sys.stdout)


if __name__ == "__main__":
    main()
