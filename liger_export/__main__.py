"""Entry point of ``liger-export`` and ``python -m liger_export``."""

import sys

from liger_export.extras import install_command

__all__ = ["main"]

WITHOUT_EXPORTER = {"run", "chat", "inspect", "--help", "--version"}  # these need no PyTorch


def main() -> None:
    """Run the command line. If a library is missing, print the command that installs it and exit with code 2."""
    try:
        from liger_export.cli import main as run
    except ModuleNotFoundError as error:
        extra = "cli" if set(sys.argv[1:2]) <= WITHOUT_EXPORTER else "export"
        sys.stderr.write(
            f"error: The command line needs {error.name}, which is not installed.\n"
            f"fix:   Run: {install_command(extra)}\n"
        )
        raise SystemExit(2) from None
    run()


if __name__ == "__main__":
    main()
