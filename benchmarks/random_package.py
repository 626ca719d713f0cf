"""Write a package with a known model's shape and random weights, for timing only. It needs no checkpoint.

python benchmarks/random_package.py 8b int4 OUT --activations fp16 --targets sm_90
"""

import argparse
import shutil
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from random_llama import COMMON, SHAPES, TOKENIZER

from liger_export.checkpoint import expected_tensors
from liger_export.config import LigerConfig
from liger_export.export import (
    attach_weights,
    fuse_for_cpu,
    in_place_states,
    lower_to_cuda,
    lower_to_fused,
    lower_to_stock,
    trace,
)
from liger_export.linearize import LinearizeSettings, liger_config_values
from liger_export.package import FUSED, FUSED_CUDA, MODEL_FILES, STOCK, Graph, Manifest
from liger_export.package.manifest import MANIFEST_FILE, describe_files
from liger_export.precision import Precision, Scheme
from liger_export.quantize.blocks import Blocks, pack

DEVIATION = 0.02  # standard deviation of the weights, as at initialization


class RandomWeights:
    """A weight source of random rows, quantized rows drawn as integers. A name and its rows determine the values."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self._shapes = shapes

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def rows(self, name: str, start: int, stop: int) -> npt.NDArray[np.float32]:
        shape = (stop - start, *self._shapes[name][1:])
        if name.endswith("norm.weight"):
            return np.ones(shape, np.float32)
        noise: npt.NDArray[np.float32] = _random(name, start).random(shape, np.float32) - np.float32(0.5)
        return noise * np.float32(DEVIATION * 12**0.5)

    def blocks(self, name: str, start: int, stop: int, scheme: Scheme) -> Blocks:
        random, count, columns = _random(name, start), stop - start, self._shapes[name][1]
        middle, shape = scheme.fixed_zero_point, (count, scheme.blocks(columns))
        scale = DEVIATION * 12**0.5 / (2 * middle)  # the integers are uniform
        zero_points = None if scheme.symmetric else random.integers(middle - 1, middle + 1, shape, np.uint8)
        return Blocks(
            packed=random.integers(0, 256, (count, scheme.row_bytes(columns)), np.uint8),
            scales=random.uniform(0.8 * scale, 1.2 * scale, shape).astype(np.float32),
            zero_points=None if zero_points is None else pack(zero_points, scheme.bits),
        )


def _random(name: str, start: int) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(name.encode()), start])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES, help="Llama-3.2-1B or Llama-3-8B")
    parser.add_argument("precision", help="fp32, fp16, bf16, int8 or int4")
    parser.add_argument("out", type=Path, metavar="OUT", help="directory to create")
    parser.add_argument("--activations", help="with int4 and int8: fp32 (the default), fp16 or bf16")
    parser.add_argument("--block-size", type=int, default=32, help="weights that share a scale (default: %(default)s)")
    parser.add_argument("--targets", default="", help="GPUs to compile kernels for, separated by commas")
    args = parser.parse_args()

    values = liger_config_values({**COMMON, **SHAPES[args.shape]}, LinearizeSettings())
    config = LigerConfig.from_dict(values)
    shapes = expected_tensors(config)
    precision = Precision(weights=args.precision, block_size=args.block_size, activation_precision=args.activations)
    precision.check_names()
    model = trace(config, values, precision.activations)
    matrices = [name for name, shape in shapes.items() if len(shape) == 2]
    stored = lower_to_stock(model, {name: precision.scheme(name) for name in matrices})
    args.out.mkdir(parents=True)
    attach_weights(stored, RandomWeights(shapes), args.out / "model.onnx.data")
    ir.save(model, args.out / MODEL_FILES[STOCK])
    graphs = {STOCK: Graph(opsets={}, onnxruntime="1.31.0", in_place=in_place_states(model))}
    targets = [target for target in args.targets.split(",") if target]
    lower_to_fused(model)
    for_cpu = model.clone()
    fuse_for_cpu(for_cpu.graph)
    ir.save(for_cpu, args.out / MODEL_FILES[FUSED])
    graphs[FUSED] = Graph(opsets={}, onnxruntime="1.31.0", in_place=in_place_states(for_cpu))
    if targets:
        lower_to_cuda(model, config, precision.activations, targets)
        ir.save(model, args.out / MODEL_FILES[FUSED_CUDA])
        graphs[FUSED_CUDA] = Graph(opsets={}, onnxruntime="1.31.0", in_place=[], targets=targets)
    shutil.copyfile(TOKENIZER / "tokenizer.json", args.out / "tokenizer.json")
    manifest = Manifest(
        source={"name": f"random {args.shape}", "files": {}},
        adapters=[],
        config=values,
        precision=precision,
        graphs=graphs,
        files=describe_files(args.out),
    )
    (args.out / MANIFEST_FILE).write_text(manifest.to_json())


if __name__ == "__main__":
    main()
