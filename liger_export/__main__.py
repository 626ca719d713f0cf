"""Entry point of ``liger-export`` and ``python -m liger_export``."""

import sys

from liger_export.extras import install_command

__all__ = ["main"]

# Extras of the commands that need no PyTorch.
WITHOUT_EXPORTER = {
    "run": "cli",
    "chat": "cli",
    "inspect": "cli",
    "--help": "cli",
    "--version": "cli",
    "serve": "serve",
}


def main() -> None:
    """Run the command line. If a library is missing, print the command that installs it and exit with code 2."""
    try:
        from liger_export.cli import main as run
    except ModuleNotFoundError as error:
        command = next(iter(sys.argv[1:]), "--help")
        extra = WITHOUT_EXPORTER.get(command, "export")
        sys.stderr.write(
            f"error: The command line needs {error.name}, which is not installed.\n"
            f"fix:   Run: {install_command(extra)}\n"
        )
        raise SystemExit(2) from None
    run()


if __name__ == "__main__":
    main()
