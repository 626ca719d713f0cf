"""A bounded run of the operators' fuzzer. ``make fuzz`` runs more cases."""

import shutil
from pathlib import Path

import pytest

from tests.fuzz.counts import Outcome
from tests.fuzz.operators import build, fuzz

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("fuzz"))


def test_every_call_is_refused_or_answered_as_by_the_reference(program: Path) -> None:
    counts = fuzz(program, cases=2000)
    assert counts.faults == []
    assert counts.total() == 2000
    assert min(counts.total(outcome) for outcome in (Outcome.REFUSED, Outcome.SAME)) > 400
    attentions, linears = (
        {"Attention", "GSAAttention", "LoLCATsAttention"},
        {"IntegerLinear", "IntegerLogits", "Linear", "Logits"},
    )
    assert set(counts.by_kind) == {"Candidates", "GatedSiLU", "LastPositions", "MostLikely", *attentions, *linears}
