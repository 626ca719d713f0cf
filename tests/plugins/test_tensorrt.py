"""The plugins without TensorRT, against the rules that its published Python sources check.

Kernels are compiled in a separate process, because Triton may be set to its interpreter in this one.
"""

import inspect
import json
import os
import re
import subprocess
import sys
import typing

import pytest

from liger_export.errors import KernelError
from liger_export.kernels.shapes import AttentionShape
from liger_export.plugins.tensorrt import plugin_kernel, register_plugins, tactics
from liger_export.plugins.tensorrt.kernel import ARGUMENTS
from tests.fakes.tensorrt_plugin import (
    ATTRIBUTES,
    INPUTS,
    NAMES,
    AutoTuneCombination,
    FakePlugin,
    KernelLaunchParams,
    SymIntExprs,
    TensorDesc,
)

pytest.importorskip("triton", reason="needs Triton, which supports only Linux")

VALUES = {"num_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "window_size": 16}
NUMBERS = {"gate_normalizer": 16.0, "recurrent_weight": 0.5}


@pytest.fixture
def plugin() -> FakePlugin:
    fake = FakePlugin()
    register_plugins(fake, "sm_86")
    return fake


def test_two_operators_are_registered_completely_and_once(plugin: FakePlugin) -> None:
    kinds = ("register", "autotune", "aot_impl")
    register_plugins(plugin, "sm_86")
    assert set(plugin.functions) == {(name, kind) for name in NAMES.values() for kind in kinds}


@pytest.mark.parametrize("mixer", NAMES)
def test_signatures_are_those_that_tensorrt_requires(mixer: str, plugin: FakePlugin) -> None:
    further: dict[str, list[str]] = {"register": [], "autotune": ["outputs"], "aot_impl": ["outputs", "tactic"]}
    for kind, names in further.items():
        signature = inspect.signature(plugin.functions[NAMES[mixer], kind])
        assert list(signature.parameters) == [*INPUTS, *ATTRIBUTES[mixer], *names]
        for name, parameter in signature.parameters.items():
            assert parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
            assert parameter.default is inspect.Parameter.empty
            if name in INPUTS:
                assert issubclass(parameter.annotation, TensorDesc)
            elif name == "outputs":
                assert typing.get_origin(parameter.annotation) is tuple
                assert typing.get_args(parameter.annotation) == (TensorDesc,) * 4
            else:
                assert parameter.annotation is (float if name in NUMBERS else int)


@pytest.mark.parametrize("mixer", NAMES)
def test_results_are_annotated_as_tensorrt_requires(mixer: str, plugin: FakePlugin) -> None:
    returned = {
        kind: inspect.signature(plugin.functions[NAMES[mixer], kind]).return_annotation
        for kind in ("register", "autotune", "aot_impl")
    }
    assert typing.get_origin(returned["register"]) is tuple
    assert typing.get_args(returned["register"]) == (TensorDesc,) * 4
    assert typing.get_origin(returned["autotune"]) is list
    assert typing.get_args(returned["autotune"]) == (AutoTuneCombination,)
    name, code, launch, scalars = typing.get_args(returned["aot_impl"])
    assert set(typing.get_args(name)) == set(typing.get_args(code)) == {str, bytes}
    assert (launch, scalars) == (KernelLaunchParams, SymIntExprs)


@pytest.mark.parametrize("in_place", [False, True])
def test_outputs_are_like_the_query_and_the_states(in_place: bool) -> None:
    fake = FakePlugin()
    register_plugins(fake, "sm_86", in_place=in_place)
    tensors = [TensorDesc() for _ in INPUTS]
    outputs = fake.functions[NAMES["gla"], "register"](*tensors, **VALUES, **NUMBERS)
    assert [INPUTS[tensors.index(output.of)] for output in outputs] == [
        "query", "recurrent_state", "window_key", "window_value",
    ]  # fmt: skip
    assert [output.aliases for output in outputs] == [False, in_place, False, False]


def test_dtypes_and_fitting_tactics_are_listed(plugin: FakePlugin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("liger_export.plugins.tensorrt.registration.fitting_tactics", lambda *_: [1, 2])
    tensors = [TensorDesc() for _ in INPUTS]
    values = [*VALUES.values(), *NUMBERS.values()]
    (found,) = plugin.functions[NAMES["gla"], "autotune"](*tensors, *values, tuple(tensors[:4]))
    kinds = [kind.strip() for kind in found.io_types.split(",")]
    assert len(kinds) == ARGUMENTS
    assert dict(zip(INPUTS, kinds, strict=False)) == {
        name: {"position_ids": "INT64", "cos": "FP32", "sin": "FP32", "recurrent_state": "FP32"}.get(
            name, "FP32|FP16|BF16"
        )
        for name in INPUTS
    }
    assert kinds[9:] == ["FP32|FP16|BF16", "FP32", "FP32|FP16|BF16", "FP32|FP16|BF16"]
    assert found.layouts == "LINEAR"
    assert found.tactics == [1, 2]
    assert min(tactics(128)) > 0


SCRIPT = """
import json
from liger_export.plugins.tensorrt import fitting_tactics
from tests.plugins.test_tensorrt import *
found = []
for mixer, name in NAMES.items():
    plugin = FakePlugin()
    register_plugins(plugin, "sm_86")
    for tactic in tactics(VALUES["head_dim"]):
        kernel, ptx, launch, scalars = plugin.implement(mixer, tactic, VALUES | NUMBERS)
        found.append({"name": kernel, "ptx": ptx, "scalars": scalars.length, **vars(launch)})
too_wide = AttentionShape("gla", 1, 1, 64, 256, "float32")
print(json.dumps({"kernels": found, "fitting": fitting_tactics(too_wide, "sm_86")}))
"""


@pytest.mark.slow
def test_kernels_take_only_inputs_and_outputs() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    found = results["kernels"]
    assert set(results["fitting"]) < set(tactics(64))  # not all of them fit into shared memory
    assert [(each["grid_x"], each["grid_y"], each["grid_z"]) for each in found] == 2 * [
        (2, 2, "batch"),
        (1, 2, "batch"),
    ]
    for each in found:
        assert each["scalars"] == 0
        assert each["block_x"] % 32 == 0
        assert 0 < each["shared_mem"] <= 99 * 1024
        declared = re.search(rf"\.visible \.entry {each['name']}\((.*?)\)", each["ptx"], re.DOTALL)
        assert declared is not None
        parameters = re.findall(rf"{each['name']}_param_(\d+)", declared[1])
        assert parameters == [str(number) for number in range(ARGUMENTS)]
        assert declared[1].count(".u64") == ARGUMENTS
        read = {int(number) for number in re.findall(rf"\[{each['name']}_param_(\d+)", each["ptx"])}
        assert read <= set(range(ARGUMENTS))


def test_unknown_tactics_are_refused() -> None:
    shape = AttentionShape("gla", 2, 2, 32, 16, "float16")
    with pytest.raises(KernelError, match="no tactic 3"):
        plugin_kernel(shape, "sm_86", 3, gate_normalizer=16.0, recurrent_weight=0.5)
