import json

import pytest

from liger_export.bench.report import BenchReport, Machine, Row, Sample, processor_name
from liger_export.bench.settings import BenchSettings
from tests.bench.reports import example_report


def test_a_row_summarizes_prefill_by_process_and_decoding_by_token() -> None:
    samples = [Sample(2.0, (0.1, 0.2), 640, 1000), Sample(4.0, (0.5, 0.25), 640, 3000)]
    row = Row.of("package", 8, samples)
    assert row.first_token_seconds is not None
    assert row.prefill_tokens_per_second is not None
    assert row.first_token_seconds.median == pytest.approx(3)
    assert row.prefill_tokens_per_second.median == pytest.approx((8 / 2 + 8 / 4) / 2)
    assert row.decode_tokens_per_second.median == pytest.approx((4 + 5) / 2)
    assert row.peak_rss_bytes.median == pytest.approx(2000)
    assert row.memory_bytes == 640


def test_a_filled_cache_has_no_prefill_and_a_footnote() -> None:
    row = Row.of("transformer", 8192, [Sample(None, (0.1,), 640, 1000)])
    assert row.first_token_seconds is None
    assert row.prefill_tokens_per_second is None
    assert any("random keys and values" in line for line in example_report(filled=True).footnotes)
    assert not any("random keys and values" in line for line in example_report().footnotes)


def test_json_contains_every_result_and_how_it_was_measured() -> None:
    report = example_report(filled=True)
    values = json.loads(report.to_json())
    assert [row["context"] for row in values["rows"]] == [128, 128, 4096, 4096, 32768, 32768]
    assert [row["contender"] for row in values["rows"]] == ["package", "transformer"] * 3
    assert list(values["rows"][0]) == [
        "contender", "context", "prefill_tokens_per_second", "first_token_seconds", "decode_tokens_per_second",
        "peak_rss_bytes", "memory_bytes",
    ]  # fmt: skip
    assert values["rows"][-1]["first_token_seconds"] is None
    first = report.rows[0].decode_tokens_per_second
    assert values["rows"][0]["decode_tokens_per_second"] == {"median": first.median, "p10": first.p10, "p90": first.p90}
    assert values["settings"]["threads"] == 2
    assert values["machine"] == {"processor": "A Processor", "versions": {"onnxruntime": "1.32.0"}}
    assert tuple(values["footnotes"]) == report.footnotes


def test_footnotes_name_the_machine_and_end_with_the_notes() -> None:
    settings = BenchSettings(threads=3, repeats=2)
    machine = Machine(processor_name(), {"onnxruntime": "1.32.0"})
    report = BenchReport("package", None, {"package": "fp32"}, machine, settings, (), ("A note.",))
    assert processor_name() in report.footnotes[0]
    assert "threads: 3" in report.footnotes[0]
    assert "onnxruntime 1.32.0" in report.footnotes[0]
    assert report.footnotes[-1] == "A note."
