"""A plausible report with round numbers."""

from liger_export.bench.report import BenchReport, Machine, Row, Sample
from liger_export.bench.settings import BenchSettings
from liger_export.bench.worker import PACKAGE, TRANSFORMER

CONTEXTS = (128, 4096, 32768)


def example_report(*, filled: bool = False, against: bool = True, contexts: tuple[int, ...] = CONTEXTS) -> BenchReport:
    """Return constant results for a package and growing ones for a transformer, with a filled cache if asked."""
    rows = []
    for context in contexts:
        steady = [Sample(context / speed, (0.001, 0.0011, 0.0012), 327_680, 120_000_000) for speed in (9e3, 1e4, 11e3)]
        rows.append(Row.of(PACKAGE, context, steady))
        if against:
            prefill = None if filled and context > 4096 else context / 5e3
            step = 0.003 + context * 1e-6
            rising = [Sample(prefill, (step, step * 1.1), 4096 * context, 460_000_000 + 6000 * context)] * 3
            rows.append(Row.of(TRANSFORMER, context, rising))
    return BenchReport(
        package="package",
        against="base" if against else None,
        precisions={PACKAGE: "fp32 in ONNX Runtime", **({TRANSFORMER: "float32 in PyTorch"} if against else {})},
        machine=Machine("A Processor", {"onnxruntime": "1.32.0"}),
        settings=BenchSettings(contexts=contexts, threads=2),
        rows=tuple(rows),
        model="liger_gla (8 layers of 256) from liger",
    )
