"""Opening a package or engine with the options of ``run`` and ``chat``."""

from dataclasses import replace
from pathlib import Path

from liger_export.commands.console import note_ignored
from liger_export.runtime import Sampling, Session, load

__all__ = ["open_session"]


def open_session(
    package: Path,
    *,
    device: str | None,
    lowering: str | None,
    threads: int | None,
    verify: bool,
    trace: Path | None = None,
    **sampling: float | int | None,
) -> tuple[Session, Sampling]:
    """Load a package, and print which of its generation settings are ignored.

    Args:
        package: See ``load``, also for the next five.
        device: See ``load``.
        lowering: See ``load``.
        threads: See ``load``.
        verify: See ``load``.
        trace: See ``load``.
        sampling: Fields of ``Sampling``; None keeps the package's default.

    Returns:
        The session, and how to choose its tokens.
    """
    session = load(package, device=device, lowering=lowering, threads=threads, verify=verify, trace=trace)
    note_ignored(session.defaults)
    given = {name: value for name, value in sampling.items() if value is not None}
    return session, replace(session.defaults.sampling, **given)  # type: ignore[arg-type]
