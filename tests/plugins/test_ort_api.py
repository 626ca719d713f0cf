"""The entries of ONNX Runtime's interface that the library declares, each called once."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "plugins" / "ort"


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> onnxruntime.InferenceSession:
    library = tmp_path_factory.mktemp("probe") / "libprobe.so"
    command = ["g++", "-std=c++17", "-shared", "-fPIC", f"-I{SOURCES}", str(HERE / "probe.cpp"), "-o", str(library)]
    subprocess.run(command, check=True)
    attributes = {"integer": -5, "number": 0.25, "text": "some text"}
    node = helper.make_node("Probe", ["variable", "constant"], ["found"], domain="probe", **attributes)
    graph = helper.make_graph(
        [node],
        "probe",
        [helper.make_tensor_value_info("variable", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info("found", TensorProto.FLOAT, None)],
        [helper.make_tensor("constant", TensorProto.UINT8, [3], bytes([1, 2, 3]), raw=True)],
    )
    imports = [helper.make_opsetid("", 23), helper.make_opsetid("probe", 1)]
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(library))
    model = helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def test_every_entry_does_what_its_name_says(session: onnxruntime.InferenceSession) -> None:
    variable = np.arange(6, dtype=np.float32).reshape(2, 3)
    (found,) = session.run(None, {"variable": variable})
    expected = {
        "GetAttributeInt": -5,
        "GetAttributeFloat": 0.25,
        "GetAttributeString": 1,
        "GetConstantInput": 3,
        "GetConstantInput of a variable one": 0,
        "GetAllocator": 7,
        "CreateStatus, GetErrorMessage, ReleaseStatus": 1,
        "GetDimensionsCount": 2,
        "GetDimensions, first": 2,
        "GetDimensions, second": 3,
        "GetTensorMutableData": 5,
        "GetInput of an absent one": 0,
        "ParallelFor": 45,
        "GetComputeStream: none on a CPU": 1,
    }
    assert dict(zip(expected, found[0].tolist(), strict=True)) == expected


def test_every_declared_entry_is_used() -> None:
    declared = set(re.findall(r"^using (\w+) = Entry", (SOURCES / "ort_api.h").read_text(), re.MULTILINE))
    used = "".join(path.read_text() for path in SOURCES.glob("*.*") if path.suffix in (".h", ".cpp"))
    assert {name for name in declared if f"{name}::call" not in used} == set()
