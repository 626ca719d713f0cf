"""Speed of different forms of GSA's first pass on ONNX Runtime's CPU provider.

The pass computes K_t = diag(exp g_t) K_{t-1} + s_t k_t^T and returns K_t q_t. It decays along its outputs, the slots,
and no stock operator does that. Before it is timed, each form is checked against float64, with strong gates and an odd
length too.

    python benchmarks/gsa_forms.py --threads 2
"""

import argparse
import platform
from functools import partial
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from liger_export.bench.timing import Spread, timed
from liger_export.onnx_functions.schemas import Kind, Operator
from liger_export.onnx_functions.stock import parse_body
from liger_export.onnx_functions.stock.gsa import FIRST_PASS, SLOT_SIZES, chunks, one_token
from liger_export.onnx_functions.stock.snippets import SIZES
from liger_export.parity.compare import relative_l2

SHAPES = [(8, 2, 32, 32), (32, 8, 64, 64), (32, 8, 128, 64)]  # H, G, D, M
BOUND = 1e-5
Arrays = dict[str, np.ndarray]

SCAN_OVER_TOKENS = """
    query_shape = Concat <axis = 0> (zero, rest, groups, repeats, head_dim)
    key_shape = Concat <axis = 0> (zero, rest, groups, one, head_dim)
    slot_shape = Concat <axis = 0> (zero, rest, groups, slots, one)
    query_split = Reshape (query, query_shape)
    query_tokens = Transpose <perm = [1, 0, 2, 3, 4]> (query_split)
    key_split = Reshape (key, key_shape)
    key_tokens = Transpose <perm = [1, 0, 2, 3, 4]> (key_split)
    decay = Exp (gate)
    decay_split = Reshape (decay, slot_shape)
    decay_tokens = Transpose <perm = [1, 0, 2, 3, 4]> (decay_split)
    strength_split = Reshape (strength, slot_shape)
    strength_tokens = Transpose <perm = [1, 0, 2, 3, 4]> (strength_split)
    next_slot_key, logits_tokens = Scan <num_scan_inputs = 4, body = token (held, q, k, d, s) => (next_held, read)
    {
        kept = Mul (held, d)
        added = Mul (s, k)
        next_held = Add (kept, added)
        read = com.microsoft.FusedMatMul <transB = 1> (q, next_held)
    }> (slot_key, query_tokens, key_tokens, decay_tokens, strength_tokens)
    logits_split = Transpose <perm = [1, 0, 2, 3, 4]> (logits_tokens)
    logits = Reshape (logits_split, packed_logits)
"""

# Each slot of each query head is a value head of width 1: the state is repeated for the query heads.
SLOTS_AS_HEADS = """
    slot_shape = Concat <axis = 0> (zero, zero, groups, one, slots)
    repeat_shape = Concat <axis = 0> (one, one, one, repeats, one)
    join = Constant <value = int64[3] {0, 0, -1}> ()
    gate_split = Reshape (gate, slot_shape)
    gate_repeated = Expand (gate_split, repeat_shape)
    gate_heads = Reshape (gate_repeated, join)
    strength_split = Reshape (strength, slot_shape)
    strength_repeated = Expand (strength_split, repeat_shape)
    strength_heads = Reshape (strength_repeated, join)
    axis = Constant <value = int64[1] {2}> ()
    state_group = Unsqueeze (slot_key, axis)
    state_repeat = Concat <axis = 0> (one, one, repeats, one, one)
    state_repeated = Expand (state_group, state_repeat)
    state_heads = Concat <axis = 0> (zero, slot_width, head_dim, one)
    state = Reshape (state_repeated, state_heads)
    logits, next_state = com.microsoft.LinearAttention
        <update_rule = "gated", scale = 1.0, q_num_heads: int = @num_heads, kv_num_heads: int = @all_slots>
        (query, key, strength_heads, state, gate_heads)
    state_split = Concat <axis = 0> (zero, groups, repeats, slots, head_dim)
    next_split = Reshape (next_state, state_split)
    first = Constant <value = int64 {0}> ()
    next_slot_key = Gather <axis = 2> (next_split, first)
"""

# One-hot queries, one per slot, read the whole state at each token.
ONE_HOT_QUERIES = """
    square = Concat <axis = 0> (slots, slots)
    blank = ConstantOfShape (square)
    identity = EyeLike (blank)
    flat_shape = Concat <axis = 0> (one, one, one, rest)
    flat = Reshape (identity, flat_shape)
    lengths = Shape <end = 2> (query)
    every_shape = Concat <axis = 0> (lengths, groups, one)
    every = Expand (flat, every_shape)
    join = Constant <value = int64[3] {0, 0, -1}> ()
    one_hot = Reshape (every, join)
    states, next_slot_key = com.microsoft.LinearAttention
        <update_rule = "gated", scale = 1.0, q_num_heads: int = @slots_in_groups,
         kv_num_heads: int = @num_key_value_heads>
        (one_hot, strength, key, slot_key, gate)
    states_shape = Concat <axis = 0> (zero, zero, groups, slots, head_dim)
    states_split = Reshape (states, states_shape)
    query_shape = Concat <axis = 0> (zero, zero, groups, repeats, head_dim)
    query_split = Reshape (query, query_shape)
    logits_split = com.microsoft.FusedMatMul <transB = 1> (query_split, states_split)
    logits = Reshape (logits_split, packed_logits)
"""

WIDE = """
    wide_query = Identity (query)
    wide_key = Identity (key)
"""
FORMS = {
    "Scan over tokens": SCAN_OVER_TOKENS,
    "LinearAttention, slots as heads": SLOTS_AS_HEADS,
    "LinearAttention, one-hot queries": ONE_HOT_QUERIES,
    "chunks of 8": WIDE + chunks("logits", "next_slot_key", 8),
    "chunks of 16": WIDE + chunks("logits", "next_slot_key", 16),
    "chunks of 32": WIDE + chunks("logits", "next_slot_key", 32),
    "one token, written out": WIDE + one_token("logits", "next_slot_key"),
    "If: one token, else chunks of 16 (used)": WIDE + FIRST_PASS,
}
ONE_TOKEN_ONLY = {"one token, written out"}


def session(form: str, shape: tuple[int, int, int, int], threads: int) -> onnxruntime.InferenceSession:
    heads, num_key_value_heads, head_dim, slots = shape
    attributes: dict[str, Any] = {
        "num_heads": heads,
        "num_key_value_heads": num_key_value_heads,
        "head_dim": head_dim,
        "window_size": 1,
        "num_slots": slots,
        "all_slots": heads * slots,
        "slots_in_groups": num_key_value_heads * slots,
    }
    inputs: dict[str, list[str | int]] = {
        "query": ["B", "T", heads * head_dim],
        "key": ["B", "T", num_key_value_heads * head_dim],
        "gate": ["B", "T", num_key_value_heads * slots],
        "strength": ["B", "T", num_key_value_heads * slots],
        "slot_key": ["B", num_key_value_heads, slots, head_dim],
    }
    outputs = ("logits", "next_slot_key")
    body = SIZES + SLOT_SIZES + FORMS[form]
    operator = Operator("FirstPass", tuple(inputs), outputs, dict.fromkeys(attributes, Kind.INT))
    node = helper.make_node("FirstPass", list(inputs), outputs, domain="liger", **attributes)
    graph = helper.make_graph(
        [node],
        "first_pass",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name, sizes in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
    )
    imports = [helper.make_opsetid(name, version) for name, version in (("", 23), ("com.microsoft", 1), ("liger", 1))]
    function = parse_body(operator, body)
    model = helper.make_model(graph, functions=[function], opset_imports=imports, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def inputs_of(shape: tuple[int, int, int, int], batch: int, length: int, gate_scale: float) -> Arrays:
    """Return random float64 inputs that are exact in float32, so that the reference sees the same values."""
    heads, num_key_value_heads, head_dim, slots = shape
    random = np.random.default_rng(0)
    gate = -np.logaddexp(0, -random.standard_normal((batch, length, num_key_value_heads * slots))) * gate_scale
    arrays = {
        "query": random.standard_normal((batch, length, heads * head_dim)),
        "key": random.standard_normal((batch, length, num_key_value_heads * head_dim)),
        "gate": gate,
        "strength": -np.expm1(gate),
        "slot_key": random.standard_normal((batch, num_key_value_heads, slots, head_dim)),
    }
    return {name: array.astype(np.float32).astype(np.float64) for name, array in arrays.items()}


def reference(arrays: Arrays, shape: tuple[int, int, int, int]) -> list[np.ndarray]:
    heads, num_key_value_heads, head_dim, slots = shape
    batch, length = arrays["query"].shape[:2]
    query = arrays["query"].reshape(batch, length, num_key_value_heads, heads // num_key_value_heads, head_dim)
    key = arrays["key"].reshape(batch, length, num_key_value_heads, 1, head_dim)
    gate = arrays["gate"].reshape(batch, length, num_key_value_heads, slots, 1)
    strength = arrays["strength"].reshape(batch, length, num_key_value_heads, slots, 1)
    state, logits = arrays["slot_key"], []
    for t in range(length):
        state = np.exp(gate[:, t]) * state + strength[:, t] * key[:, t]
        logits.append((query[:, t] @ state.swapaxes(-1, -2)).reshape(batch, -1))
    return [np.stack(logits, axis=1), state]


def check(form: str, running: onnxruntime.InferenceSession, shape: tuple[int, int, int, int]) -> None:
    for length in (1,) if form in ONE_TOKEN_ONLY else (1, 37):
        for gate_scale in (1 / 16, 50.0):
            arrays = inputs_of(shape, 2, length, gate_scale)
            measured = running.run(None, {name: array.astype(np.float32) for name, array in arrays.items()})
            for got, expected in zip(measured, reference(arrays, shape), strict=True):
                error = relative_l2(got, expected)
                if not error <= BOUND:
                    raise SystemExit(f"{form} at {shape}, {length} tokens: relative L2 {error:.1e} > {BOUND}")


def milliseconds(running: onnxruntime.InferenceSession, arrays: Arrays, seconds: float) -> str:
    feed = {name: array.astype(np.float32) for name, array in arrays.items()}
    run = partial(running.run, None, feed)
    run()
    times: list[float] = []
    while len(times) < 5 or sum(times) < seconds:
        times.append(timed(run)[1])
    spread = Spread.of(times).scaled(1e3)
    return f"{spread.median:.3g} ({spread.p10:.3g} to {spread.p90:.3g})"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--threads", type=int, default=2, help="threads of ONNX Runtime (default: %(default)s)")
    options.add_argument("--seconds", type=float, default=1.0, help="time spent on each number of the table")
    options.add_argument("--lengths", type=int, nargs="+", default=[1, 512], help="tokens per call")
    args = options.parse_args()
    print(f"ONNX Runtime {onnxruntime.__version__}, {platform.machine()}, {args.threads} threads; float32, batch 1.")
    print("Milliseconds: median (10th to 90th percentile). Shapes are (H, G, D, M).\n")
    columns = [(length, shape) for length in args.lengths for shape in SHAPES]
    print(f"| form | {' | '.join(f'T = {length}, {shape}' for length, shape in columns)} |")
    print("| --- |" + " --- |" * len(columns))
    for form in FORMS:
        sessions = {shape: session(form, shape, args.threads) for shape in SHAPES}
        for shape, running in sessions.items():
            check(form, running, shape)
        cells = [
            "" if length > 1 and form in ONE_TOKEN_ONLY else
            milliseconds(sessions[shape], inputs_of(shape, 1, length, 1 / 16), args.seconds)
            for length, shape in columns
        ]  # fmt: skip
        print(f"| {form} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
