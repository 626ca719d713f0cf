"""A job of ``test_accelerate``: compares a model sharded by FSDP's ``fully_shard`` with the unsharded model.

accelerate shards only on GPUs; this does the same on CPUs. The first process prints the differences as JSON.
"""

import json
from pathlib import Path

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from liger_export.finetune import AttentionTransfer
from liger_export.modeling.model import LigerDecoderLayer
from tests.tiny import VOCABULARY, load_model, relative_l2


def trained(checkpoint: Path, stage: str) -> nn.Module:
    torch.manual_seed(0)
    model = load_model(checkpoint)
    if stage == "transfer":
        return AttentionTransfer(model).train()
    lora = LoraConfig(r=4, target_modules=["q_proj", "k_proj", "v_proj"], init_lora_weights=False)
    return get_peft_model(model, lora).train()


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    loss: Tensor = model(input_ids=tokens, labels=tokens).loss
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def main(checkpoint: Path, stage: str) -> None:
    """Compare loss and gradients, in each process of the group."""
    mesh = init_device_mesh("cpu", (2,))
    whole, sharded = trained(checkpoint, stage), trained(checkpoint, stage)
    for module in list(sharded.modules()):
        if isinstance(module, LigerDecoderLayer):
            fully_shard(module, mesh=mesh)
    fully_shard(sharded, mesh=mesh)

    torch.manual_seed(0)
    tokens = torch.randint(1, VOCABULARY, (4, 50))
    expected, loss = loss_of(whole, tokens), loss_of(sharded, tokens.chunk(2)[dist.get_rank()])
    dist.all_reduce(loss)
    expected_gradients = {name: value.grad for name, value in whole.named_parameters() if value.grad is not None}
    found = {name: value.grad for name, value in sharded.named_parameters() if value.grad is not None}
    assert set(expected_gradients) == set(found)
    gradients = [relative_l2(found[name].full_tensor(), expected_gradients[name]) for name in expected_gradients]  # type: ignore[attr-defined]
    if dist.get_rank() == 0:
        print(json.dumps({"loss": relative_l2(loss / 2, expected), "gradient": max(gradients), "of": len(gradients)}))
