"""``genai``: from a package to a model folder for ONNX Runtime GenAI."""

import json
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from liger_export.checkpoint import open_liger
from liger_export.engine.sharing import require_activations, require_servable, share, weight_files
from liger_export.export import lower_to_genai, require_genai
from liger_export.files import TOKENIZER_FILES, copy_files, require_space
from liger_export.package import MODEL_FILES, STOCK, Manifest, read_manifest
from liger_export.precision import Precision
from liger_export.publishing import new_directory, require_replaceable
from liger_export.runtime.defaults import read_defaults
from liger_export.runtime.sampling import Sampling

__all__ = ["require_convertible", "write_genai"]

CONFIG_FILE = "genai_config.json"
# GenAI asks for a limit, and holds the tokens of a text, 4 bytes each, but no cache of this length.
CONTEXT = 1 << 20


def require_convertible(checkpoint: Path, precision: Precision, output: Path, *, overwrite: bool) -> None:
    """Check before a conversion that its package will do for ``write_genai``. See there for the errors."""
    config = open_liger(checkpoint).config
    require_activations(checkpoint, precision.activations)
    require_genai(config)
    require_replaceable(output, overwrite, inputs=(checkpoint,))


def write_genai(package: Path, output: Path, *, overwrite: bool = False) -> None:
    """Write a folder that ONNX Runtime GenAI opens: the graph, its weights, the tokenizer and ``genai_config.json``.

    It cannot be the package itself, because GenAI reads a ``manifest.json`` as the manifest of a GenAI package.

    Args:
        package: Package directory.
        output: Folder to create; it is complete or absent afterwards.
        overwrite: Replace ``output`` if it exists.

    Raises:
        PackageError: The package cannot be read.
        EngineError, UnsupportedModelError: GenAI cannot run its graph.
        OutputError: ``output`` exists or cannot be written.
    """
    manifest = read_manifest(package)
    require_servable(package, manifest)
    require_genai(manifest.model_config)
    manifest.check_files(package)
    graph_file = package / MODEL_FILES[STOCK]
    model = ir.load(graph_file)
    lower_to_genai(model, manifest.model_config)
    with new_directory(output, overwrite, inputs=(package,)) as folder:
        names = weight_files(onnx.load(graph_file, load_external_data=False), graph_file, manifest)
        require_space(folder, sum((package / name).stat().st_size for name in names))
        ir.save(model, folder / MODEL_FILES[STOCK])
        for name in names:
            share(package / name, folder / name, links=False)
        copy_files(TOKENIZER_FILES, package, folder)
        config = _config(manifest, read_defaults(package).sampling)
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _config(manifest: Manifest, sampling: Sampling) -> dict[str, Any]:
    config = manifest.model_config
    ends = list(config.eos_token_ids)
    padding = ends[0] if ends else 0  # GenAI asks for one; a text alone is never padded
    decoder = {
        "session_options": {"log_id": "liger-export", "provider_options": []},
        "filename": MODEL_FILES[STOCK],
        "head_size": config.head_dim,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "inputs": {
            "input_ids": "input_ids",
            "position_ids": "position_ids",
            "past_conv_names": "past_key_values.%d.conv_state",
            "past_recurrent_names": "past_key_values.%d.recurrent_state",
        },
        "outputs": {
            "logits": "logits",
            "present_conv_names": "present.%d.conv_state",
            "present_recurrent_names": "present.%d.recurrent_state",
        },
    }
    return {
        "model": {
            "type": "decoder",
            "bos_token_id": padding if config.bos_token_id is None else config.bos_token_id,
            "eos_token_id": ends,
            "pad_token_id": padding,
            "vocab_size": config.vocab_size,
            "context_length": CONTEXT,
            "decoder": decoder,
        },
        "search": _search(sampling),
    }


def _search(sampling: Sampling) -> dict[str, Any]:
    """The package's default sampling, except ``min_p``, which GenAI lacks."""
    samples = sampling.temperature > 0
    return {
        "do_sample": samples,
        "temperature": sampling.temperature if samples else 1.0,
        "top_k": sampling.top_k if samples else 1,
        "top_p": sampling.top_p,
        "repetition_penalty": sampling.repetition_penalty,
        "max_length": CONTEXT,
        "past_present_share_buffer": False,
    }
