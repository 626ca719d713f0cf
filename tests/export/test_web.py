"""The graphs for browsers against the stock graph, in ONNX Runtime on the CPU."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from liger_export.convert import convert
from liger_export.errors import UnsupportedModelError
from liger_export.linearize import LinearizeSettings
from liger_export.ort import ort
from liger_export.package import MODEL_FILES
from liger_export.precision import Precision
from liger_export.runtime import load
from tests.cells import slow_except
from tests.export.test_integers import SIZES, TOKENS, logits_of_rounded_model, multiply_in_float32
from tests.tiny import relative_l2, write_liger

CALLS = (3, 1, 1, 9, 1, 20, 1, 1, 2, 1)  # tokens, around and beyond the window of 8

WINDOW = (".key", ".value")


def opened(package: Path, lowering: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # as the page in examples/browser does
    return ort.InferenceSession(package / MODEL_FILES[lowering], options)


def read(session: ort.InferenceSession) -> list[np.ndarray]:
    """Every call's logits, and the filled rows of the final state. The window begins as NaN."""
    names = [each.name for each in session.get_outputs()]
    state = {
        each.name: np.full([1, *each.shape[1:]], np.nan if each.name.endswith(WINDOW) else 0, np.float32)
        for each in session.get_inputs()
        if each.name.startswith("past")
    }
    rng, seen, results = np.random.default_rng(0), 0, []
    for count in CALLS:
        ids = rng.integers(1, 260, [1, count])
        feed = {"input_ids": ids, "position_ids": np.arange(seen, seen + count)[None], "logits_to_keep": np.array(0)}
        found = dict(zip(names, session.run(None, feed | state), strict=True))
        results.append(found["logits"])
        state = {name: found[name.replace("past_key_values", "present")] for name in state}
        seen += count
    filled = [value[:, :, :seen] if name.endswith(WINDOW) else value for name, value in state.items()]
    return [*results, *filled]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mixer", "keep_softmax_every"), [("gla", None), ("hgrn2", None), ("gsa", None), ("lolcats", None), ("gla", 2)]
)
def test_the_webgpu_graph_equals_the_stock_graph_in_any_split(
    mixer: str, keep_softmax_every: int | None, tmp_path: Path
) -> None:
    settings = LinearizeSettings(mixer=mixer, window_size=8, keep_softmax_every=keep_softmax_every)
    convert(write_liger(tmp_path / "liger", settings=settings), tmp_path / "package", targets=("web",))
    stock, webgpu = (read(opened(tmp_path / "package", lowering)) for lowering in ("stock", "webgpu"))
    for expected, result in zip(stock, webgpu, strict=True):
        assert relative_l2(torch.from_numpy(result), torch.from_numpy(expected)) < 1e-5


def test_the_webgpu_graph_has_no_group_query_attention_and_refuses_a_batch(tmp_path: Path) -> None:
    convert(write_liger(tmp_path / "liger"), tmp_path / "package", targets=("web",))
    model = onnx.load(tmp_path / "package" / MODEL_FILES["webgpu"], load_external_data=False)
    operators = {node.op_type for function in model.functions for node in function.node}
    assert "LinearAttention" in operators
    assert "GroupQueryAttention" not in operators
    assert {
        each.type.tensor_type.shape.dim[0].dim_value for each in model.graph.input if each.name != "logits_to_keep"
    } == {1}


@pytest.mark.parametrize(
    "precision",
    [Precision(weights="int4"), Precision(weights="int8", symmetric=True), Precision(weights="int4", lm_head="int8")],
    ids=str,
)
@pytest.mark.parametrize("backbone", slow_except(["llama"], ["llama", "qwen2"]))
def test_the_wasm_graph_computes_with_the_rounded_weights(tmp_path: Path, backbone: str, precision: Precision) -> None:
    checkpoint = write_liger(tmp_path / "liger", backbone=backbone, tie_word_embeddings=True, **SIZES)
    package = tmp_path / "package"
    convert(checkpoint, package, precision=precision, targets=("web",))
    graph = onnx.load(package / MODEL_FILES["wasm"], load_external_data=False).graph
    assert {"DequantizeLinear", "GatherBlockQuantized"} < {node.op_type for node in graph.node}
    shutil.copy(package / MODEL_FILES["wasm"], package / MODEL_FILES["stock"])
    multiply_in_float32(package)  # those that stay products of integers
    logits = torch.from_numpy(load(package).all_logits(TOKENS))
    assert relative_l2(logits, logits_of_rounded_model(checkpoint, precision)) < 1e-5


def test_products_whose_rows_end_within_a_byte_stay_as_they_are(tmp_path: Path) -> None:
    checkpoint = write_liger(tmp_path / "liger", **{**SIZES, "intermediate_size": 96})
    convert(checkpoint, tmp_path / "package", precision=Precision(weights="int4"), targets=("web",))
    graph = onnx.load(tmp_path / "package" / MODEL_FILES["wasm"], load_external_data=False).graph
    kept = [node for node in graph.node if node.op_type == "MatMulNBits"]
    columns = [attribute.i for node in kept for attribute in node.attribute if attribute.name == "K"]
    assert columns == [96, 96], "3 blocks of 32: one and a half bytes of zero points in a row"


def test_both_graphs_read_the_bytes_of_the_stock_graph(tmp_path: Path) -> None:
    checkpoint = write_liger(tmp_path / "liger", **SIZES)
    manifests = [
        convert(checkpoint, tmp_path / name, precision=Precision(weights="int8"), targets=targets)
        for name, targets in (("without", ()), ("with", ("web",)))
    ]
    sizes = [manifest.files["model.onnx.data"]["bytes"] for manifest in manifests]
    assert sizes[0] == sizes[1]
    assert set(json.loads((tmp_path / "with" / "manifest.json").read_text())["graphs"]) == {"stock", "wasm", "webgpu"}


def test_bfloat16_is_refused_because_browsers_lack_it(tmp_path: Path) -> None:
    checkpoint = write_liger(tmp_path / "liger")
    with pytest.raises(UnsupportedModelError, match="bfloat16"):
        convert(checkpoint, tmp_path / "package", precision=Precision(weights="bf16"), targets=("web",))
    assert not (tmp_path / "package").exists()
