"""Write a package of a known model's shape with random weights, for timing alone: no checkpoint is made or rounded.

python benchmarks/random_package.py 8b int4 OUT --activations fp16 --targets sm_90
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from random_llama import COMMON, SHAPES, TOKENIZER

from liger_export.checkpoint import expected_tensors
from liger_export.config import LigerConfig
from liger_export.export import attach_weights, in_place_states, lower, lower_to_cuda, lower_to_fused, trace
from liger_export.linearize import LinearizeSettings, liger_config_values
from liger_export.package import FUSED, FUSED_CUDA, MODEL_FILES, STOCK, Graph, Manifest
from liger_export.package.manifest import MANIFEST_FILE
from liger_export.quantize import Precision, Scheme
from liger_export.quantize.blocks import Blocks, encode

TILE = 1 << 20


class RandomWeights:
    """A source of rows that repeats one tile of noise, and the same tile rounded."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self._shapes = shapes
        self._tile = (np.random.default_rng(0).standard_normal(TILE) * 0.02).astype(np.float32)
        self._rounded: dict[int, Blocks] = {}

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def rows(self, name: str, start: int, stop: int) -> npt.NDArray[np.float32]:
        shape = (stop - start, *self._shapes[name][1:])
        return np.ones(shape, np.float32) if name.endswith("norm.weight") else np.resize(self._tile, shape)

    def blocks(self, name: str, start: int, stop: int, scheme: Scheme) -> Blocks:
        columns = self._shapes[name][1]
        if columns not in self._rounded:
            self._rounded[columns] = encode(np.resize(self._tile, (64, columns)), scheme, "rtn")
        tile, count = self._rounded[columns], stop - start
        parts = (tile.packed, tile.scales, tile.zero_points)
        return Blocks(*(None if part is None else np.resize(part, (count, part.shape[1])) for part in parts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("precision")
    parser.add_argument("out", type=Path)
    parser.add_argument("--activations", help="of int4 and int8: fp32 (the default), fp16 or bf16")
    parser.add_argument("--block-size", type=int, default=32)
    parser.add_argument("--targets", default="", help="GPUs to compile kernels for, with commas")
    args = parser.parse_args()

    values = liger_config_values({**COMMON, **SHAPES[args.shape]}, LinearizeSettings())
    config = LigerConfig.from_dict(values)
    shapes = expected_tensors(config)
    precision = Precision(weights=args.precision, block_size=args.block_size, activation_precision=args.activations)
    precision.check_names()
    model = trace(config, values, precision.activations)
    matrices = [name for name, shape in shapes.items() if len(shape) == 2]
    stored = lower(model, STOCK, {name: precision.scheme(name) for name in matrices})
    args.out.mkdir(parents=True)
    attach_weights(stored, RandomWeights(shapes), args.out / "model.onnx.data")
    ir.save(model, args.out / MODEL_FILES[STOCK])
    graphs = {STOCK: Graph(opsets={}, onnxruntime="1.31.0", in_place=in_place_states(model))}
    targets = [target for target in args.targets.split(",") if target]
    lower_to_fused(model)
    ir.save(model, args.out / MODEL_FILES[FUSED])
    graphs[FUSED] = Graph(opsets={}, onnxruntime="1.31.0", in_place=in_place_states(model))
    if targets:
        lower_to_cuda(model, config, precision.activations, targets)
        ir.save(model, args.out / MODEL_FILES[FUSED_CUDA])
        graphs[FUSED_CUDA] = Graph(opsets={}, onnxruntime="1.31.0", in_place=[], targets=targets)
    shutil.copyfile(TOKENIZER / "tokenizer.json", args.out / "tokenizer.json")
    files = {path.name: {"bytes": path.stat().st_size, "sha256": "0" * 64} for path in args.out.iterdir()}
    manifest = Manifest(
        source={"name": f"random {args.shape}", "files": {}},
        adapters=[],
        config=values,
        precision=precision,
        graphs=graphs,
        files=files,
    )
    (args.out / MANIFEST_FILE).write_text(manifest.to_json())


if __name__ == "__main__":
    main()
