"""A headless Chromium, controlled through a pipe by its DevTools protocol."""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["CHROMIUM", "Page", "opened"]

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"),
    *("--hide-scrollbars", "--window-size=900,700", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--disable-extensions", "--mute-audio"),
)
SECONDS = 60.0


class Page:
    """A page of the browser."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers, self._held, self._count = commands, answers, b"", 0
        self._session: str | None = None
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def open(self, address: str) -> None:
        """Go to an address, and wait until it is loaded."""
        self._call("Page.navigate", url=address)
        self.wait_for("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """Return the value of an expression."""
        result = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + SECONDS
        while not self.run(condition):
            assert time.monotonic() < end, f"never: {condition}"
            time.sleep(0.02)

    def type(self, text: str) -> None:
        """Type text and press Enter."""
        self._call("Input.insertText", text=text)
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13)

    def heap_bytes(self) -> int:
        """Return the bytes of JavaScript's objects and array buffers that are in use."""
        self._call("HeapProfiler.collectGarbage")
        usage = self._call("Runtime.getHeapUsage")
        return int(usage["usedSize"] + usage["backingStorageSize"])

    def save_picture(self, path: Path) -> None:
        """Write what the page shows to a PNG file."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))

    def _call(self, method: str, **parameters: Any) -> Any:
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = json.loads(self._next())
            if answer.get("id") == self._count:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def _next(self) -> bytes:
        while b"\0" not in self._held:
            received = os.read(self._answers, 1 << 16)
            assert received, "Chromium has ended"
            self._held += received
        message, _, self._held = self._held.partition(b"\0")
        return message


@contextmanager
def opened(chromium: str, profile: Path, *flags: str) -> Iterator[Page]:
    """Start a browser with a new profile, which reads commands from descriptor 3 and answers on 4."""
    (command_in, command_out), (answer_in, answer_out) = os.pipe(), os.pipe()
    script = f'exec "$0" "$@" 3<&{command_in} 4>&{answer_out}'
    process = subprocess.Popen(
        ["bash", "-c", script, chromium, *FLAGS, *flags, f"--user-data-dir={profile}"],
        pass_fds=(command_in, answer_out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(command_in)
    os.close(answer_out)
    try:
        yield Page(command_out, answer_in)
    finally:
        process.kill()
        process.wait()
        os.close(command_out)
        os.close(answer_in)
