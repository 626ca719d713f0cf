"""Writing the weights of a Liger checkpoint: the base's files, and learned tensors in an additional shard."""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from liger_export.checkpoint.reader import INDEX_FILE, SINGLE_FILE, Checkpoint, TensorInfo
from liger_export.files import copy_files

__all__ = ["weight_bytes", "write_weights"]

BLOCK_BYTES = 16 << 20  # of float32; a converted tensor is read and written in blocks of rows
BFLOAT16_BYTES = 2


def weight_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of the files that ``write_weights`` makes from a checkpoint, without learned tensors and headers."""
    if checkpoint.is_converted:
        return sum(_converted_bytes(info) for info in checkpoint.tensors.values())
    return sum(file.stat().st_size for file in checkpoint.files)


def write_weights(checkpoint: Checkpoint, learned: Mapping[str, Tensor], directory: Path) -> None:
    """Write a checkpoint's weights to a directory.

    Without learned tensors, the weight files are copied unchanged. With learned tensors, the files become shards of one
    index, and the learned tensors its last shard. They replace tensors of the same name in the checkpoint. Tensors that
    are converted when read are written to one file instead.

    Args:
        checkpoint: the weights.
        learned: tensors to add, by name.
        directory: directory to write to.
    """
    if not learned and checkpoint.is_converted:
        _write_converted(checkpoint, list(checkpoint.tensors), directory / SINGLE_FILE)
        return
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
        if checkpoint.is_converted:
            _write_converted(checkpoint, names, directory / shard)
        elif any(info.file == file and name in learned for name, info in checkpoint.tensors.items()):
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


def _write_converted(checkpoint: Checkpoint, names: list[str], path: Path) -> None:
    """Write converted tensors, which are bfloat16, to a safetensors file, a block of rows at a time.

    The format is the length of a JSON header in 8 bytes, the header, and the tensors' data without gaps.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        info = checkpoint.tensors[name]
        start, end = end, end + _converted_bytes(info)
        header[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors start at a multiple of 8
    with path.open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in names:
            for rows in checkpoint.row_blocks(name, BLOCK_BYTES):
                stream.write(checkpoint.read_rows(name, *rows).contiguous().view(torch.uint8).numpy().data)


def _converted_bytes(info: TensorInfo) -> int:
    return math.prod(info.shape) * BFLOAT16_BYTES
