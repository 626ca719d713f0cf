"""Distance of a package from exact rotary angles, by the position at which a text is read.

    python benchmarks/quality/positions.py CHECKPOINT PACKAGE TEXT [--adapter ADAPTER]

CHECKPOINT and ADAPTER are what PACKAGE was converted from. The reference is the PyTorch model in float64, with each
angle computed as a fraction: position times frequency, modulo 2 pi. It and the package's graphs for the CPU read the
same tokens of TEXT from an empty state at each position, and the first tokens are not counted.
"""

import argparse
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from liger_export.config import inverse_frequencies
from liger_export.modeling import register
from liger_export.package import FUSED, STOCK, read_manifest
from liger_export.parity.compare import mean_kl, top1_agreement
from liger_export.runtime import SavedState, Session, load
from liger_export.runtime.buffers import Array
from liger_export.runtime.dtypes import numpy_dtype

POSITIONS = (0, 201_000, 1 << 20, 10_000_000, 1 << 24, 1_000_000_000, (1 << 31) - 600, (1 << 32) - 600, 10**12, 1 << 62)
SKIPPED, TOKENS = 64, 1024
PI = Fraction("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803482534211706798")


class ExactAngles(nn.Module):
    """Stands in for the model's rotary embedding."""

    def __init__(self, frequencies: Sequence[float]) -> None:
        super().__init__()
        self.frequencies = [Fraction(float(each)) for each in frequencies]

    def forward(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        rows = [[float(p * each % (2 * PI)) for each in self.frequencies] for p in position_ids[0].tolist()]
        angles = torch.tensor([rows], dtype=dtype)
        return angles.cos(), angles.sin()


def reference_model(checkpoint: Path, adapters: Sequence[Path]) -> Any:
    """The model in float64 with exact angles."""
    register()
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, trust_remote_code=False)
    for adapter in adapters:
        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    config = model.model.liger
    model.model.rotary_emb = ExactAngles(inverse_frequencies(config.rope, config.head_dim))
    return model.double().eval()


def logits_at(session: Session, position: int, tokens: list[int]) -> Array:
    """Logits after each token of a text that begins at a position, with an empty state."""
    table = session.manifest.state
    empty = {entry.past_name: np.zeros((1, *entry.shape), numpy_dtype(entry.dtype)) for entry in table}
    session.load_state(SavedState(position, empty))
    return session.all_logits(tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("package", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--adapter", type=Path, action="append", default=[], help="adapter that was merged")
    args = parser.parse_args()
    model = reference_model(args.checkpoint, args.adapter)
    names = [name for name in read_manifest(args.package).graphs if name in (STOCK, FUSED)]
    sessions = [load(args.package, device="cpu", lowering=name) for name in names]
    tokens = sessions[0].tokenizer.encode(args.text.read_text()).ids[:TOKENS]
    for position in POSITIONS:
        at = torch.arange(position, position + len(tokens))[None]
        with torch.no_grad():
            expected = model(torch.tensor([tokens]), position_ids=at).logits[0].numpy()
        for session in sessions:
            try:
                measured = logits_at(session, position, tokens)
            except Exception as error:  # older packages refuse, or ONNX Runtime does
                print(f"{position:,} {session.lowering}: {type(error).__name__}: {error}")
                continue
            pair = measured[SKIPPED:], expected[SKIPPED:]
            found = f"mean KL {mean_kl(*pair):.2g} nats, top-1 {100 * top1_agreement(*pair):.2f}%"
            print(f"{position:,} {session.lowering}: {found}")


if __name__ == "__main__":
    main()
