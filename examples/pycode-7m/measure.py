"""Measure pycode-7m on its held-out text: the figures of the model card.

python measure.py        # base, linearized, linearized with the adapter
"""

import tempfile
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from liger_export import register
from liger_export.linearize import linearize
from liger_export.quality import Quality, measure_quality, token_blocks

HERE = Path(__file__).parent
CONTEXT = 1024


def main() -> None:
    register()
    blocks = token_blocks(AutoTokenizer.from_pretrained(HERE / "base"), HERE / "heldout", CONTEXT)
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = Path(scratch, "liger")
        linearize(str(HERE / "base"), checkpoint)
        base = AutoModelForCausalLM.from_pretrained(HERE / "base", dtype=torch.float32)
        linearized = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    results: dict[str, Quality] = {
        "base": measure_quality(base, blocks),
        "linearized, no LoRA": measure_quality(linearized, blocks),
    }
    adapted = PeftModel.from_pretrained(linearized, str(HERE / "adapter"))
    results["linearized, with LoRA"] = measure_quality(adapted, blocks)

    print(f"| {results['base'].tokens:,} held-out tokens | perplexity | next-token accuracy | of the base's |")
    print("| --- | --- | --- | --- |")
    for name, result in results.items():
        share = result.accuracy / results["base"].accuracy
        print(f"| {name} | {result.perplexity:.2f} | {result.accuracy:.2%} | {share:.1%} |")


if __name__ == "__main__":
    main()
