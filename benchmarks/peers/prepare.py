"""Write the files of every measured system from one checkpoint: Liger packages, GGUF files, GenAI packages.

If DIRECTORY has no base checkpoint, ``../random_llama.py`` writes one: random weights in Llama-3.2-1B's shape. Existing
files are kept, so an interrupted run continues where it stopped. Delete a file to rebuild it.

    python benchmarks/peers/prepare.py DIRECTORY
"""

import argparse
import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import numpy.typing as npt
import torch
from process import RunnerProcess
from runners import SILENT

from liger_export.checkpoint import Checkpoint
from liger_export.config import LigerConfig, RopeConfig, inverse_frequencies
from liger_export.convert import convert
from liger_export.linearize import LinearizeSettings, liger_config_values, linearize
from liger_export.precision import Precision

RANDOM_LLAMA = Path(__file__).parents[1] / "random_llama.py"
BLOCK_SIZE = 128
CALIBRATION_TOKENS = 512
GENAI_OPTIONS = {  # the fastest: int8 products, one table for embedding and head, only the last token's logits
    "accuracy_level": 4,
    "block_size": BLOCK_SIZE,
    "is_symmetric": "true",
    "shared_embeddings": "true",
    "prune_lm_head": "true",
    "hf_token": "false",
}
# Smallest accepted cosine between a peer's logits and those of transformers. Four bits change the output of random
# weights far more than that of trained ones. Measured: 0.70 to 0.76, 0.998 with eight bits, 0.0 for a wrong model.
CLOSE = {"llama.cpp Q8_0": 0.99, "llama.cpp Q4_0": 0.5, "GenAI int4": 0.5, "GenAI int4, int8 cache": 0.5}


def once(path: Path, make: Callable[[Path], object]) -> None:
    """Make a file or directory under a temporary name and rename it when it is complete."""
    if path.exists():
        print(f"{path}: kept", flush=True)
        return
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    make(partial)
    partial.rename(path)
    print(f"{path}: made", flush=True)


def interleave(matrix: npt.NDArray[np.float16], heads: int) -> npt.NDArray[np.float16]:
    """Reorder the rows of q or k for llama.cpp's RoPE, which rotates adjacent rows instead of halves."""
    rows, columns = matrix.shape
    return matrix.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(base: Path, output: Path) -> None:
    """Write the base as float16 GGUF, without a vocabulary: the benchmark feeds token ids."""
    values = json.loads((base / "config.json").read_text())
    config = LigerConfig.from_dict(liger_config_values(values, LinearizeSettings()))
    writer = gguf.GGUFWriter(output, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(values["max_position_embeddings"])
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope.theta)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)

    plain = inverse_frequencies(RopeConfig(config.rope.theta), config.head_dim)
    writer.add_tensor("rope_freqs.weight", plain / inverse_frequencies(config.rope, config.head_dim))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    checkpoint = Checkpoint.open(base)
    for name in checkpoint.tensors:
        tensor = checkpoint.read(name)
        array = (tensor.half() if tensor.ndim == 2 else tensor.float()).numpy()
        if (projection := name.split(".")[-2]) in heads:
            array = interleave(array, heads[projection])
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantize_gguf(source: Path, kind: int, output: Path) -> None:
    """Quantize every matrix to one type, the tied embedding too. This is the smallest and fastest file."""
    llama_cpp.llama_log_set(SILENT, None)
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = kind
    parameters.pure = True
    if llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(output), ctypes.byref(parameters)):
        raise SystemExit(f"llama.cpp cannot quantize {source}")


def make_ggufs(base: Path, directory: Path) -> None:
    kinds = {"q4_0.gguf": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, "q8_0.gguf": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0}
    half = directory / "f16.gguf"
    for name, kind in kinds.items():
        if not half.exists() and not (directory / name).exists():
            once(half, lambda output: write_gguf(base, output))
        once(directory / name, lambda output, kind=kind: quantize_gguf(half, kind, output))
    half.unlink(missing_ok=True)


def write_cache_scales(base: Path, output: Path) -> None:
    """Write the scales of an int8 KV cache, per layer and for keys and values: largest entry of 512 tokens / 127."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, trust_remote_code=False)
    tokens = torch.randint(model.config.vocab_size, (1, CALIBRATION_TOKENS), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        layers = model(tokens, logits_to_keep=1).past_key_values.layers
    scales = {
        "k_scales": [layer.keys.abs().max().item() / 127 for layer in layers],
        "v_scales": [layer.values.abs().max().item() / 127 for layer in layers],
    }
    output.write_text(json.dumps({"scales": scales}))


def make_genai(base: Path, options: dict[str, Any], output: Path) -> None:
    """Write ONNX Runtime GenAI's package with its model builder."""
    cache = output.with_name("builder-cache")
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", base, "-o", output, "-p", "int4"]
    command += ["-e", "cpu", "-c", cache, "--extra_options", *(f"{key}={value}" for key, value in options.items())]
    with output.with_name("builder.log").open("w") as log:
        subprocess.run(list(map(str, command)), check=True, stdout=log, stderr=subprocess.STDOUT)
    shutil.rmtree(cache, ignore_errors=True)
    output.with_name("builder.log").unlink()


def check(directory: Path, threads: int) -> None:
    """Check each peer's logits against those of transformers."""
    process = RunnerProcess("transformers bf16", directory, threads, 256)
    expected = np.array(process.ask(do="check")["logits"])
    process.close()
    failed = False
    for name, bound in CLOSE.items():
        process = RunnerProcess(name, directory, threads, 256)
        logits = np.array(process.ask(do="check")["logits"])
        process.close()
        cosine = logits @ expected / np.linalg.norm(logits) / np.linalg.norm(expected)
        failed |= not cosine >= bound
        print(f"{name}: cosine with the logits of transformers {cosine:.4f} (>= {bound})", flush=True)
    if failed:
        raise SystemExit("A peer does not compute the model that it was built from: delete its files and rebuild them.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="directory to write, or to complete")
    parser.add_argument("--threads", type=int, default=2, help="threads of the check (default: %(default)s)")
    args = parser.parse_args()

    directory: Path = args.directory
    directory.mkdir(parents=True, exist_ok=True)
    base = directory / "base"
    once(base, lambda output: subprocess.run([sys.executable, RANDOM_LLAMA, "1b", output], check=True))
    once(directory / "liger", lambda output: linearize(str(base), output))
    for weights in ("int4", "int8"):
        precision = Precision(weights=weights, block_size=BLOCK_SIZE, symmetric=True)
        once(
            directory / f"package-{weights}",
            lambda output, p=precision: convert(directory / "liger", output, precision=p, lowering="fused"),
        )
    make_ggufs(base, directory)
    once(directory / "genai", lambda output: make_genai(base, GENAI_OPTIONS, output))
    scales = directory / "cache-scales.json"
    once(scales, lambda output: write_cache_scales(base, output))
    cached = {**GENAI_OPTIONS, "kv_cache_quant_scheme": "int8_per_tensor", "kv_cache_scale_file": scales}
    once(directory / "genai-int8-cache", lambda output: make_genai(base, cached, output))
    check(directory, args.threads)


if __name__ == "__main__":
    main()
