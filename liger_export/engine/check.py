"""What can be proved without the device: graphs against the package on ONNX Runtime, and names, shapes and types."""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from liger_export.errors import BoundError, EngineError
from liger_export.onnx_functions.schemas import DOMAIN
from liger_export.package import MODEL_FILES, STOCK, Manifest, read_manifest
from liger_export.parity import Check
from liger_export.parity.bfloat16 import multiply_in_float32, open_edited, open_rounded
from liger_export.parity.compare import state_distance
from liger_export.parity.tolerances import tolerances_of
from liger_export.precision import Precision
from liger_export.runtime import Sampling, SavedState, Session, load

__all__ = ["Signature", "check_against_package", "check_signature", "expected_signature", "refuse_foreign_operators"]

Signature = dict[str, tuple[tuple[int, ...], str]]  # name to shape and dtype


def check_against_package(package: Path, portable: Path, tokens: int) -> dict[str, Any]:
    """Compare portable graphs with their package on ONNX Runtime: prefill calls, single steps, and the states after.

    Text is sampled by the package. Its products of integers round what they multiply to 8 bits, which is no property of
    the weights: here they are computed in float32. Two float32 computations must agree as closely as a float32 package
    with PyTorch; where one of them is in half precision, as closely as a package in it with PyTorch.

    Args:
        package: directory of the package.
        portable: directory of the graphs, with their manifest.
        tokens: how many to read; more than a window, so that it moves.

    Returns:
        The checks, for the manifest.

    Raises:
        BoundError: a bound is missed.
    """
    text, expected, after = _read_by_package(package, tokens)
    graphs = load(portable)
    computed = {read_manifest(package).activations, graphs.manifest.activations}
    coarsest = next(dtype for dtype in ("bfloat16", "float16", "float32") if dtype in computed)
    tolerances = tolerances_of(Precision(), ["any"], coarsest)
    found = graphs.all_logits(text)  # by prefill calls, if there is a graph for them
    engine = graphs.manifest.engine
    has_prefill = engine is not None and engine.chunk > 0
    checks = [tolerances.check("prefill", found, expected, f"{tokens} tokens")] if has_prefill else []
    state = state_distance(graphs.state(), after)
    graphs.reset()
    stepped = np.stack([graphs.step(token) for token in text])
    checks.append(tolerances.check("single steps", stepped, expected, f"{tokens} tokens"))
    bound = tolerances.bound if tolerances.exact else None
    checks.append(Check("final state: relative L2", state, bound))
    missed = [check for check in checks if not check.passed]
    if missed:
        raise BoundError(
            f"The portable graphs miss a bound: {missed[0].name} {missed[0].value:.2g}, at most {missed[0].bound:g}.",
            "Validate the package; choose activations with more bits, or report this model as a bug.",
        )
    return {
        "activations": graphs.manifest.activations,
        "against": package.resolve().name,
        "checks": [{"name": each.name, "value": each.value, "bound": each.bound} for each in checks],
    }


def _read_by_package(package: Path, count: int) -> tuple[list[int], npt.NDArray[np.float32], SavedState]:
    """Text of the package's own, its logits after each token, and the state after the last.

    Its session ends here: two copies of a model in memory are enough.
    """
    session = _in_float32(package)
    text = session.sample_tokens(count, Sampling(temperature=1.0, seed=0))
    session.reset()
    return text, session.all_logits(text), session.state()


def _in_float32(package: Path) -> Session:
    """A package whose products of integers read activations as they are; one in bfloat16 as a CPU can compute it."""
    if read_manifest(package).activations == "bfloat16":
        return open_rounded(package)
    model = ir.load(package / MODEL_FILES[STOCK])
    multiply_in_float32(model.graph)
    return open_edited(package, ir.to_proto(model).SerializeToString())


def expected_signature(manifest: Manifest, length: int) -> tuple[Signature, Signature]:
    """Inputs and outputs of a graph of ``length`` tokens, from the state table."""
    past = {entry.past_name: ((1, *entry.shape), entry.dtype) for entry in manifest.state}
    present = {entry.present_name: ((1, *entry.shape), entry.dtype) for entry in manifest.state}
    tokens = ((1, length), "int64")
    logits = ((1, length, manifest.model_config.vocab_size), "float32")
    return {"input_ids": tokens, "position_ids": tokens, **past}, {"logits": logits, **present}


def check_signature(what: str, found: Signature, expected: Signature) -> None:
    """Check names, shapes and types against the state table's. Raises EngineError naming the first that differs."""
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise EngineError(
                f"The {what} {name} is {_shown(found.get(name))} in the parsed network "
                f"and {_shown(expected.get(name))} in the state table.",
                "Convert the checkpoint again with this version, or report this model as a bug.",
            )


def _shown(entry: tuple[tuple[int, ...], str] | None) -> str:
    return "missing" if entry is None else f"{entry[1]} {list(entry[0])}"


def refuse_foreign_operators(graph_file: Path, plugins: Collection[str] = ()) -> set[str]:
    """Refuse what a parser of ai.onnx could not read: it may end the process on an operator that needs a plugin.

    Args:
        graph_file: the graph.
        plugins: operators of this project that the parser has plugins for.

    Returns:
        ONNX's own operators of the graph.

    Raises:
        EngineError: naming the first operator that is not ONNX's own.
    """
    model = onnx.load(graph_file, load_external_data=False)
    operators = set()
    for node in _nodes(model.graph.node):
        if node.domain == DOMAIN and node.op_type in plugins:
            continue
        if node.domain not in ("", "ai.onnx"):
            raise EngineError(
                f"{graph_file.name} holds {node.domain}::{node.op_type}, which needs a plugin.",
                "Build from the package: its graphs are lowered to ONNX's own operators.",
            )
        operators.add(node.op_type)
    if model.functions:
        raise EngineError(f"{graph_file.name} holds functions of its own.", "Build from the package.")
    return operators


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterable[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            yield from _nodes(attribute.g.node)
            for graph in attribute.graphs:
                yield from _nodes(graph.node)
