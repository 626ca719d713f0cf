"""A bounded run of the fuzzer of files. ``make fuzz`` runs more cases."""

from pathlib import Path

import pytest

from tests.fuzz.counts import Outcome
from tests.fuzz.files import KINDS, fuzz, write_examples

pytestmark = pytest.mark.slow


def test_damaged_files_are_refused_or_give_the_same_answer(tmp_path: Path) -> None:
    write_examples(tmp_path)
    counts = fuzz(tmp_path, cases=450)
    assert counts.faults == []
    assert counts.total() == 450
    # Both outcomes are common. All changes of a manifest are refused, and so are most of states and packages.
    assert min(counts.total(outcome) for outcome in (Outcome.REFUSED, Outcome.SAME)) > 450 / 4
    assert set(counts.by_kind) == set(KINDS)
