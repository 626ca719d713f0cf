"""Adding the state after a system prompt to a package."""

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from liger_export.errors import DataError, UnsupportedModelError
from liger_export.package.manifest import MANIFEST_FILE, PREFIX_FILE, STOCK, Manifest, describe_files
from liger_export.precision import Precision
from liger_export.runtime import load
from liger_export.runtime.shipped_prefix import prefix_tokens, read_prefix, write_prefix

__all__ = ["add_prefix", "read_prefix_text"]


def read_prefix_text(path: Path, precision: Precision) -> str:
    """Read a system prompt for a package of a precision, whose last line ends are not part of it.

    Raises:
        DataError: the file cannot be read, or has no text.
        UnsupportedModelError: the package cannot run on this CPU, so its state cannot be computed.
    """
    if precision.activations == "bfloat16":
        raise UnsupportedModelError(
            "The state after a prefix is computed with the stock graph on the CPU, which cannot run bfloat16.",
            "Omit --prefix.",
        )
    try:
        text = path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}).", "Pass a text file in UTF-8.") from error
    if not text.strip():
        raise DataError(f"{path} has no text.", "Write a system prompt into it, or omit --prefix.")
    return text


def add_prefix(package: Path, manifest: Manifest, name: str, text: str) -> Manifest:
    """Compute the state after a system prompt with the stock graph, and add it to a package. Returns its new manifest.

    Raises:
        InputError: the chat template has no place for it at the start.
        PackageError: the state after it is not finite.
    """
    session = load(package, device="cpu", lowering=STOCK)
    tokens = prefix_tokens(session, text)
    session.feed(tokens)
    write_prefix(package / PREFIX_FILE, tokens, session.state())
    record = {"name": name, "sha256": sha256(text.encode()).hexdigest(), "tokens": len(tokens)}
    (package / MANIFEST_FILE).unlink()
    manifest = replace(manifest, prefix=record, files=describe_files(package))
    (package / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    read_prefix(package, manifest)
    return manifest
