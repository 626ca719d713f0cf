import pytest

from liger_export.commands.console import interrupt, print_error, raise_swallowed_interrupt


def test_a_swallowed_interrupt_is_raised_again() -> None:
    raise_swallowed_interrupt()
    with pytest.raises(KeyboardInterrupt):
        interrupt()
    with pytest.raises(KeyboardInterrupt):
        raise_swallowed_interrupt()
    raise_swallowed_interrupt()


def test_a_refusal_is_two_lines_however_narrow_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    path = "/a/long/path/to/a/checkpoint/that/does/not/exist/config.json"
    print_error(f"{path} is missing.", "Pass the directory that was made by linearize.")
    assert capsys.readouterr().err.splitlines() == [
        f"error: {path} is missing.",
        "fix:   Pass the directory that was made by linearize.",
    ]
