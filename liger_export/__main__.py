"""The ``liger-export`` command and ``python -m liger_export``."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line, or say which extra it needs where only the runtime is installed."""
    try:
        from liger_export.cli import main as run
    except ModuleNotFoundError as error:
        sys.stderr.write(
            f"error: {error.name} is not installed, which the command line needs.\n"
            "fix:   pip install 'liger-export[export]'\n"
        )
        raise SystemExit(2) from None
    run()


if __name__ == "__main__":
    main()
