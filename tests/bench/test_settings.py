from pathlib import Path

import pytest

from liger_export.bench.settings import BenchSettings, default_threads, parse_against, parse_contexts
from liger_export.errors import InputError


def test_contexts_are_sorted_and_unique() -> None:
    assert parse_contexts("4096, 128,4096") == (128, 4096)


@pytest.mark.parametrize("text", ["", " , ", "0", "-5", "128,0", "128,,4096", "1.5", "4k", "²", "128;4096"])
def test_an_invalid_list_of_contexts_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_contexts(text)
    assert "128,4096" in refused.value.fix


@pytest.mark.parametrize("text", ["", "base", "hf:", "gguf:base", "hf:/nowhere/at/all"])
def test_an_invalid_transformer_is_refused_with_the_expected_form(text: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_against(text)
    assert "hf:DIR" in refused.value.fix


def test_a_directory_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        parse_against(f"hf:{tmp_path}")
    (tmp_path / "config.json").write_text("{}")
    assert parse_against(f"hf:{tmp_path}") == tmp_path


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (BenchSettings(contexts=()), "contexts"),
        (BenchSettings(contexts=(0, 8)), "contexts"),
        (BenchSettings(tokens=0), "tokens"),
        (BenchSettings(repeats=0), "repeats"),
        (BenchSettings(threads=0), "threads"),
        (BenchSettings(dtype="int8"), "int8"),
    ],
)
def test_settings_out_of_range_are_refused(settings: BenchSettings, named: str) -> None:
    with pytest.raises(InputError, match=named):
        settings.check()


def test_the_number_of_threads_has_a_default() -> None:
    assert BenchSettings().threads == default_threads() >= 1
