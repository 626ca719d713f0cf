"""The cuda lowering computes what stock does; its GPU-only operators are replaced by stock ones here."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx_ir.passes.common import InlinePass

from liger_export.convert import convert
from liger_export.export.cuda import KERNELS, attach_kernels, fuse_for_cuda
from liger_export.export.fused import lower_to_fused
from liger_export.onnx_functions.rotary_angles import rotary_angles_function
from liger_export.onnx_functions.schemas import DOMAIN
from liger_export.ort import library_path
from liger_export.package import MODEL_FILES
from liger_export.precision import Precision
from liger_export.runtime import load
from tests.backbones import VARIANTS, write_variant
from tests.cells import slow_except
from tests.plugins.sessions import needs_library
from tests.tiny import WIDE

TOKENS = np.random.default_rng(0).integers(1, 260, (1, 40))
MICROSOFT = "com.microsoft"


def cuda_graph(
    directory: Path, variant: str = "llama", mixer: str = "gla", *, layers: int = 2, seed: int = 0, **precision: str
) -> tuple[Path, ir.Model]:
    """A package and its graph for CUDA."""
    write_variant(directory / "liger", mixer, variant, num_hidden_layers=layers, seed=seed)
    package = directory / "package"
    convert(directory / "liger", package, precision=Precision(**precision))  # type: ignore[arg-type]
    model = ir.load(package / MODEL_FILES["stock"])
    lower_to_fused(model)
    fuse_for_cuda(model.graph)
    return package, model


def in_stock_operators(node: ir.Node) -> list[ir.Node]:
    """The stock operators that compute what a GPU-only node does; the last ones have its outputs."""
    options = node.inputs[4:7] if node.op_type.startswith("Integer") else node.inputs[2:5]
    norm, bias, residual = options
    nodes, hidden = [], node.inputs[0]

    def add(*arguments: object, **options: object) -> ir.Value:
        nodes.append(ir.node(*arguments, **options))  # type: ignore[arg-type]
        return nodes[-1].outputs[0]

    if norm is not None:
        epsilon = node.attributes["epsilon"].as_float()
        hidden = add("RMSNormalization", [hidden, norm], {"axis": -1, "epsilon": epsilon})
    if node.op_type.startswith("Integer"):
        blocks = node.inputs[1].shape.numpy()
        bits, size = (node.attributes[name].as_int() for name in ("bits", "block_size"))
        sizes = {"N": blocks[0], "K": blocks[1] * size, "bits": bits, "block_size": size, "accuracy_level": 4}
        result = add("MatMulNBits", [hidden, *node.inputs[1:4]], sizes, domain=MICROSOFT)
    else:
        result = add("FusedMatMul", [hidden, node.inputs[1]], {"transB": 1}, domain=MICROSOFT)
    result = add("Add", [result, bias]) if bias is not None else result
    if node.attributes["gated"].as_int():
        add("Split", [result], {"axis": -1, "num_outputs": 2}, num_outputs=2)
        gate, up = nodes[-1].outputs
        result = add("Mul", [add("Mul", [gate, add("Sigmoid", [gate])]), up])
    result = add("Add", [result, residual]) if residual is not None else result
    if node.op_type.endswith("Logits"):
        add("Cast", [result], {"to": ir.DataType.FLOAT})
    return nodes


def on_a_cpu(package: Path, model: ir.Model) -> onnxruntime.InferenceSession:
    for node in list(model.graph):
        if node.domain == DOMAIN and node.op_type.endswith(("Linear", "Logits")):
            nodes = in_stock_operators(node)
            outputs = [output for new in nodes[-len(node.outputs) :] for output in new.outputs]
            ir.convenience.replace_nodes_and_values(model.graph, node, [node], nodes, node.outputs, outputs)
    # The library's operator and the stock body may differ in the last bit.
    angles = ir.serde.deserialize_function(rotary_angles_function())
    model.functions[angles.identifier()] = angles
    InlinePass()(model)
    ir.save(model, package / "written-out.onnx")
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(library_path()))
    return onnxruntime.InferenceSession(package / "written-out.onnx", options, providers=["CPUExecutionProvider"])


def distance(package: Path, model: ir.Model) -> float:
    """Relative L2 between the logits of a model and of the stock graph."""
    stock = load(package, lowering="stock")
    past = {entry.past_name: np.zeros((1, *entry.shape), entry.dtype) for entry in stock.manifest.state}
    expected, _ = stock.run(TOKENS, 0, past)
    feeds = {"input_ids": TOKENS, "position_ids": np.arange(TOKENS.size)[None], "logits_to_keep": np.array(0), **past}
    feeds["temperature"] = np.array(0, dtype=np.float32)
    (found,) = on_a_cpu(package, model).run(["logits"], feeds)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@needs_library
@pytest.mark.parametrize("mixer", slow_except(["gla"], ["gla", "hgrn2"]))
@pytest.mark.parametrize("variant", slow_except(["qwen3"], VARIANTS))
def test_the_graph_for_cuda_computes_what_stock_does_on_every_backbone(
    mixer: str, variant: str, tmp_path: Path
) -> None:
    assert distance(*cuda_graph(tmp_path, variant, mixer)) < 1e-5


@pytest.mark.slow
@needs_library
def test_the_graph_for_cuda_computes_what_stock_does_in_half_precision(tmp_path: Path) -> None:
    assert distance(*cuda_graph(tmp_path, weights="fp16")) < 5e-3


@pytest.mark.slow
@needs_library
@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_the_graph_for_cuda_computes_what_stock_does_with_integers(weights: str, tmp_path: Path) -> None:
    """Of few models: in some, a difference in the last bit moves an activation to the next integer."""
    distances = (distance(*cuda_graph(tmp_path / str(seed), seed=seed, weights=weights)) for seed in range(1, 5))
    assert any(each < 1e-5 for each in distances)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weights", "linear", "head"), [("fp16", "Linear", "Logits"), ("int4", "IntegerLinear", "IntegerLinear")]
)
def test_a_layer_is_five_nodes(weights: str, linear: str, head: str, tmp_path: Path) -> None:
    _, model = cuda_graph(tmp_path, layers=3, weights=weights)
    names = [node.op_type for node in model.graph]
    layers = [at for at, name in enumerate(names) if name == "Attention"]
    assert [after - before for before, after in pairwise(layers)] == [5, 5]
    assert names[layers[0] + 1 : layers[1]] == [linear] * 4
    assert names[-4:] == ["LastPositions", head, "MostLikely", "Candidates"]


@needs_library
@pytest.mark.parametrize(("weights", "product"), [("fp32", "FusedMatMul"), ("int4", "MatMulNBits")])
def test_a_layer_wider_than_kernels_support_is_left_to_onnx_runtime(
    weights: str, product: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("liger_export.export.cuda.MAX_COLUMNS", WIDE["hidden_size"])
    package, model = cuda_graph(tmp_path, layers=3, weights=weights)
    assert [node.op_type for node in model.graph].count(product) == 3  # from the intermediate size, one per layer
    assert distance(package, model) < 5e-3


def test_every_operator_for_a_gpu_reads_the_kernels(tmp_path: Path) -> None:
    _, model = cuda_graph(tmp_path, layers=3)
    attach_kernels(model.graph, b"some kernels")
    assert bytes(model.graph.initializers[KERNELS].const_value.numpy()) == b"some kernels"
    ours = [node for node in model.graph if node.domain == DOMAIN and node.op_type != "LastPositions"]
    assert len(ours) == 3 * 5 + 4
    assert all(node.inputs[-1].name == KERNELS for node in ours)


def test_kernels_are_those_that_the_layers_need(tmp_path: Path) -> None:
    _, model = cuda_graph(tmp_path, weights="int4")
    kernels = {node.attributes["kernel"].as_string() for node in model.graph if "kernel" in node.attributes}
    gated = {name for name in kernels if name.endswith("_gated")}
    assert len(gated) == 1
    assert all(name.startswith("integer_linear_kernel_4_32_") for name in kernels)
