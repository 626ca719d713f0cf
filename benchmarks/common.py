"""Timers and units that the GPU benchmarks share."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from liger_export.bench.timing import Spread

__all__ = ["copy_bandwidth", "graph_microseconds", "synchronized_seconds", "time_report"]

COPY_BYTES = 1 << 30


def synchronized_seconds(call: Callable[[], object], repeats: int, warm_ups: int = 3) -> list[float]:
    """Return the wall-clock seconds of each call, the GPU synchronized before and after."""
    seconds = []
    for _ in range(warm_ups + repeats):
        torch.cuda.synchronize()
        started = time.perf_counter()
        call()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return seconds[warm_ups:]


def graph_microseconds(calls: Sequence[Callable[[], Any]], repeats: int = 30) -> float:
    """Capture calls into one CUDA graph and return the median time of a replay, in microseconds per call."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        for call in (*calls, *calls):  # compiles, then allocates as in the capture
            call()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            for call in calls:
                call()
        graph.replay()
        times = []
        for _ in range(repeats):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) * 1e3 / len(calls))
    return statistics.median(times)


def copy_bandwidth() -> float:
    """Measure the bytes per second that a plain copy of 1 GiB reads and writes."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / graph_microseconds([lambda: target.copy_(source)]) * 1e6


def time_report(seconds: Sequence[float]) -> dict[str, float]:
    """Return the median and the 10th and 90th percentiles in milliseconds, as the JSON reports name them."""
    spread = Spread.of(seconds).scaled(1e3)
    return {"ms": spread.median, "10%": spread.p10, "90%": spread.p90}
