"""The settings of a server."""

from dataclasses import dataclass
from pathlib import Path

from liger_export.errors import InputError

__all__ = ["ServeSettings"]

MOST_PORT = 65535
MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """Settings of a server.

    Attributes:
        host: Address to listen on.
        port: Port to listen on; 0 for any free one.
        slots: Largest number of answers of a model at once.
        queue: Largest number of answers that wait for a slot.
        api_key_file: File with one key a line, of which a client must send one; None for no keys.
        max_request_bytes: Largest body of a request.
        max_prompt_tokens: Largest number of tokens in a prompt.
        max_new_tokens: Largest number of tokens in an answer, and the default of chats.
        request_seconds: Longest time from a request to the end of its answer.
        shutdown_seconds: Longest time that answers go on after SIGTERM.
        memory_bytes: Most bytes of states of earlier texts in memory, for all models.
        state_dir: Directory for states that outlive the server; None for none.
        state_bytes: Most bytes of its files.

    Raises:
        InputError: A value is out of range.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    slots: int = 8
    queue: int = 64
    api_key_file: Path | None = None
    max_request_bytes: int = 4 * MEGABYTE
    max_prompt_tokens: int = 131_072
    max_new_tokens: int = 4096
    request_seconds: float = 600.0
    shutdown_seconds: float = 10.0
    memory_bytes: int = 1000 * MEGABYTE
    state_dir: Path | None = None
    state_bytes: int = 10_000 * MEGABYTE

    def __post_init__(self) -> None:
        counts = ("slots", "queue", "max_request_bytes", "max_prompt_tokens", "max_new_tokens")
        for name in counts:
            _require(name, getattr(self, name), getattr(self, name) >= 1, "1 or more")
        for name in ("memory_bytes", "state_bytes", "shutdown_seconds"):
            _require(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        _require("request_seconds", self.request_seconds, self.request_seconds > 0, "greater than 0")
        _require("port", self.port, 0 <= self.port <= MOST_PORT, f"from 0 to {MOST_PORT}")

    def read_api_keys(self) -> tuple[str, ...]:
        """Read the keys. Raises InputError if the file cannot be read or has no key."""
        if self.api_key_file is None:
            return ()
        try:
            lines = self.api_key_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{self.api_key_file} cannot be read ({error}).", "Pass a file of keys.") from error
        keys = tuple(line.strip() for line in lines if line.strip())
        if not keys:
            raise InputError(f"{self.api_key_file} has no key.", "Write one key a line.")
        return keys


def _require(name: str, value: float, is_valid: bool, allowed: str) -> None:
    if not is_valid:
        raise InputError(f"{name} is {value}.", f"It must be {allowed}.")
