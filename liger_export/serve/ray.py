"""The server on a Ray cluster: replicas of the application, and a router that knows what each has read."""

import asyncio
import random
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ray.exceptions import RayActorError
from ray.serve import Application, deployment, get_replica_context
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from liger_export.errors import InputError
from liger_export.runtime import load
from liger_export.serve.app import METRICS, create_app
from liger_export.serve.body import read_body
from liger_export.serve.errors import ApiError
from liger_export.serve.models import open_models
from liger_export.serve.records import log_to_stderr
from liger_export.serve.responses import event_of
from liger_export.serve.routing import Holders, starts_of
from liger_export.serve.settings import ServeSettings

__all__ = ["Scaling", "application"]

SCOPE = ("type", "http_version", "method", "scheme", "path", "raw_path", "root_path", "query_string", "headers")
REPLICA_HEADER = b"x-replica"
MOST_REQUESTS = 10_000  # that the front relays at once; the replicas' queue is shorter
TRIES = 3
CHOICES = 2  # replicas whose queues are compared where none has read the text


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """The number of replicas, and the resources of each.

    Attributes:
        min_replicas: Least number of replicas.
        max_replicas: Largest number of replicas.
        target_requests: Requests at once in each replica that autoscaling aims at; None for half of the slots.
        cpus: CPU cores of a replica; also its threads.
        gpus: GPUs of a replica; 0 runs it on the CPU.

    Raises:
        InputError: A value is out of range.
    """

    min_replicas: int = 1
    max_replicas: int = 1
    target_requests: float | None = None
    cpus: int = 1
    gpus: float = 0

    def __post_init__(self) -> None:
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise InputError(
                f"min_replicas is {self.min_replicas} and max_replicas {self.max_replicas}.",
                "The first must be at least 1, and at most the second.",
            )
        if self.cpus < 1 or self.gpus < 0 or (self.target_requests is not None and self.target_requests <= 0):
            raise InputError("A replica gets too little.", "Pass 1 CPU or more, and positive numbers.")


@dataclass(frozen=True, slots=True)
class Relayed:
    """A request on its way to a replica.

    Attributes:
        scope: Its ASGI scope, without what only one process has.
        body: Its body.
    """

    scope: dict[str, Any]
    body: bytes


class Replica:
    """The application in one process. Replicas share the state directory."""

    def __init__(self, packages: Mapping[str, Path], settings: ServeSettings, scaling: Scaling) -> None:
        """Load the packages."""
        device = "cuda" if scaling.gpus else "cpu"
        sessions = {name: load(directory, device=device, threads=scaling.cpus) for name, directory in packages.items()}
        log_to_stderr()
        self._models = open_models(sessions, settings)
        for model in self._models.values():
            model.warm_up()
        self._app = create_app(self._models, settings)
        self._name = get_replica_context().replica_id.unique_id.encode()
        self._tasks: set[asyncio.Task[None]] = set()

    async def answer(self, request: Relayed, starts: tuple[bytes, ...]) -> AsyncGenerator[Message, None]:
        """Yield the ASGI messages of a response. If it is closed before their end, the client has hung up.

        Args:
            request: The request.
            starts: See ``starts_of``. Only the router reads them.
        """
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        hung_up = asyncio.Event()
        bodies: list[Message] = [{"type": "http.request", "body": request.body, "more_body": False}]

        async def receive() -> Message:
            if bodies:
                return bodies.pop()
            await hung_up.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (REPLICA_HEADER, self._name)]}
            messages.put_nowait(message)

        async def run() -> None:
            try:
                await self._app(dict(request.scope), receive, send)
            finally:
                messages.put_nowait(None)

        task = asyncio.create_task(run())
        self._tasks.add(task)  # an event loop does not keep its tasks
        task.add_done_callback(self._tasks.discard)
        try:
            while (message := await messages.get()) is not None:
                yield message
            await task
        finally:
            hung_up.set()

    def check_health(self) -> None:
        """Raise an error where Ray should replace this replica."""
        if not all(model.scheduler.is_running for model in self._models.values()):
            raise RuntimeError("A model has stopped.")

    def __del__(self) -> None:
        """Write the states. Ray calls this where it ends a replica in order."""
        for model in getattr(self, "_models", {}).values():
            model.close()


class PrefixRouter(RequestRouter):  # type: ignore[misc]
    """Routes a request to the replica that has read the longest start of its text, unless that replica is full."""

    def initialize_state(self) -> None:
        """Start without knowledge."""
        self._holders = Holders()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the replicas that have read the longest start, then two others. Ray takes the less busy of a rank."""
        found: list[str] = []
        replicas = {each.replica_id.unique_id: each for each in candidate_replicas}
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # wait if all are full
            found = self._holders.longest(_starts(pending_request), replicas)
        others = [replica for name, replica in replicas.items() if name not in found]
        ranks = [[replicas[name] for name in found], random.sample(others, min(CHOICES, len(others)))]
        return [rank for rank in ranks if rank]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Remember what a replica reads."""
        self._holders.note(_starts(pending_request), replica_id.unique_id)


def _starts(pending: PendingRequest) -> tuple[bytes, ...]:
    starts: tuple[bytes, ...] = pending.kwargs.get("starts", ())
    return starts


class Front:
    """Takes the requests of clients and relays them. It has no model."""

    def __init__(self, replicas: DeploymentHandle, settings: ServeSettings) -> None:
        """Start. ``replicas`` are those of ``Replica``."""
        self._replicas = replicas.options(method_name="answer", stream=True)
        self._most = settings.max_request_bytes

    async def __call__(self, request: Request) -> Response:
        """Return the response of a replica."""
        if request.url.path == METRICS:  # those of one replica would pass for those of all
            return ApiError(404, "On Ray there are no metrics here. Ray has its own.", code="not_found").response()
        try:
            body = await read_body(request, self._most)
        except ApiError as error:
            return error.response()
        scope = {name: request.scope[name] for name in SCOPE if name in request.scope}
        return _Relay(self._replicas, Relayed(scope, body), starts_of(body))


class _Relay(Response):
    """The response of a replica. Where one dies before its first message, another one answers."""

    def __init__(self, replicas: DeploymentHandle, request: Relayed, starts: tuple[bytes, ...]) -> None:
        super().__init__()
        self._replicas, self._request, self._starts = replicas, request, starts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(TRIES):
            start, is_complete = None, False
            response = self._replicas.remote(self._request, starts=self._starts)
            try:
                async for message in response:
                    start = start or message
                    await send(message)
                    is_complete = message["type"] == "http.response.body" and not message.get("more_body", False)
                return
            except BackPressureError:
                await ApiError(429, "Too many requests are waiting.", code="busy").response()(scope, receive, send)
                return
            except RayActorError:
                if start is not None:
                    if not is_complete:
                        await _end(start, send)
                    return
            except BaseException:  # such as the cancellation because the client has hung up
                response.cancel()
                raise
        await _died().response()(scope, receive, send)


def _died() -> ApiError:
    return ApiError(503, "The replica has died. Send the request again.", code="replica_died")


async def _end(start: Message, send: Send) -> None:
    """End a response whose replica has died: events with an error, as without Ray; other bodies incomplete."""
    if any(name == b"content-type" and b"event-stream" in value for name, value in start["headers"]):
        await send({"type": "http.response.body", "body": event_of(_died().body), "more_body": False})
        return
    raise RuntimeError("The replica has died after the start of a response.")


def application(packages: Mapping[str, Path], settings: ServeSettings, scaling: Scaling = Scaling()) -> Application:
    """Return the application for ``ray.serve.run``.

    Args:
        packages: Package directories by name. Every node of the cluster must see them at the same path.
        settings: As without Ray. ``slots`` and ``memory_bytes`` are those of each replica, ``queue`` of all together,
            ``state_dir`` must be a directory that all nodes share, and ``host`` and ``port`` are up to Ray.
        scaling: How many replicas there are.

    Raises:
        InputError: There is no state directory, or the file of keys cannot be read.
    """
    if settings.state_dir is None:
        raise InputError("Replicas need a state directory.", "Set state_dir to a directory that all nodes share.")
    settings.read_api_keys()
    keys = settings.api_key_file
    settings = replace(
        settings, state_dir=settings.state_dir.absolute(), api_key_file=None if keys is None else keys.absolute()
    )
    absolute = {name: Path(directory).absolute() for name, directory in packages.items()}
    replicas = deployment(
        Replica,
        ray_actor_options={"num_cpus": scaling.cpus, "num_gpus": scaling.gpus},
        autoscaling_config={
            "min_replicas": scaling.min_replicas,
            "max_replicas": scaling.max_replicas,
            "target_ongoing_requests": scaling.target_requests or settings.slots / 2,
        },
        max_ongoing_requests=settings.slots,
        max_queued_requests=settings.queue,
        graceful_shutdown_timeout_s=settings.shutdown_seconds,
        request_router_config=RequestRouterConfig(request_router_class=PrefixRouter),
    )
    front = deployment(Front, max_ongoing_requests=MOST_REQUESTS, ray_actor_options={"num_cpus": 0})
    bound: Application = front.bind(replicas.bind(absolute, settings, scaling), settings)
    return bound
