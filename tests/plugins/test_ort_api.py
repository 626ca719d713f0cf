"""The entries of ONNX Runtime's interface that the library declares, each called once."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "plugins" / "ort"


FAILING = """
import sys
import numpy as np
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 4
options.log_severity_level = 4
options.register_custom_ops_library(sys.argv[1])
session = onnxruntime.InferenceSession(sys.stdin.buffer.read(), options, providers=["CPUExecutionProvider"])
for kind in range(3):
    try:
        session.run(None, {"kind": np.float32([kind])})
    except Exception as error:
        print(error)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("probe") / "libprobe.so"
    command = ["g++", "-std=c++17", "-shared", "-fPIC", f"-I{SOURCES}", str(HERE / "probe.cpp"), "-o", str(path)]
    subprocess.run(command, check=True)
    return path


@pytest.fixture(scope="module")
def session(library: Path) -> onnxruntime.InferenceSession:
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
        "GetTensorElementType": TensorProto.FLOAT,
        "GetInput of an absent one": 0,
        "ParallelFor": 45,
        "GetComputeStream: none on a CPU": 1,
    }
    assert dict(zip(expected, found[0].tolist(), strict=True)) == expected


def test_an_exception_on_a_thread_is_an_error_of_the_call(library: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("kind", "found")]
    graph = helper.make_graph(
        [helper.make_node("Failing", ["kind"], ["found"], domain="probe")], "f", values[:1], values[1:]
    )
    imports = [helper.make_opsetid("", 23), helper.make_opsetid("probe", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString()
    # In a child process, with a time limit: an exception that reaches ONNX Runtime's threads ends the process or hangs.
    command = [sys.executable, "-c", FAILING, str(library)]
    ended = subprocess.run(command, input=model, capture_output=True, timeout=60, check=True)
    causes = ("not enough memory", "what went wrong on a thread", "unknown error in an operator")
    for cause, line in zip(causes, ended.stdout.decode().splitlines(), strict=True):
        assert cause in line


def test_every_declared_entry_is_used() -> None:
    declared = set(re.findall(r"^using (\w+) = Entry", (SOURCES / "ort_api.h").read_text(), re.MULTILINE))
    used = "".join(path.read_text() for path in SOURCES.glob("*.*") if path.suffix in (".h", ".cpp"))
    assert {name for name in declared if f"{name}::call" not in used} == set()
