"""The processes that ``accelerate launch`` or ``torchrun`` started; alone without them."""

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

__all__ = ["processes", "runs_on_cpu"]


def processes() -> PartialState:
    """This process's place among them and its device; the first call joins them."""
    return PartialState(cpu=runs_on_cpu())  # by itself it looks for other processes on GPUs only


def runs_on_cpu() -> bool:
    """Whether there is no accelerator, or ``accelerate launch`` was told to leave it alone."""
    return bool(parse_flag_from_env("ACCELERATE_USE_CPU")) or not torch.accelerator.is_available()
