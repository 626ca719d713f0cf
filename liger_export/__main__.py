"""Entry point of ``liger-export`` and ``python -m liger_export``."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line. Without the ``export`` extra, print which one to install and exit with code 2."""
    try:
        from liger_export.cli import main as run
    except ModuleNotFoundError as error:
        sys.stderr.write(
            f"error: The command line needs {error.name}, which is not installed.\n"
            "fix:   Run: pip install 'liger-export[export]'\n"
        )
        raise SystemExit(2) from None
    run()


if __name__ == "__main__":
    main()
