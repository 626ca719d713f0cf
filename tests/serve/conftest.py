"""A package with a chat template, and a server of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtime.chats import write_chat_package
from tests.serve.servers import Running, running


@pytest.fixture(scope="session")
def chat_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_package(tmp_path_factory.mktemp("serve"), "chatml")


@pytest.fixture(scope="module")
def server(chat_package: Path) -> Iterator[Running]:
    with running(chat_package, max_prompt_tokens=2000, max_new_tokens=1000, max_request_bytes=100_000) as server:
        yield server
