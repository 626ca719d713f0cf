"""Limits of a server: its queue, sizes and times, clients that hang up, and its end."""

import http.client
import json
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import httpx
import pytest

from liger_export.convert import convert
from liger_export.serve import ServedModel
from liger_export.serve.requests import ChatRequest
from tests.serve.servers import MODEL, Running, chat_body, process, running

ENDLESS: dict[str, Any] = {"max_tokens": 1000, "ignore_eos": True}


def post(server: Running, **fields: Any) -> httpx.Response:
    return httpx.post(f"{server.address}/v1/chat/completions", json=chat_body(**fields), timeout=60)


def start(address: str, **fields: Any) -> http.client.HTTPConnection:
    """Send a request without waiting for its response."""
    connection = http.client.HTTPConnection(urlparse(address).netloc, timeout=60)
    body = json.dumps(chat_body(**fields))
    connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
    return connection


def wait_until_active(server: Running, count: int) -> None:
    end = time.monotonic() + 30
    while server.model.scheduler.statistics.active != count:
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_its_slot(server: Running, stream: bool) -> None:
    before = server.model.scheduler.statistics.generated_tokens
    connection = start(server.address, stream=stream, n=3, **ENDLESS)
    wait_until_active(server, 3)
    connection.close()
    wait_until_active(server, 0)
    assert server.model.scheduler.statistics.generated_tokens - before < 3000


def test_requests_beyond_the_queue_are_told_to_try_again(chat_package: Path) -> None:
    with running(chat_package, slots=1, queue=1) as server:
        first = start(server.address, stream=True, **ENDLESS)
        wait_until_active(server, 1)
        second = start(server.address, stream=True, **ENDLESS)
        while server.model.scheduler.statistics.queued != 1:
            time.sleep(0.001)
        refused = post(server)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert refused.json()["error"]["code"] == "busy"
        assert post(server, n=3).status_code == 400  # never possible
        first.close()
        second.close()
        wait_until_active(server, 0)
        assert post(server, max_tokens=1).status_code == 200


def test_two_threads_encode_the_prompts_of_all_clients(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, threads = ServedModel.chat_prompt, set()

    def slow(model: ServedModel, request: ChatRequest) -> tuple[int, ...]:
        threads.add(threading.get_ident())
        time.sleep(0.02)
        return encode(model, request)

    monkeypatch.setattr(ServedModel, "chat_prompt", slow)
    with ThreadPoolExecutor(12) as clients:
        statuses = list(clients.map(lambda _: post(server, max_tokens=1).status_code, range(12)))
    assert statuses == [200] * 12
    assert len(threads) <= 2


@pytest.mark.parametrize(
    ("fields", "status", "param", "code"),
    [
        ({"text": "a" * 1990}, 400, "messages", "context_length_exceeded"),
        ({"text": "a" * 100_001}, 413, None, "request_too_large"),
        ({"max_tokens": 1001}, 400, "max_tokens", "invalid_value"),
    ],
)
def test_a_request_beyond_a_limit_is_refused(
    server: Running, fields: dict[str, Any], status: int, param: str | None, code: str
) -> None:
    response = post(server, **fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (status, param, code)


def test_an_answer_that_takes_too_long_is_an_error_and_frees_its_slot(chat_package: Path) -> None:
    with running(chat_package, request_seconds=0.05) as server:
        late = post(server, **ENDLESS)
        assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
        *_, last = post(server, stream=True, **ENDLESS).text.strip().split("\n\n")
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
        wait_until_active(server, 0)


def test_a_page_of_another_site_cannot_send_a_request_without_asking(server: Running) -> None:
    """Browsers ask first (CORS) where the content type is JSON, and the server does not agree."""
    url = f"{server.address}/v1/chat/completions"
    plain = httpx.post(url, content=json.dumps(chat_body()), headers={"content-type": "text/plain"})
    assert plain.status_code == 415
    asked = httpx.options(url, headers={"origin": "https://example.org", "access-control-request-method": "POST"})
    assert "access-control-allow-origin" not in asked.headers


def test_metrics_and_the_log_count_requests_and_hold_no_text(chat_package: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with process(chat_package, log=log) as (address, _):
        for fields in ({"text": "SECRET"}, {"text": "SECRET", "SECRET": 1}, {"text": "SECRET", "stop": 5}):
            httpx.post(f"{address}/v1/chat/completions", json=chat_body(max_tokens=3, **fields))
        httpx.get(f"{address}/SECRET")
        assert httpx.get(f"{address}/health").json()["status"] == "ok"
        metrics = httpx.get(f"{address}/metrics").text
    counted = f'liger_export_http_requests_total{{model="{MODEL}",path="/v1/chat/completions",status="200"}} 1.0'
    assert counted in metrics
    assert f'liger_export_generated_tokens_total{{model="{MODEL}"}} 3.0' in metrics
    records = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    assert [record["status"] for record in records] == [200, 400, 400, 404, 200, 200]
    assert records[0]["completion_tokens"] == 3
    assert "SECRET" not in log.read_text() + metrics


@pytest.mark.slow
def test_sigterm_lets_streams_end_and_a_second_server_goes_on_without_reading_again(
    chat_package: Path, tmp_path: Path
) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    options = ("--state-dir", tmp_path / "states", "--grace", 20)
    with process(chat_package, *options, log=tmp_path / "log") as (address, server):
        connection = start(address, stream=True, max_tokens=200, ignore_eos=True)
        stream = connection.getresponse()
        stream.readline()
        server.send_signal(signal.SIGTERM)
        assert stream.read().decode().strip().endswith("data: [DONE]")
    said = {}
    for name in ("again", "fresh"):
        directory = tmp_path / ("states" if name == "again" else "none")
        with process(chat_package, "--state-dir", directory, log=tmp_path / name) as (address, _):
            body = {"model": MODEL, "messages": messages, "max_tokens": 30}
            said[name] = httpx.post(f"{address}/v1/chat/completions", json=body).json()
    usage = said["again"]["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"]
    assert said["fresh"]["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert said["again"]["choices"] == said["fresh"]["choices"]


@pytest.mark.slow
def test_the_next_turn_after_a_restart_reads_only_the_new_message(chat_package: Path, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    lengths = []
    for turn in range(2):
        with process(chat_package, "--state-dir", tmp_path / "states", log=tmp_path / f"{turn}") as (address, _):
            body = {"model": MODEL, "messages": messages, "max_tokens": 30, "stop": ["\ufffd"]}
            answer = httpx.post(f"{address}/v1/chat/completions", json=body).json()
        messages.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"]})
        messages.append({"role": "user", "content": "More"})
        lengths.append(answer["usage"]["prompt_tokens"])
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] >= lengths[0]
    assert lengths[1] > lengths[0]


@pytest.mark.slow
def test_a_server_that_cannot_start_says_why(server: Running, chat_package: Path, tmp_path: Path) -> None:
    def errors(*options: object) -> str:
        command = [sys.executable, "-m", "liger_export", "serve", *map(str, options)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == 2
        return ended.stderr

    port = urlparse(server.address).port
    assert "cannot be listened on" in errors(chat_package, "--port", port)
    assert "Two packages have the name 'a'" in errors(f"a={chat_package}", f"a={chat_package}")
    assert "slots is 0. fix:   It must be 1 or more" in " ".join(errors(chat_package, "--slots", 0).split("\n"))
    (tmp_path / "keys").touch()
    assert "has no key" in errors(chat_package, "--api-key-file", tmp_path / "keys")


def test_a_shipped_system_prompt_is_never_read(chat_package: Path, tmp_path: Path) -> None:
    (tmp_path / "system.txt").write_text("Answer in one line.")
    convert(chat_package.parent / "liger", tmp_path / "package", prefix=tmp_path / "system.txt")
    messages = [{"role": "system", "content": "Answer in one line."}, {"role": "user", "content": "Hello?"}]
    with running(tmp_path / "package") as server:
        usage = post(server, messages=messages, max_tokens=1).json()["usage"]
        assert server.model.session.prefix is not None
        shipped = len(server.model.session.prefix.tokens)
    assert usage["prompt_tokens_details"]["cached_tokens"] == shipped
