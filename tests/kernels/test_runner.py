"""Launches in a row, with stand-ins for Triton's kernels: they compile once for calls that look the same."""

from typing import Any

import pytest
import torch

from liger_export.kernels.plans import Axis, Plan
from liger_export.kernels.runner import call_key, launch_all

PLAN = Plan("kernel", {"W": 4, "D": 32}, {"num_warps": 2}, (Axis(1, "length", 16), Axis(of="batch"), Axis()))


class Kernel:
    """Records its launches, and those of what it compiled."""

    arg_names = ("values", "length", "D", "W")

    def __init__(self) -> None:
        self.launches: list[Any] = []

    def __getitem__(self, programs: tuple[int, int, int]) -> Any:
        def launch(*arguments: Any, **named: Any) -> "Compiled":
            self.launches.append(("compiled", programs, arguments, named))
            return Compiled(self.launches)

        return launch


class Compiled:
    def __init__(self, launches: list[Any]) -> None:
        self.launches = launches

    def __getitem__(self, programs: tuple[int, int, int]) -> Any:
        return lambda *arguments: self.launches.append(("again", programs, arguments))


def test_equal_calls_launch_what_the_first_one_compiled() -> None:
    kernel, key = Kernel(), object()
    for values in ("first", "second"):
        launch_all(key, [(kernel, PLAN, (values, 40))], 3, 40)
    assert kernel.launches == [
        ("compiled", (3, 3, 1), ("first", 40), {"W": 4, "D": 32, "num_warps": 2}),
        ("again", (3, 3, 1), ("second", 40, 32, 4)),
    ]


@pytest.mark.parametrize(("batch", "length"), [(2, 40), (3, 41)])
def test_another_size_compiles_again(batch: int, length: int) -> None:
    kernel, key = Kernel(), object()
    launch_all(key, [(kernel, PLAN, ("values", 40))], 3, 40)
    launch_all(key, [(kernel, PLAN, ("values", length))], batch, length)
    assert [launch[0] for launch in kernel.launches] == ["compiled", "compiled"]


def test_a_failed_first_call_leaves_nothing_behind() -> None:
    class Failing(Kernel):
        def __getitem__(self, programs: tuple[int, int, int]) -> Any:
            raise RuntimeError("out of memory")

    kernel, key = Kernel(), object()
    with pytest.raises(RuntimeError):
        launch_all(key, [(kernel, PLAN, ()), (Failing(), PLAN, ())], 3, 40)
    launch_all(key, [(kernel, PLAN, ()), (kernel, PLAN, ())], 3, 40)
    assert [launch[0] for launch in kernel.launches] == ["compiled"] * 3


def test_keys_tell_dtypes_strides_and_alignments_apart() -> None:
    rows = torch.zeros(4, 32)
    others = (rows.half(), rows.T, rows.flatten()[1:].unflatten(0, (-1, 1))[:4])
    assert len({call_key([each]) for each in (rows, *others)}) == 4
    assert call_key([rows]) == call_key([torch.ones(4, 32)])
