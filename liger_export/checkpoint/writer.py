"""Writing the weights of a Liger checkpoint: the base's files, and learned tensors in an additional shard."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from liger_export.checkpoint.reader import INDEX_FILE, SINGLE_FILE, Checkpoint
from liger_export.files import copy_files

__all__ = ["write_weights"]


def write_weights(checkpoint: Checkpoint, learned: Mapping[str, Tensor], directory: Path) -> None:
    """Write a checkpoint's weights to a directory.

    Without learned tensors, the weight files are copied unchanged. With learned tensors, the files become shards of one
    index, and the learned tensors its last shard. They replace tensors of the same name in the checkpoint.

    Args:
        checkpoint: the weights.
        learned: tensors to add, by name.
        directory: directory to write to.
    """
    if not learned:
        for file in checkpoint.files:
            shutil.copyfile(file, directory / file.name)
        if SINGLE_FILE not in {file.name for file in checkpoint.files}:  # beside it, an index is out of date
            copy_files((INDEX_FILE,), checkpoint.directory, directory)
        return
    kept = {
        file: [name for name, info in checkpoint.tensors.items() if info.file == file and name not in learned]
        for file in checkpoint.files
    }
    kept = {file: names for file, names in kept.items() if names}
    count = len(kept) + 1
    weight_map: dict[str, str] = {}
    for number, (file, names) in enumerate(kept.items(), start=1):
        shard = f"model-{number:05}-of-{count:05}.safetensors"
        if any(info.file == file and name in learned for name, info in checkpoint.tensors.items()):
            save_file({name: checkpoint.read(name) for name in names}, directory / shard, metadata={"format": "pt"})
        else:
            shutil.copyfile(file, directory / shard)
        weight_map |= dict.fromkeys(names, shard)
    last = f"model-{count:05}-of-{count:05}.safetensors"
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in learned.items()}
    save_file(contiguous, directory / last, metadata={"format": "pt"})
    weight_map |= dict.fromkeys(learned, last)
    size = sum((directory / shard).stat().st_size for shard in set(weight_map.values()))
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (directory / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")
