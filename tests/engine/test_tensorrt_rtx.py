"""The TensorRT for RTX backend."""

from liger_export.engine.tensorrt_rtx import TensorRTRTX


def test_targets_are_numbers_or_names() -> None:
    assert TensorRTRTX.open().require_targets(["8.6", "sm_89", "SM120", "86"]) == ["sm86", "sm89", "sm120"]
