"""The fused lowering computes what stock does, in a smaller graph over the same weights."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest

from liger_export.config import MIXERS
from liger_export.convert import convert
from liger_export.errors import KernelError, UnsupportedModelError
from liger_export.kernels.shapes import KERNEL_MIXERS
from liger_export.linearize import LinearizeSettings
from liger_export.ops.signatures import SIGNATURES
from liger_export.package import MODEL_FILES, read_manifest
from liger_export.parity.compare import mean_kl
from liger_export.precision import Precision
from liger_export.runtime import Sampling, load
from liger_export.runtime.dynamic import DynamicExecutor
from liger_export.runtime.sampling import Sampler
from liger_export.validate import ValidationSettings, validate
from tests.backbones import VARIANTS, settings_of, write_variant
from tests.cells import slow_except
from tests.plugins.sessions import needs_library
from tests.tiny import WIDE, Shape, write_liger

TOKENS = [int(token) for token in np.random.default_rng(0).integers(1, 260, 150)]


def fused_package(directory: Path, mixer: str = "gla", variant: str = "llama", **options: object) -> Path:
    checkpoint = write_variant(directory / "liger", mixer, variant)
    convert(checkpoint, directory / "package", lowering="fused", **options)  # type: ignore[arg-type]
    return directory / "package"


def operators(package: Path, lowering: str) -> list[str]:
    graph = onnx.load(package / MODEL_FILES[lowering], load_external_data=False).graph
    return [node.op_type for node in graph.node]


@needs_library
@pytest.mark.parametrize("variant", slow_except(["qwen3"], VARIANTS))
@pytest.mark.parametrize("mixer", slow_except(["gla"], MIXERS))
def test_fused_equals_stock_on_every_backbone(mixer: str, variant: str, tmp_path: Path) -> None:
    package = fused_package(tmp_path, mixer, variant)
    stock, fused = load(package, lowering="stock"), load(package)
    assert (stock.lowering, fused.lowering) == ("stock", "fused")
    expected = stock.all_logits(TOKENS)
    assert np.linalg.norm(fused.all_logits(TOKENS) - expected) / np.linalg.norm(expected) < 1e-5
    for name, tensor in stock.state().tensors.items():
        assert np.linalg.norm(fused.state().tensors[name] - tensor) / np.linalg.norm(tensor) < 1e-5, name


@pytest.mark.slow
@needs_library
@pytest.mark.parametrize("mixer", MIXERS)
def test_nan_of_q_and_k_reaches_all_logits_as_in_stock(mixer: str, tmp_path: Path) -> None:
    package = fused_package(tmp_path, mixer)
    graph = onnx.load(package / MODEL_FILES["stock"], load_external_data=False).graph
    name = "model.layers.0.self_attn.q_proj+k_proj+v_proj.weight"
    weight = next(each for each in graph.initializer if each.name == name)
    place = {entry.key: entry.value for entry in weight.external_data}
    with (package / place["location"]).open("r+b") as file:
        file.seek(int(place["offset"]))
        file.write(np.full(int(place["length"]) // 2 // 4, np.nan, np.float32).tobytes())  # the rest includes v
    for lowering in ("stock", "fused"):
        assert np.isnan(load(package, lowering=lowering).all_logits(TOKENS)).all()


@pytest.mark.slow
@needs_library
@pytest.mark.parametrize("mixer", MIXERS)
def test_fused_package_meets_every_bound_of_validate(mixer: str, tmp_path: Path) -> None:
    settings = ValidationSettings(max_tokens=4096, memory_tokens=256)
    checkpoint = write_variant(tmp_path / "liger", mixer)
    convert(checkpoint, tmp_path / "package", lowering="fused")
    report = validate(tmp_path / "package", checkpoint, settings)
    assert [check.name for check in report.checks if not check.passed] == []
    assert report.lowering == "fused"
    (against_stock,) = (check for check in report.checks if check.name.startswith("fused against stock"))
    assert 0 < against_stock.value <= 1e-5


@needs_library
@pytest.mark.parametrize("mixer", slow_except(["gla"], MIXERS))
@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_fused_equals_stock_for_integers_and_half_precision_activations(
    mixer: str, weights: str, tmp_path: Path
) -> None:
    checkpoint = write_liger(tmp_path / "liger", settings=settings_of(mixer), initializer_range=0.2, **WIDE)
    precision = Precision(weights=weights, activation_precision="fp16")
    convert(checkpoint, tmp_path / "package", lowering="fused", precision=precision)
    stock, fused = load(tmp_path / "package", lowering="stock"), load(tmp_path / "package")
    assert (fused.lowering, fused.manifest.activations) == ("fused", "float16")
    expected = stock.all_logits(TOKENS)
    assert mean_kl(fused.all_logits(TOKENS), expected) <= 1e-3
    fused.reset()
    assert mean_kl(np.stack([fused.step(token) for token in TOKENS]), expected) <= 1e-3


@needs_library
def test_both_graphs_write_the_same_text(tmp_path: Path) -> None:
    package = fused_package(tmp_path)
    texts = [
        "".join(load(package, lowering=lowering).generate("def", max_new_tokens=40)) for lowering in ("stock", "fused")
    ]
    assert texts[0] == texts[1] != ""


SAMPLINGS = [
    Sampling(temperature=1.0, seed=1),
    Sampling(temperature=0.7, top_k=40, top_p=0.9, seed=2),
    Sampling(temperature=1.3, min_p=0.02, repetition_penalty=1.3, seed=3),
    Sampling(repetition_penalty=1.2),
]


@needs_library
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_candidates_choose_what_all_logits_choose(
    sampling: Sampling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = fused_package(tmp_path)
    tokens = load(package).sample_tokens(60, sampling)
    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "top_logits_temperature", 0.0)  # as if the top logits never sufficed
        assert load(package).sample_tokens(60, sampling) == tokens
    if sampling.top_k or not sampling.temperature:
        unread = load(package)
        monkeypatch.setattr(unread.executor, "last_logits", lambda: pytest.fail("logits were read"))
        assert unread.sample_tokens(60, sampling) == tokens


@needs_library
def test_a_graph_without_candidates_is_sampled_from_its_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages of earlier versions have no such output."""
    tokens = load(fused_package(tmp_path / "new")).sample_tokens(20, SAMPLINGS[0])
    monkeypatch.setattr("liger_export.export.fused._add_top_logits", lambda *_: None)
    old = load(fused_package(tmp_path / "old"))
    assert isinstance(old.executor, DynamicExecutor)
    assert "candidates" not in [output.name for output in old.executor.model.get_outputs()]
    assert old.sample_tokens(20, SAMPLINGS[0]) == tokens


@pytest.mark.parametrize(("weights", "nodes"), [("fp32", 8), ("int4", 5)])
def test_a_layer_is_few_nodes_over_the_same_weights(weights: str, nodes: int, tmp_path: Path) -> None:
    checkpoint = write_variant(tmp_path / "liger", num_hidden_layers=3)
    convert(checkpoint, tmp_path / "package", lowering="fused", precision=Precision(weights=weights))
    fused = operators(tmp_path / "package", "fused")
    layers = [at for at, name in enumerate(fused) if name == "Attention"]
    assert [after - before for before, after in pairwise(layers)] == [nodes, nodes]
    assert "Attention" not in operators(tmp_path / "package", "stock")
    files = {path.name for path in (tmp_path / "package").iterdir()}
    assert {name for name in files if name.endswith(".data")} == {"model.onnx.data"}
    graphs = read_manifest(tmp_path / "package").graphs
    assert graphs["fused"].in_place == graphs["stock"].in_place


def test_layers_that_keep_softmax_do_not_change(tmp_path: Path) -> None:
    settings = LinearizeSettings(keep_softmax_every=2, softmax_window=16)
    checkpoint = write_liger(tmp_path / "liger", settings=settings)
    convert(checkpoint, tmp_path / "package", lowering="fused")
    names = operators(tmp_path / "package", "fused")
    assert (names.count("Attention"), names.count("SoftmaxAttention")) == (1, 1)


def test_a_head_size_without_whole_vectors_is_rejected_before_any_work(tmp_path: Path) -> None:
    checkpoint = write_liger(tmp_path / "liger", Shape(head_dim=12))
    with pytest.raises(UnsupportedModelError, match=r"multiple of 8.*--lowering stock"):
        convert(checkpoint, tmp_path / "package", lowering="fused")
    assert not (tmp_path / "package").exists()


@pytest.mark.parametrize("mixer", slow_except(["gsa"], sorted(set(MIXERS) - set(KERNEL_MIXERS))))
def test_a_mixer_without_gpu_kernels_has_a_fused_graph_for_a_cpu_only(mixer: str, tmp_path: Path) -> None:
    checkpoint = write_liger(tmp_path / "liger", settings=settings_of(mixer))
    with pytest.raises(UnsupportedModelError, match=f"no GPU kernels for the mixer {mixer}.*Omit --targets"):
        convert(checkpoint, tmp_path / "package", lowering="fused", targets=("sm_90",))
    assert not (tmp_path / "package").exists()
    manifest = convert(checkpoint, tmp_path / "package", lowering="fused")
    assert list(manifest.graphs) == ["stock", "fused"]
    assert manifest.graphs["fused"].in_place == [entry.past_name for entry in manifest.state]
    assert operators(tmp_path / "package", "fused").count(SIGNATURES[mixer].onnx_name) == 2


def test_unknown_lowering_is_rejected(liger_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="stock"):
        convert(liger_checkpoint, tmp_path / "package", lowering="magic")


def test_targets_need_the_fused_lowering_and_must_be_known(tmp_path: Path) -> None:
    checkpoint = write_liger(tmp_path / "liger")
    with pytest.raises(UnsupportedModelError, match="--lowering fused"):
        convert(checkpoint, tmp_path / "package", targets=("sm_90",))
    wide = write_liger(tmp_path / "wide", Shape(2, 1, head_dim=32, window=16))
    with pytest.raises(KernelError, match=r"no target sm_1.*sm_90"):
        convert(wide, tmp_path / "package", lowering="fused", targets=("sm_1",))
    assert not (tmp_path / "package").exists()
