"""From a pretrained checkpoint to a Liger checkpoint: the same weights under a Liger config."""

import json
import shutil
from pathlib import Path
from typing import Any

from liger_export.checkpoint import Checkpoint
from liger_export.checkpoint.reader import INDEX_FILE
from liger_export.config import BACKBONES, MODEL_TYPES, LigerConfig, read_config_json
from liger_export.errors import CheckpointError, UnsupportedModelError
from liger_export.files import TOKENIZER_FILES, copy_files, new_directory, require_space

__all__ = ["liger_config_values", "linearize"]

CARRIED_FILES = (*TOKENIZER_FILES, "generation_config.json", INDEX_FILE)
DOWNLOADED_FILES = ["*.safetensors", "*.json", "tokenizer.model", "merges.txt", "*.jinja"]


def linearize(
    base: str, output: Path, *, mixer: str = "gla", window_size: int = 64, overwrite: bool = False
) -> LigerConfig:
    """Write a Liger checkpoint with the weights and tokenizer of ``base``.

    Liger adds no parameters (arXiv 2503.01496, section 3): weight files are copied byte for byte.

    Args:
        base: a local Hugging Face checkpoint directory, or a hub id where there is a network.
        output: directory to create.
        mixer: the recurrent half of Liger attention.
        window_size: keys the softmax window attends to, the current one included.
        overwrite: replace ``output`` if it exists.

    Raises:
        CheckpointError: ``base`` is incomplete or damaged.
        UnsupportedModelError: its architecture or a setting is not supported.
        OutputError: ``output`` exists or cannot be written.
    """
    directory = _local_directory(base)
    values = liger_config_values(read_config_json(directory), mixer, window_size)
    config = LigerConfig.from_dict(values)
    checkpoint = Checkpoint.open(directory)
    checkpoint.check(config)

    weight_files = sorted({info.file for info in checkpoint.tensors.values()})
    require_space(output, sum(file.stat().st_size for file in weight_files))
    with new_directory(output, overwrite, inputs=(directory,)) as partial:
        for file in weight_files:
            shutil.copyfile(file, partial / file.name)
        copy_files(CARRIED_FILES, directory, partial)
        (partial / "config.json").write_text(json.dumps(values, indent=2) + "\n")
    return config


def liger_config_values(base: dict[str, Any], mixer: str, window_size: int) -> dict[str, Any]:
    """The ``config.json`` of the Liger checkpoint made from a base's ``config.json``.

    Raises:
        UnsupportedModelError: no Liger model type joins this architecture and mixer.
    """
    backbone = base.get("model_type")
    if not isinstance(backbone, str):
        raise CheckpointError(f"config.json has {backbone!r} as model_type.", "Restore the original file.")
    if backbone in MODEL_TYPES:
        raise UnsupportedModelError(f"The checkpoint is a Liger model already ({backbone}).", "Use it as it is.")
    if backbone not in BACKBONES:
        raise UnsupportedModelError(
            f"config.json has model_type {backbone!r}.", f"Supported: {', '.join(sorted(BACKBONES))}."
        )
    for model_type, parts in MODEL_TYPES.items():
        if (parts.backbone, parts.mixer) == (backbone, mixer):
            liger = {"model_type": model_type, "architectures": [parts.architecture]}
            return {**base, **liger, "window_size": window_size, "gate_normalizer": 16.0}
    mixers = sorted(parts.mixer for parts in MODEL_TYPES.values() if parts.backbone == backbone)
    raise UnsupportedModelError(f"There is no mixer {mixer!r} for {backbone}.", f"Supported: {', '.join(mixers)}.")


def _local_directory(base: str) -> Path:
    path = Path(base)
    if path.exists() or base.count("/") != 1 or base.startswith((".", "/", "~")):
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(base, allow_patterns=DOWNLOADED_FILES))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{base} is neither a local directory nor a hub id that could be fetched ({error}).",
            "Pass the path of a Hugging Face checkpoint directory.",
        ) from error
