"""``validate``: sound packages pass, and each kind of defect misses its bound."""

import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from liger_export.config import MIXERS
from liger_export.convert import convert
from liger_export.errors import DataError, InputError, NotFiniteError, OutputError
from liger_export.export import STANDARD_OPSET
from liger_export.files import sha256_file
from liger_export.linearize import LinearizeSettings
from liger_export.parity import ParityReport
from liger_export.parity.compare import mean_kl
from liger_export.precision import Precision
from liger_export.runtime import load
from liger_export.validate import ValidationSettings, validate
from tests.cells import slow_except
from tests.tiny import reseal, write_liger, write_overflowing


@pytest.fixture
def short(random_text: Path) -> ValidationSettings:
    """Settings with the fewest tokens that ``validate`` accepts."""
    return ValidationSettings(text=random_text, max_tokens=4096, memory_tokens=128)


@pytest.fixture
def without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure no memory, which takes a process of its own."""
    monkeypatch.setattr("liger_export.validate.run.measure_memory", lambda *_: None)


def failed(report: ParityReport) -> list[str]:
    return [check.name for check in report.checks if not check.passed]


@pytest.mark.slow
def test_a_converted_package_meets_every_bound_and_holds_its_report(package_copy: Path, liger_checkpoint: Path) -> None:
    report = validate(package_copy, liger_checkpoint, ValidationSettings(max_tokens=4096))
    assert failed(report) == []
    names = {check.name.split(":")[0] for check in report.checks}
    assert names >= {"logits", "perplexity", "any split, logits", "single steps", "drift", "batch neighbours", "state"}
    written = json.loads((package_copy / "parity.json").read_text())
    assert written["passed"] is True
    assert written["manifest_sha256"] == sha256_file(package_copy / "manifest.json")
    assert len(written["checks"]) == len(report.checks)


def test_a_read_only_package_is_refused_before_measuring_or_left_unchanged(
    package_copy: Path, liger_checkpoint: Path, short: ValidationSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def access(path: Path, mode: int) -> bool:  # root may write whatever the mode says
        return not Path(path).is_relative_to(package_copy)

    monkeypatch.setattr("liger_export.validate.run.os.access", access)
    before = {path.name: sha256_file(path) for path in package_copy.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr("liger_export.validate.run.TorchReference", None)
        with pytest.raises(OutputError, match=r"is read-only.*--json FILE"):
            validate(package_copy, liger_checkpoint, short)
    report = validate(package_copy, liger_checkpoint, replace(short, record=False))
    assert failed(report) == []
    assert "memory: bytes grown" in {check.name for check in report.checks}
    assert {path.name: sha256_file(path) for path in package_copy.iterdir()} == before


@pytest.mark.usefixtures("without_memory")
def test_a_package_with_other_weights_fails(package_copy: Path, tmp_path: Path, short: ValidationSettings) -> None:
    other = write_liger(tmp_path / "other", seed=3)
    report = validate(package_copy, other, short)
    assert not report.passed
    assert "logits: relative L2" in failed(report)
    assert "any split, logits: relative L2" not in failed(report)


@pytest.mark.usefixtures("without_memory")
def test_a_forgotten_adapter_fails(
    liger_checkpoint: Path, adapter: Path, tmp_path: Path, short: ValidationSettings
) -> None:
    package = tmp_path / "package"
    convert(liger_checkpoint, package, adapters=(adapter,))
    report = validate(package, liger_checkpoint, short)
    assert "logits: relative L2" in failed(report)


@pytest.mark.usefixtures("without_memory")
def test_a_graph_that_loses_state_fails_the_split_law(
    package_copy: Path, liger_checkpoint: Path, short: ValidationSettings
) -> None:
    """The present recurrent state is scaled: one call is right, several are not."""
    model = onnx.load(package_copy / "model.onnx", load_external_data=False)
    body = next(function for function in model.functions if function.name == "GLAAttention")
    node = next(node for node in body.node if node.op_type == "LinearAttention")
    node.output[1] = "exact_state"
    body.node.append(onnx.helper.make_node("Mul", ["exact_state", "typed_window_weight"], ["next_recurrent_state"]))
    onnx.save(model, package_copy / "model.onnx")
    reseal(package_copy)
    names = failed(validate(package_copy, liger_checkpoint, short))
    assert "logits: relative L2" not in names
    assert {"any split, logits: relative L2", "single steps: relative L2"} <= set(names)


def test_a_package_of_another_shape_is_refused(package: Path, tmp_path: Path) -> None:
    other = write_liger(tmp_path / "other", num_hidden_layers=1)
    with pytest.raises(InputError, match="not converted from this checkpoint"):
        validate(package, other)


def test_short_text_and_small_settings_are_refused(package: Path, liger_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("short")
    with pytest.raises(DataError, match="6 tokens"):
        validate(package, liger_checkpoint, ValidationSettings(text=tmp_path / "short.txt"))
    with pytest.raises(InputError, match="4,096"):
        validate(package, liger_checkpoint, ValidationSettings(max_tokens=10))
    with pytest.raises(InputError, match="at least 128"):
        validate(package, liger_checkpoint, ValidationSettings(memory_tokens=127))


@pytest.mark.usefixtures("without_memory")
@pytest.mark.parametrize("text", [True, False])
def test_logits_that_are_not_finite_are_an_error_that_names_layer_precision_and_fix(
    text: bool, random_text: Path, tmp_path: Path
) -> None:
    checkpoint = write_overflowing(tmp_path / "liger", "model.layers.0.mlp.down_proj")
    convert(checkpoint, tmp_path / "package", precision=Precision(weights="fp16"))
    settings = ValidationSettings(text=random_text if text else None, max_tokens=4096)
    with pytest.raises(NotFiniteError, match=r"not finite: .*layer 0 .*fp16.*another precision: --precision fp32"):
        validate(tmp_path / "package", checkpoint, settings)
    written = json.loads((tmp_path / "package" / "parity.json").read_text())
    assert written["passed"] is False
    assert [check["name"] for check in written["checks"]] == ["logits: not finite"]
    assert "layer 0" in written["checks"][0]["detail"]


FAST = [("gla", Precision(weights="int4"))]
FEWER_BITS = [(mixer, Precision(weights=weights)) for mixer in MIXERS for weights in ("fp16", "bf16", "int8", "int4")]
FEWER_BITS += [("gla", Precision(weights="int4", activation_precision=half)) for half in ("fp16", "bf16")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mixer", "precision"),
    slow_except(FAST, FEWER_BITS),
    ids=str,
)
def test_packages_with_fewer_bits_have_their_own_bounds(mixer: str, precision: Precision, tmp_path: Path) -> None:
    settings = LinearizeSettings(mixer=mixer)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 8, "num_key_value_heads": 4}
    is_bfloat16 = precision.activations == "bfloat16"
    scale = 0.1 if is_bfloat16 else 0.2  # at 0.2 the top logits of a random model are too close together for 8 bits
    checkpoint = write_liger(
        tmp_path / "liger", settings=settings, num_hidden_layers=1, initializer_range=scale, **sizes
    )
    convert(checkpoint, tmp_path / "package", precision=precision)
    report = validate(tmp_path / "package", checkpoint, ValidationSettings(max_tokens=4096, memory_tokens=128))
    assert failed(report) == []
    bounds = {check.name: check.bound for check in report.checks if check.bound is not None}
    assert ("perplexity: increase" if precision.quantizes else "logits: mean KL (nats)") in bounds
    bound = 5e-3 if is_bfloat16 else 1e-3
    assert {bounds[f"{law}: mean KL (nats)"] for law in ("any split, logits", "single steps")} == {bound}


@pytest.mark.slow
def test_graphs_for_other_runtimes_meet_the_bounds_too(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 8, "num_key_value_heads": 4}
    checkpoint = write_liger(tmp_path / "liger", num_hidden_layers=1, initializer_range=0.2, **sizes)
    convert(
        checkpoint, tmp_path / "package", precision=Precision(weights="int4"), targets=("web",), opset=STANDARD_OPSET
    )
    settings = ValidationSettings(max_tokens=4096, memory_tokens=128, lowering="webgpu")
    report = validate(tmp_path / "package", checkpoint, settings)
    assert failed(report) == []
    assert report.lowering == "webgpu"
    assert any(check.name.startswith("webgpu against stock") for check in report.checks)
    tokens = list(range(1, 41))
    expected = load(tmp_path / "package", lowering="stock").all_logits(tokens)
    for lowering in ("wasm", "standard"):
        session = load(tmp_path / "package", lowering=lowering)
        assert mean_kl(session.all_logits(tokens), expected) < 1e-3  # as between two ways to read a text
