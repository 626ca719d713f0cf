"""Distributed processes, as started by ``accelerate launch`` or ``torchrun``; without either, a single process."""

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

__all__ = ["processes", "runs_on_cpu"]


def processes() -> PartialState:
    """Return this process's rank, the number of processes and the device. The first call joins the process group."""
    return PartialState(cpu=runs_on_cpu())  # without the argument, it looks for other processes only on GPUs


def runs_on_cpu() -> bool:
    """Return True if there is no accelerator, or if ``accelerate launch`` was told not to use one."""
    return bool(parse_flag_from_env("ACCELERATE_USE_CPU")) or not torch.accelerator.is_available()
