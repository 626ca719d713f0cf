"""Launches of several kernels in a row with little work on the CPU, which otherwise bounds short calls and training.

Triton binds and specializes every argument in each launch, which takes longer than many of these kernels run. Here that
happens once for calls that look the same to Triton: equal integers, and equal alignment of pointers.
"""

from collections.abc import Hashable, Iterable, Sequence
from functools import lru_cache
from typing import Any

from torch import Tensor

from liger_export.kernels.plans import Plan

__all__ = ["Launch", "Launches", "call_key", "launch_all"]

Launch = tuple[Any, Plan, tuple[Any, ...]]  # a kernel, its plan and its arguments, without those that the plan gives
Launches = list[Launch]

KEPT = 256  # kinds of calls


def call_key(tensors: Iterable[Tensor]) -> Hashable:
    """Return what Triton may specialize a kernel on in tensors that come from outside: dtype, strides and alignment."""
    return tuple((tensor.dtype, tensor.stride(), tensor.data_ptr() % 16) for tensor in tensors)


def launch_all(key: Hashable, launches: Sequence[Launch], batch: int, length: int) -> None:
    """Launch kernels in order.

    Args:
        key: calls with the same key differ in no integer argument, and in no pointer's type or alignment.
        launches: the kernels.
        batch: number of sequences.
        length: T.
    """
    runners = _runners((key, batch, length))
    if runners:
        for (runner, constants), (_, _, arguments) in zip(runners, launches, strict=True):
            runner(*arguments, *constants)
        return
    compiled = []
    for kernel, plan, arguments in launches:
        programs = plan.programs(batch, length)
        result = kernel[programs](*arguments, **plan.constants, **plan.options)
        if result is not None:  # Triton's interpreter compiles nothing
            constants = [plan.constants[name] for name in kernel.arg_names if name in plan.constants]
            compiled.append((result[programs], constants))
    runners[:] = compiled


@lru_cache(KEPT)
def _runners(key: Hashable) -> list[tuple[Any, list[Any]]]:
    """Return the compiled kernels of this kind of call; empty before the first one."""
    return []
