"""PTX and launch parameters from the plugins' ``aot_impl``, launched through the CUDA driver. Needs a GPU.

Like TensorRT, the tests take the kernels from the registered functions and pass a pointer to each input, then to each
output. Sequences are read token by token and compared with the naive float64 references.

Besides the runtime, this needs only torch, Triton and pytest:

    pytest --noconftest -v tests/plugins/test_launch.py
"""

import ctypes
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from liger_export.ops import NAIVE_ATTENTIONS
from liger_export.parity.compare import relative_l2
from liger_export.plugins.tensorrt import register_plugins, tactics
from tests.fakes.tensorrt_plugin import FakePlugin, KernelLaunchParams

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

BATCH = 3
GATE_NORMALIZER, RECURRENT_WEIGHT = 16.0, 0.5
OPTIONS = {"gate_normalizer": GATE_NORMALIZER, "recurrent_weight": RECURRENT_WEIGHT}
TYPES = {"FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16}  # by TensorRT's name
BOUNDS = {"FLOAT": 1e-5, "HALF": 5e-3, "BF16": 5e-3}
MAX_DYNAMIC_SHARED_BYTES = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
ERROR_LOG, ERROR_LOG_BYTES = 5, 6  # CU_JIT_ERROR_LOG_BUFFER and _SIZE_BYTES


@dataclass(frozen=True)
class Layer:
    """Sizes of a layer."""

    num_key_value_heads: int
    num_queries_per_kv: int
    head_dim: int
    window: int

    @property
    def num_heads(self) -> int:
        return self.num_key_value_heads * self.num_queries_per_kv

    @property
    def attributes(self) -> dict[str, float]:
        sizes = (self.num_heads, self.num_key_value_heads, self.head_dim, self.window)
        return dict(zip(("num_heads", "num_key_value_heads", "head_dim", "window_size"), sizes, strict=True)) | OPTIONS


SMALL, ODD, LLAMA_8B = Layer(2, 4, 64, 16), Layer(3, 3, 80, 20), Layer(8, 4, 128, 64)


@dataclass(frozen=True)
class Sequences:
    """Projections [B, T, heads * D] in float64, with values that the dtype can represent, and angles [T, D / 2]."""

    projections: list[Tensor]
    angles: Tensor

    @classmethod
    def random(cls, layer: Layer, dtype: torch.dtype, length: int) -> "Sequences":
        generator = torch.Generator().manual_seed(length)
        key_value = layer.num_key_value_heads
        widths = (heads * layer.head_dim for heads in (layer.num_heads, key_value, key_value))
        projections = [torch.randn(BATCH, length, width, generator=generator).to(dtype).double() for width in widths]
        frequencies = 100.0 ** -(torch.arange(0, layer.head_dim, 2, dtype=torch.float64) / layer.head_dim)
        return cls(projections, torch.arange(length)[:, None] * frequencies)

    def expected(self, mixer: str, layer: Layer) -> list[Tensor]:
        """Output [B, T, H * D], recurrent state, window key and window value after the last token."""
        heads = [each.unflatten(-1, (-1, layer.head_dim)) for each in self.projections]
        options = OPTIONS if mixer == "gla" else {"recurrent_weight": RECURRENT_WEIGHT}
        angles = self.angles.expand(BATCH, -1, -1)
        output, *states = NAIVE_ATTENTIONS[mixer](*heads, angles, layer.window, **options)
        return [output.flatten(2), *states]


class Driver:
    """The CUDA driver, in torch's current context."""

    def __init__(self) -> None:
        torch.zeros(1, device="cuda")  # creates the context
        self._library = ctypes.CDLL("libcuda.so.1")

    def kernel(self, name: str, ptx: str) -> ctypes.c_void_p:
        """Load a module, which stays loaded, and return its function."""
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        log = ctypes.create_string_buffer(8192)
        options = (ctypes.c_int * 2)(ERROR_LOG, ERROR_LOG_BYTES)
        values = (ctypes.c_void_p * 2)(ctypes.addressof(log), len(log))
        loaded = self._library.cuModuleLoadDataEx(ctypes.byref(module), ptx.encode(), 2, options, values)
        self._require(loaded, log.value.decode())
        self._require(self._library.cuModuleGetFunction(ctypes.byref(function), module, name.encode()), name)
        return function

    def launch(self, function: ctypes.c_void_p, params: KernelLaunchParams, tensors: list[Tensor]) -> None:
        """Launch with a pointer to each tensor and wait."""
        assert all(tensor.is_contiguous() for tensor in tensors)
        shared = self._library.cuFuncSetAttribute(function, MAX_DYNAMIC_SHARED_BYTES, params.shared_mem)
        self._require(shared, f"{params.shared_mem} bytes of shared memory")
        pointers = [ctypes.c_uint64(tensor.data_ptr()) for tensor in tensors]
        arguments = (ctypes.c_void_p * len(pointers))(*(ctypes.addressof(pointer) for pointer in pointers))
        grid = (params.grid_x, params.grid_y, params.grid_z)
        block = (params.block_x, params.block_y, params.block_z)
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        sizes = (ctypes.c_uint(size) for size in (*grid, *block, params.shared_mem))
        self._require(self._library.cuLaunchKernel(function, *sizes, stream, arguments, None), f"{grid} x {block}")
        torch.cuda.synchronize()

    def _require(self, result: int, detail: str) -> None:
        name = ctypes.c_char_p()
        self._library.cuGetErrorName(result, ctypes.byref(name))
        assert result == 0, f"{(name.value or b'?').decode()}: {detail}"


def target() -> str:
    return "sm_{}{}".format(*torch.cuda.get_device_capability())


@pytest.fixture(scope="module")
def driver() -> Driver:
    return Driver()


@pytest.fixture(scope="module")
def plugin() -> FakePlugin:
    fake = FakePlugin()
    register_plugins(fake, target())
    return fake


Step = Callable[[list[Tensor]], None]


def read(
    step: Step, layer: Layer, dtype: torch.dtype, inputs: Sequences, device: str, *, in_place: bool = False
) -> list[Tensor]:
    """Read a sequence token by token. Return all outputs [B, T, H * D] and the final states. Outputs start as NaN."""
    states = [
        torch.zeros(BATCH, layer.num_key_value_heads, layer.head_dim, layer.head_dim, device=device),
        *(
            torch.full((BATCH, layer.num_key_value_heads, layer.window, layer.head_dim), float("nan")).to(device, dtype)
            for _ in "kv"
        ),
    ]
    outputs = []
    for position in range(inputs.projections[0].shape[1]):
        token = [each[:, position : position + 1].to(device, dtype).contiguous() for each in inputs.projections]
        angle = inputs.angles[position].expand(BATCH, 1, -1)
        angles = [part.float().to(device).contiguous() for part in (angle.cos(), angle.sin())]
        positions = torch.full((BATCH, 1), position, device=device)
        output, *following = (torch.full_like(tensor, float("nan")) for tensor in (token[0], *states))
        if in_place:
            following[0] = states[0]
        step([*token, *angles, positions, *states, output, *following])
        outputs.append(output)
        states = following
    return [torch.cat(outputs, dim=1), *states]


def assert_close(measured: list[Tensor], expected: list[Tensor], bound: float) -> None:
    for name, found, reference in zip(
        ("output", "state", "window key", "window value"), measured, expected, strict=True
    ):
        error = relative_l2(found.cpu().double().numpy(), reference.numpy())
        assert error <= bound, f"{name}: relative L2 {error:.1e}"


@pytest.mark.parametrize("mixer", ["gla", "hgrn2"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("layer", "tactic"),
    [(layer, tactic) for layer in (SMALL, ODD, LLAMA_8B) for tactic in tactics(layer.head_dim)],
    ids=lambda value: f"D{value.head_dim}" if isinstance(value, Layer) else f"tactic{value}",
)
def test_the_plugins_kernel_computes_the_operator(
    mixer: str,
    dtype: str,
    layer: Layer,
    tactic: int,
    plugin: FakePlugin,
    driver: Driver,
    record_property: Callable[[str, object], None],
) -> None:
    name, ptx, params, scalars = plugin.implement(mixer, tactic, layer.attributes, dtype, BATCH)
    record_property("sha256 of the PTX", hashlib.sha256(ptx.encode()).hexdigest())
    assert scalars.length == 0
    function = driver.kernel(name, ptx)
    inputs = Sequences.random(layer, TYPES[dtype], layer.window + 10)
    measured = read(lambda tensors: driver.launch(function, params, tensors), layer, TYPES[dtype], inputs, "cuda")
    assert_close(measured, inputs.expected(mixer, layer), BOUNDS[dtype])


@pytest.mark.parametrize("tactic", tactics(SMALL.head_dim))
def test_the_state_can_be_updated_in_place(tactic: int, plugin: FakePlugin, driver: Driver) -> None:
    """As TensorRT does if the plugin declares that its output aliases its input."""
    name, ptx, params, _ = plugin.implement("gla", tactic, SMALL.attributes, "HALF", BATCH)
    function = driver.kernel(name, ptx)
    inputs = Sequences.random(SMALL, torch.float16, SMALL.window + 10)
    results = [
        read(
            lambda tensors: driver.launch(function, params, tensors),
            SMALL,
            torch.float16,
            inputs,
            "cuda",
            in_place=in_place,
        )
        for in_place in (False, True)
    ]
    for separate, shared in zip(*results, strict=True):
        assert torch.equal(separate, shared)


def test_a_row_without_a_token_changes_nothing(plugin: FakePlugin, driver: Driver) -> None:
    name, ptx, params, _ = plugin.implement("gla", 1, SMALL.attributes, "HALF", BATCH)
    function = driver.kernel(name, ptx)
    inputs = Sequences.random(SMALL, torch.float16, SMALL.window + 10)
    _, *states = read(lambda tensors: driver.launch(function, params, tensors), SMALL, torch.float16, inputs, "cuda")
    row = [torch.full((BATCH, 1, width * 64), float("nan"), device="cuda", dtype=torch.float16) for width in (8, 2, 2)]
    angles = [torch.zeros(BATCH, 1, 32, device="cuda") for _ in range(2)]
    positions = torch.full((BATCH, 1), -1, device="cuda")
    output, *following = (torch.full_like(tensor, float("nan")) for tensor in (row[0], *states))
    driver.launch(function, params, [*row, *angles, positions, *states, output, *following])
    assert not output.any()
    for before, after in zip(states, following, strict=True):
        assert torch.equal(before, after)
