"""Write what the page compares: a package, and its base as ONNX for transformers.js, in float32 and with int8 products.

    python benchmarks/peers/browser/prepare.py PACKAGE BASE

The package needs ``convert --targets web``. The ONNX file is the one of ONNX Runtime GenAI's model builder, the form of
the models that transformers.js downloads: GroupQueryAttention with a growing cache.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

HERE = Path(__file__).parent
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def write_base(base: Path, output: Path) -> None:
    """Write the base model as transformers.js expects it."""
    built = output / "built"
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", base, "-o", built, "-p", "fp32"]
    subprocess.run([*builder, "-e", "cpu", "-c", output / "cache", "--extra_options", "hf_token=false"], check=True)
    model = onnx.load(built / "model.onnx")
    fix_head_size(model, json.loads((base / "config.json").read_text()))
    (output / "onnx").mkdir()
    onnx.save(model, output / "onnx" / "model.onnx")
    quantize_dynamic(
        output / "onnx" / "model.onnx",
        output / "onnx" / "model_quantized.onnx",
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True},
    )
    for name in TOKENIZER:
        shutil.copyfile(built / name, output / name)
    for name in ("config.json", "generation_config.json"):
        shutil.copyfile(base / name, output / name)
    shutil.rmtree(built)


def fix_head_size(model: onnx.ModelProto, config: dict[str, Any]) -> None:
    """Replace the symbol that the builder writes for the head size, which transformers.js would read as 0."""
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == "kv_cache_dim":
                dim.dim_value = size


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("base", type=Path, help="Hugging Face checkpoint of the base model")
    arguments = parser.parse_args()
    shutil.copytree(arguments.package, HERE / "package")
    write_base(arguments.base, HERE / "models" / "base")
