"""The server on a local Ray cluster: two replicas, each in its own process, of which some die."""

import http.client
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlparse

import httpx
import pytest

from liger_export.errors import InputError
from liger_export.serve import ServeSettings
from tests.serve.servers import MODEL, chat_body, running

ray = pytest.importorskip("ray", reason="needs ray[serve]")
serve = pytest.importorskip("ray.serve", reason="needs ray[serve]")

from liger_export.serve.ray import Scaling, application  # noqa: E402

pytestmark = pytest.mark.slow

REPLICAS, SLOTS = 2, 2
ENVIRONMENT = {  # nothing is sent to Ray's makers, and a busy machine is not taken for a failure
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "10",
    "RAY_SERVE_MAX_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "10",
}
ENDLESS: dict[str, Any] = {"max_tokens": 1_000_000, "ignore_eos": True, "stream": True}

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Cluster:
    """A running application."""

    address: str
    states: Path

    def post(self, messages: Messages, **fields: Any) -> httpx.Response:
        body = {"model": MODEL, "messages": messages, "max_tokens": 12, "stop": ["\ufffd"], **fields}
        return httpx.post(f"{self.address}/v1/chat/completions", json=body, timeout=120)

    def start(self, text: str, **fields: Any) -> http.client.HTTPConnection:
        """Send a request without waiting for its response."""
        connection = http.client.HTTPConnection(urlparse(self.address).netloc, timeout=120)
        body = json.dumps(chat_body(text, **fields))
        connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        return connection

    def fill(self) -> list[http.client.HTTPConnection]:
        """Start as many endless streams as there are slots, one after the other."""
        connections = []
        for index in range(REPLICAS * SLOTS):
            connections.append(self.start(f"Endless {index}", **ENDLESS))
            response = connections[-1].getresponse()
            assert response.status == 200
            response.readline()
        return connections

    def kill(self, replica: str) -> None:
        """End a replica's process at once, as kill -9 does."""
        ray.kill(ray.get_actor(f"SERVE_REPLICA::default#Replica#{replica}", namespace="serve"))

    def wait_for_replicas(self) -> None:
        """Ask until all replicas have answered. Ray takes a while to notice that one has died."""
        answered: set[str] = set()
        numbers = count()

        def ask() -> bool:
            answered.add(self.post([user(f"Who? {next(numbers)} {time.time()}")]).headers["x-replica"])
            return len(answered) == REPLICAS

        until(ask)


def until(is_done: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not is_done():
        assert time.monotonic() < end
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def cluster(chat_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    states, port = tmp_path_factory.mktemp("ray") / "states", free_port()
    settings = ServeSettings(
        slots=SLOTS, queue=1, state_dir=states, max_new_tokens=1_000_000, max_request_bytes=100_000
    )
    scaling = Scaling(min_replicas=REPLICAS, max_replicas=REPLICAS)
    with patch.dict(os.environ, ENVIRONMENT):
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            serve.run(application({MODEL: chat_package}, settings, scaling))
            yield Cluster(f"http://127.0.0.1:{port}", states)
        finally:
            serve.shutdown()
            ray.shutdown()


def said(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_a_conversation_goes_on_from_the_stored_state_after_its_replica_has_died(
    cluster: Cluster, chat_package: Path
) -> None:
    cluster.wait_for_replicas()
    before = len(list(cluster.states.glob("*.safetensors")))
    messages = [user("Hello " * 20)]
    first = cluster.post(messages)
    usage = first.json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0
    until(lambda: len(list(cluster.states.glob("*.safetensors"))) == before + 2)  # after the prompt and the answer
    cluster.kill(first.headers["x-replica"])
    messages += [assistant(said(first)), user("More")]
    second = cluster.post(messages)
    text = said(second)
    assert second.headers["x-replica"] != first.headers["x-replica"]
    assert second.json()["usage"]["prompt_tokens_details"]["cached_tokens"] >= usage["prompt_tokens"]
    with running(chat_package) as alone:
        body = {"model": MODEL, "messages": messages, "max_tokens": 12, "stop": ["\ufffd"]}
        expected = httpx.post(f"{alone.address}/v1/chat/completions", json=body).json()
    assert expected["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert text == expected["choices"][0]["message"]["content"]


def test_the_next_turn_goes_to_the_replica_that_has_read_the_conversation(cluster: Cluster) -> None:
    cluster.wait_for_replicas()
    used = set()
    for number in range(20):
        messages = [user(f"{number}: Hello")]
        first = cluster.post(messages)
        messages += [assistant(said(first)), user("More")]
        second = cluster.post(messages)
        said(second)
        used.add(first.headers["x-replica"])
        assert second.headers["x-replica"] == first.headers["x-replica"]
    assert len(used) == REPLICAS


def test_a_stream_whose_replica_dies_ends_with_an_error(cluster: Cluster) -> None:
    cluster.wait_for_replicas()
    response = cluster.start("Die", **ENDLESS).getresponse()
    response.readline()
    cluster.kill(response.headers["x-replica"])
    *_, last = response.read().decode().strip().split("\n\n")
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "replica_died"


def test_an_answer_that_has_not_begun_is_given_by_another_replica(cluster: Cluster) -> None:
    cluster.wait_for_replicas()
    messages = [user("Begin")]
    first = cluster.post(messages)
    messages += [assistant(said(first)), user("More")]
    connection = http.client.HTTPConnection(urlparse(cluster.address).netloc, timeout=120)
    body = json.dumps({"model": MODEL, "messages": messages, "max_tokens": 5000, "ignore_eos": True})
    connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
    time.sleep(0.3)
    cluster.kill(first.headers["x-replica"])
    response = connection.getresponse()
    answer = json.loads(response.read())
    assert response.status == 200
    assert response.headers["x-replica"] != first.headers["x-replica"]
    assert answer["usage"]["completion_tokens"] == 5000
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


def test_clients_that_hang_up_free_their_slots(cluster: Cluster) -> None:
    cluster.wait_for_replicas()
    for _ in range(2):  # the second time needs the slots of the first one
        for connection in cluster.fill():
            connection.close()
    said(cluster.post([user("Hello")]))


def test_requests_beyond_the_queue_are_told_to_try_again(cluster: Cluster) -> None:
    cluster.wait_for_replicas()
    connections = [*cluster.fill(), cluster.start("Waits", **ENDLESS)]
    time.sleep(1)
    refused = cluster.post([user("Hello")])
    for connection in connections:
        connection.close()
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert refused.json()["error"]["code"] == "busy"


def test_answers_events_pages_and_errors_are_those_of_the_server(cluster: Cluster) -> None:
    cluster.wait_for_replicas()
    whole = cluster.post([user("Hello")])
    events = [line[6:] for line in cluster.post([user("Hello")], stream=True).text.splitlines() if line]
    assert events.pop() == "[DONE]"
    pieces = [json.loads(event)["choices"][0]["delta"].get("content", "") for event in events]
    assert "".join(pieces) == said(whole)
    assert httpx.get(f"{cluster.address}/health").json()["status"] == "ok"
    assert httpx.get(f"{cluster.address}/v1/models").json()["data"][0]["id"] == MODEL
    assert "<html" in httpx.get(f"{cluster.address}/").text
    assert cluster.post([user("Hello")], tools=[{}]).json()["error"]["param"] == "tools"
    assert cluster.post([user("a" * 100_001)]).status_code == 413
    assert httpx.get(f"{cluster.address}/metrics").status_code == 404


def test_an_application_without_a_shared_directory_is_refused(chat_package: Path) -> None:
    with pytest.raises(InputError, match="state directory"):
        application({MODEL: chat_package}, ServeSettings())


@pytest.mark.parametrize("values", [{"min_replicas": 0}, {"min_replicas": 2}, {"cpus": 0}, {"target_requests": 0}])
def test_a_scaling_out_of_range_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Scaling(**values)
