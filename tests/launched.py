"""A process of ``test_accelerate``: several jobs in a row, because a process takes seconds to import PyTorch.

    accelerate launch -m tests.launched FOLDER

``FOLDER/jobs.json`` has a name and arguments per job: those of a command, ``interrupted`` and those of ``finetune``, or
``sharded`` and those of ``tests.sharded``. The outputs of rank R are in ``FOLDER/NAME.R.json``. The exit code is the
last job's.
"""

import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

from liger_export import cli
from liger_export.distributed import processes
from liger_export.finetune import training
from tests import sharded


@contextmanager
def interrupted_after_the_last_step() -> Iterator[None]:
    """Interrupt ``finetune`` when it measures the trained model, when there is a checkpoint to resume from."""
    measure, calls = training.measure_quality, 0

    def interrupt(*arguments, **options):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return measure(*arguments, **options)

    with patch.object(training, "measure_quality", interrupt):
        yield


def run(arguments: list[str]) -> int:
    """Run a job and return its exit code."""
    if arguments[0] == "sharded":
        sharded.main(Path(arguments[1]), arguments[2])
        return 0
    is_interrupted = arguments[0] == "interrupted"
    command = arguments[1:] if is_interrupted else arguments
    with interrupted_after_the_last_step() if is_interrupted else nullcontext():
        try:
            cli.main(lambda: cli.app(command, prog_name="liger-export"))
        except SystemExit as ended:
            return int(ended.code or 0)
    return 0


def main(folder: Path) -> int:
    rank, code = processes().process_index, 0
    for name, arguments in json.loads((folder / "jobs.json").read_text()).items():
        stdout, stderr = io.StringIO(), io.StringIO()
        with redirect_stdout(stdout), redirect_stderr(stderr):
            code = run(arguments)
        result = {"code": code, "stdout": stdout.getvalue(), "stderr": stderr.getvalue()}
        (folder / f"{name}.{rank}.json").write_text(json.dumps(result))
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
