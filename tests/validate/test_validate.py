import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from liger_export.config import MIXERS
from liger_export.convert import convert
from liger_export.errors import DataError, InputError
from liger_export.files import sha256_file
from liger_export.linearize import LinearizeSettings
from liger_export.package import read_manifest
from liger_export.parity import Check, ParityReport
from liger_export.parity.compare import add_block, relative_l2
from liger_export.parity.report import LogitParity
from liger_export.parity.tolerances import tolerances_of
from liger_export.precision import Precision
from liger_export.validate import validate
from liger_export.validate.laws import Subjects, check_drift
from liger_export.validate.run import _certify_memory
from tests.plugins.sessions import needs_library
from tests.tiny import edit_json, write_liger


def reseal(package: Path) -> None:
    """Make the manifest agree with files that a test has changed on purpose."""
    files = json.loads((package / "manifest.json").read_text())["files"]
    for name in files:
        path = package / name
        files[name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    edit_json(package / "manifest.json", files=files)


def failed(report: ParityReport) -> list[str]:
    return [check.name for check in report.checks if not check.passed]


def test_converted_package_meets_every_bound_and_carries_its_report(package_copy: Path, liger_checkpoint: Path) -> None:
    report = validate(package_copy, liger_checkpoint, max_tokens=4096)
    assert failed(report) == []
    names = {check.name.split(":")[0] for check in report.checks}
    assert names >= {"logits", "perplexity", "any split, logits", "single steps", "drift", "batch neighbours", "state"}
    written = json.loads((package_copy / "parity.json").read_text())
    assert written["passed"] is True
    assert written["manifest_sha256"] == sha256_file(package_copy / "manifest.json")
    assert len(written["checks"]) == len(report.checks)


def test_package_of_other_weights_fails(package_copy: Path, tmp_path: Path, random_text: Path) -> None:
    other = write_liger(tmp_path / "other", seed=3)
    report = validate(package_copy, other, text=random_text, max_tokens=4096, memory_tokens=128)
    assert not report.passed
    assert "logits: relative L2" in failed(report)
    assert "any split, logits: relative L2" not in failed(report)


def test_forgotten_adapter_fails(liger_checkpoint: Path, adapter: Path, tmp_path: Path, random_text: Path) -> None:
    package = tmp_path / "package"
    convert(liger_checkpoint, package, adapters=(adapter,))
    report = validate(package, liger_checkpoint, text=random_text, max_tokens=4096, memory_tokens=128)
    assert "logits: relative L2" in failed(report)


def test_graph_that_forgets_its_state_fails_the_split_law(
    package_copy: Path, liger_checkpoint: Path, random_text: Path
) -> None:
    """The present recurrent state is scaled: one call is right, several are not."""
    model = onnx.load(package_copy / "model.onnx", load_external_data=False)
    body = next(function for function in model.functions if function.name == "GLAAttention")
    node = next(node for node in body.node if node.op_type == "LinearAttention")
    node.output[1] = "exact_state"
    body.node.append(onnx.helper.make_node("Mul", ["exact_state", "typed_window_weight"], ["next_recurrent_state"]))
    onnx.save(model, package_copy / "model.onnx")
    reseal(package_copy)
    names = failed(validate(package_copy, liger_checkpoint, text=random_text, max_tokens=4096, memory_tokens=128))
    assert "logits: relative L2" not in names
    assert {"any split, logits: relative L2", "single steps: relative L2"} <= set(names)


def test_package_of_another_shape_is_refused(package: Path, tmp_path: Path) -> None:
    other = write_liger(tmp_path / "other", num_hidden_layers=1)
    with pytest.raises(InputError, match="not converted from this checkpoint"):
        validate(package, other)


@needs_library
def test_memory_of_a_graph_for_a_gpu_is_watched_on_the_cpu(liger_checkpoint: Path, tmp_path: Path) -> None:
    convert(liger_checkpoint, tmp_path / "package", lowering="fused")
    on_gpu = SimpleNamespace(lowering="cuda", device="cuda", manifest=read_manifest(tmp_path / "package"))
    growth = _certify_memory(tmp_path / "package", on_gpu, 128)  # type: ignore[arg-type]
    assert (growth.from_token, growth.to_token) == (64, 128)
    assert read_manifest(tmp_path / "package").memory is not None


def test_short_text_is_refused(package: Path, liger_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("short")
    with pytest.raises(DataError, match="6 tokens"):
        validate(package, liger_checkpoint, text=tmp_path / "short.txt")
    with pytest.raises(InputError, match="4,096"):
        validate(package, liger_checkpoint, max_tokens=10)


def test_logit_figures_equal_their_definitions() -> None:
    random = np.random.default_rng(0)
    reference = random.standard_normal((6, 5)).astype(np.float32)
    measured = reference + 0.1 * random.standard_normal((6, 5)).astype(np.float32)
    targets = np.array([0, 4, 2, 2, 1])
    parity = LogitParity()
    add_block(parity, measured[:3], reference[:3], targets[:3])
    add_block(parity, measured[3:], reference[3:], targets[3:])
    p, q = (np.exp(x.astype(float)) / np.exp(x.astype(float)).sum(1, keepdims=True) for x in (reference, measured))
    assert parity.relative_l2 == pytest.approx(relative_l2(measured, reference))
    assert parity.kl == pytest.approx((p * np.log(p / q)).sum())
    assert parity.top1 == (p.argmax(1) == q.argmax(1)).sum()
    assert parity.max_abs == pytest.approx(np.abs(measured - reference).max())
    assert parity.reference_nll == pytest.approx(-np.log(p[np.arange(5), targets]).sum())
    assert (parity.positions, parity.scored) == (6, 5)


def test_a_value_that_is_no_number_never_passes() -> None:
    nan = float("nan")
    assert not Check("x", nan, 1.0).passed
    assert not Check("x", nan, 1.0, at_least=True).passed
    assert not Check("x", nan).passed
    assert Check("x", 1.0, 1.0).passed
    assert not ParityReport("p", "r", "stock", "cpu", "0", {}).passed
    parity = LogitParity()
    logits = np.full((2, 3), np.nan, dtype=np.float32)
    add_block(parity, logits, np.ones_like(logits), np.array([0, 1]))
    assert np.isnan(parity.relative_l2)
    assert np.isnan(parity.max_abs)


FEWER_BITS = [(mixer, Precision(weights=weights)) for mixer in MIXERS for weights in ("fp16", "bf16", "int8", "int4")]
FEWER_BITS += [("gla", Precision(weights="int4", activation_precision=half)) for half in ("fp16", "bf16")]


@pytest.mark.parametrize(("mixer", "precision"), FEWER_BITS, ids=str)
def test_packages_with_fewer_bits_are_held_to_their_own_bounds(
    mixer: str, precision: Precision, tmp_path: Path
) -> None:
    settings = LinearizeSettings(mixer=mixer)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 8, "num_key_value_heads": 4}
    is_bfloat16 = precision.activations == "bfloat16"
    scale = 0.1 if is_bfloat16 else 0.2  # at 0.2 a random model's first choices lie too close together for 8 bits
    checkpoint = write_liger(
        tmp_path / "liger", settings=settings, num_hidden_layers=1, initializer_range=scale, **sizes
    )
    convert(checkpoint, tmp_path / "package", precision=precision)
    report = validate(tmp_path / "package", checkpoint, max_tokens=4096, memory_tokens=128)
    assert failed(report) == []
    bounds = {check.name: check.bound for check in report.checks if check.bound is not None}
    assert ("perplexity: lost" if precision.quantizes else "logits: mean KL (nats)") in bounds
    bound = 5e-3 if is_bfloat16 else 1e-3
    assert {bounds[f"{law}: mean KL (nats)"] for law in ("any split, logits", "single steps")} == {bound}


def test_weights_rounded_too_far_miss_the_perplexity_bound() -> None:
    parity = LogitParity(measured_nll=1.041, reference_nll=1.0, scored=1, squared_reference=1.0, positions=1)
    checks = tolerances_of(Precision(weights="int4"), ["model.embed_tokens.weight"]).logit_checks(parity, "")
    assert [check.name for check in checks if not check.passed] == ["perplexity: lost"]


def late_drift(weights: str, distance: float) -> Check:
    """Of a package whose steps are exact for 128 tokens, and ``distance`` away from its one call in the last 128."""
    logits = np.random.default_rng(0).standard_normal((512, 16)).astype(np.float32)
    stepped = logits.copy()
    stepped[-128:] *= 1 + distance
    session = SimpleNamespace(reset=lambda: None, all_logits=lambda tokens: logits, step=lambda token: stepped[token])
    tolerances = tolerances_of(Precision(weights=weights), ["model.layers.0.mlp.up_proj.weight"])
    *_, drift = check_drift(Subjects(session, None, tolerances), np.arange(512), [8], 512)  # type: ignore[arg-type]
    return drift


@pytest.mark.parametrize(("weights", "bits"), [("fp16", 11), ("bf16", 8), ("int8", 8), ("int4", 8)])
def test_drift_is_counted_from_one_rounding_on(weights: str, bits: int) -> None:
    assert late_drift(weights, 1.9 * 2**-bits).passed
    assert not late_drift(weights, 2.1 * 2**-bits).passed


def test_growth_measured_lands_in_the_manifest(package_copy: Path, liger_checkpoint: Path, random_text: Path) -> None:
    validate(package_copy, liger_checkpoint, text=random_text, max_tokens=4096, memory_tokens=200)
    memory = read_manifest(package_copy).memory
    assert memory is not None
    assert (memory["from_token"], memory["to_token"], memory["bytes_grown"]) == (64, 200, 0)
