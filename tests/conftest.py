"""Start and end of a test run. The fixtures that all tests share are in ``tests/fixtures.py``."""

import gc
import os

import pytest

# pytest-xdist runs one process per core, so more threads only wait for each other. Set before numpy and PyTorch are
# imported; processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

COMPILED = "compiled"


def pytest_configure(config: pytest.Config) -> None:
    """Load the fixtures, unless this process only hands out tests: its workers would wait while it imports PyTorch."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", 0):
        config.pluginmanager.import_plugin("tests.fixtures")


def pytest_collection_finish() -> None:
    """Keep everything that has been imported out of later garbage collections."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # so that nothing seems to be leaked


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List the compiled code that tests ran, and whether all tests with it passed."""
    outcomes: dict[str, set[str]] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, code in report.user_properties:
                if name == COMPILED and report.when == "call":
                    outcomes.setdefault(str(code), set()).add(outcome)
    if outcomes:
        terminalreporter.section("compiled code that tests ran, by SHA-256")
    for code, results in sorted(outcomes.items(), key=lambda pair: pair[0].split(" ", 1)[1]):
        terminalreporter.write_line(f"{'failed' if 'failed' in results else 'passed'} {code}")
