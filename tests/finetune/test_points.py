"""Runs that are killed, or whose disk is full, while they write a point to resume from."""

import hashlib
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer

from liger_export.errors import OutputError
from liger_export.finetune import FinetuneSettings, finetune
from liger_export.finetune.points import WorkDirectory
from tests.interruption import kill, runs_ended_by

SETTINGS = FinetuneSettings(rank=4, sequence_length=32, batch_size=2, learning_rate=2e-2, max_steps=7, save_steps=3)


@pytest.fixture
def uninterrupted(liger_checkpoint: Path, code_text: Path, tmp_path: Path) -> dict[str, str]:
    finetune(liger_checkpoint, code_text, tmp_path / "whole", SETTINGS)
    return content(tmp_path / "whole")


def content(directory: Path) -> dict[str, str]:
    """SHA-256 of each file in a directory."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def at_save(step: int, action: Callable[[Callable[[], None]], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Call ``action`` with the function that saves the point of a step, instead of that function."""
    original = Trainer._maybe_log_save_evaluate

    def log_and_save(trainer: Any, *arguments: Any, **options: Any) -> None:
        if trainer.state.global_step == step and trainer.control.should_save:
            action(lambda: original(trainer, *arguments, **options))
        else:
            original(trainer, *arguments, **options)

    monkeypatch.setattr(Trainer, "_maybe_log_save_evaluate", log_and_save)


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 6])
def test_a_run_killed_at_any_moment_of_a_save_ends_in_the_same_adapter(
    step: int,
    liger_checkpoint: Path,
    code_text: Path,
    tmp_path: Path,
    uninterrupted: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each distinct set of files that a kill leaves is resumed, or started again if it holds no point."""
    output, work, kept = tmp_path / "out", tmp_path / "out.work", tmp_path / "kept"
    left: dict[frozenset[str], Path] = {}

    def kill_everywhere(save: Callable[[], None]) -> None:
        shutil.copytree(work, kept)
        for number in runs_ended_by(kill, save):
            copied = left.setdefault(frozenset(content(work)), tmp_path / f"left-{number}")
            shutil.copytree(work, copied, dirs_exist_ok=True)
            shutil.rmtree(work)
            shutil.copytree(kept, work)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        at_save(step, kill_everywhere, patched)
        with pytest.raises(KeyboardInterrupt):
            finetune(liger_checkpoint, code_text, output, SETTINGS)
    shutil.rmtree(work)
    assert len(left) > 2

    resumed = set()
    for copied in left.values():
        copied.rename(work)
        resume = bool(WorkDirectory(work).points())
        if not resume:
            with pytest.raises(OutputError, match="no point to resume from"):
                finetune(liger_checkpoint, code_text, output, SETTINGS, resume=True)
        finetune(liger_checkpoint, code_text, output, SETTINGS, resume=resume)
        assert content(output) == uninterrupted
        assert not work.exists()
        shutil.rmtree(output)
        resumed.add(resume)
    assert resumed == ({False, True} if step == 3 else {True})


@pytest.mark.slow
def test_a_full_disk_keeps_the_earlier_point(
    liger_checkpoint: Path,
    code_text: Path,
    tmp_path: Path,
    uninterrupted: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The limit on the size of files has the effect of a full disk. Each limit stops another file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def save_with(most: int) -> Callable[[Callable[[], None]], None]:
        def save_limited(save: Callable[[], None]) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
            try:
                save()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)

        return save_limited

    for most in (100, 5500, 8000):  # written by Python, safetensors and PyTorch, which raise different errors
        with monkeypatch.context() as patched:
            at_save(6, save_with(most), patched)
            resume = (tmp_path / "out.work").exists()
            with pytest.raises(OutputError, match=r"out\.work cannot be written.*continue with --resume"):
                finetune(liger_checkpoint, code_text, tmp_path / "out", SETTINGS, resume=resume)
    finetune(liger_checkpoint, code_text, tmp_path / "out", SETTINGS, resume=True)
    assert content(tmp_path / "out") == uninterrupted


def write_point(work: WorkDirectory, step: int) -> None:
    written = work.partial / "any-name"
    written.mkdir(parents=True)
    for name in "abc":
        (written / name).write_text(name)
    work.publish(written, step)


def check_points_are_whole(work: WorkDirectory) -> None:
    work.require_own()
    for point in work.points():
        assert {path.name: path.read_text() for path in point.iterdir()} == {"a": "a", "b": "b", "c": "c"}


def test_points_are_whole_or_absent_at_any_moment(tmp_path: Path) -> None:
    """The two newest points are kept."""
    work = WorkDirectory(tmp_path / "work")
    write_point(work, 8)
    write_point(work, 9)
    newest = []
    for _ in runs_ended_by(kill, lambda: write_point(work, 10)):
        check_points_are_whole(work)
        latest = work.latest()
        assert latest is not None
        newest.append(latest.name)
        shutil.rmtree(work.path)
        for step in (8, 9):
            write_point(work, step)
    assert (newest[0], newest[-1], set(newest)) == ("point-9", "point-10", {"point-9", "point-10"})


def test_removal_that_is_killed_leaves_whole_points_and_can_be_repeated(tmp_path: Path) -> None:
    work = WorkDirectory(tmp_path / "work")

    def fill() -> None:
        write_point(work, 8)
        write_point(work, 10)
        work.record.write_text("{}")

    fill()
    for _ in runs_ended_by(kill, work.remove):
        if work.path.exists():
            check_points_are_whole(work)
            assert [point.name for point in work.points()] in ([], ["point-10"], ["point-8", "point-10"])
            work.prepare()
            work.remove()
        assert not work.path.exists()
        fill()


def test_a_work_directory_with_other_files_is_refused_and_kept(
    liger_checkpoint: Path, code_text: Path, tmp_path: Path
) -> None:
    (tmp_path / "out.work").mkdir()
    (tmp_path / "out.work" / "thesis.tex").write_text("text")
    with pytest.raises(OutputError, match=r"thesis\.tex is in the way"):
        finetune(liger_checkpoint, code_text, tmp_path / "out", SETTINGS)
    assert (tmp_path / "out.work" / "thesis.tex").read_text() == "text"
