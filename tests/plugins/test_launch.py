"""The plugin's PTX and launch parameters through the CUDA driver, in the plugin's argument order. Needs a GPU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from liger_export.kernels.shapes import AttentionShape
from liger_export.ops import ATTENTIONS
from liger_export.plugins.tensorrt import plugin_kernel, tactics
from tests.driver import launch
from tests.tiny import relative_l2

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

GROUPS, REPEATS, WIDTH, WINDOW, BATCH = 2, 4, 64, 16, 3


def inputs_of(seed: int = 0) -> list[torch.Tensor]:
    """In the operator's order; sequences of 0, 5 and 40 tokens."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    seen = torch.tensor([[0], [5], [40]])
    angles = seen.unsqueeze(-1) * 100.0 ** -(torch.arange(0, WIDTH, 2) / WIDTH)
    window = [normal(BATCH, GROUPS, WINDOW, WIDTH) for _ in range(2)]
    for rows in window:
        rows[0], rows[1, :, 5:] = 0, 0
    projections = [normal(BATCH, 1, heads * WIDTH) for heads in (GROUPS * REPEATS, GROUPS, GROUPS)]
    return [*projections, angles.cos(), angles.sin(), seen, normal(BATCH, GROUPS, WIDTH, WIDTH), *window]


@pytest.mark.parametrize("mixer", ["gla", "hgrn2"])
@pytest.mark.parametrize("tactic", tactics(WIDTH))
def test_the_plugins_kernel_computes_the_operator(
    mixer: str, tactic: int, ran_code: Callable[[str, bytes], None]
) -> None:
    shape = AttentionShape(mixer, GROUPS, REPEATS, WIDTH, WINDOW, "float32")
    target = "sm_{}{}".format(*torch.cuda.get_device_capability())
    kernel = plugin_kernel(shape, target, tactic, gate_normalizer=16.0, recurrent_weight=0.5)
    inputs = inputs_of()
    options: dict[str, Any] = {"gate_normalizer": 16.0, "recurrent_weight": 0.5}
    attention = ATTENTIONS[mixer]
    expected = attention(*inputs, *(options[name] for name in attention.form.options))
    on_gpu = [tensor.cuda().contiguous() for tensor in inputs]
    outputs = [torch.empty_like(tensor).cuda() for tensor in expected]
    code = kernel.ptx.encode()
    ran_code(f"PTX of the plugin's {mixer} step, {target}, tactic {tactic}", code)
    grid, pointers = (kernel.columns, kernel.groups, BATCH), [("*", tensor) for tensor in (*on_gpu, *outputs)]
    launch(code, kernel.name, grid, kernel.threads, kernel.shared_bytes, pointers)
    for measured, reference in zip(outputs, expected, strict=True):
        assert relative_l2(measured.cpu(), reference) <= 1e-5
