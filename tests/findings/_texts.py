"""Language models that bear padding well or badly, and the evidence that they give."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2Model, LlamaConfig, LlamaModel

from findings._nets import Block, evidence_of, tokens
from narrow import expect
from sonde.findings.evidence.record import Evidence

LENGTHS = [9 + 3 * (i % 8) for i in range(24)]


def gpt2(dtype: torch.dtype = torch.float32) -> GPT2Model:
    """Return a model with learned positions."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=61, n_embd=32, n_layer=3, n_head=4, n_positions=96)
    return GPT2Model(config).to(dtype).eval()  # pyright: ignore[reportArgumentType]


def llama() -> LlamaModel:
    """Return a model with rotary positions."""
    torch.manual_seed(0)
    return LlamaModel(
        LlamaConfig(
            vocab_size=61, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, intermediate_size=64, max_position_embeddings=96,
        )
    ).eval()  # fmt: skip


class Forgetful(nn.Module):
    """Attention over all tokens, padded ones too unless it uses its mask."""

    def __init__(self, uses_mask: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(61, 16)
        self.blocks = nn.ModuleList([Block(16), Block(16)])
        self.uses_mask = uses_mask

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        if self.uses_mask:
            weight = attention_mask[..., None] / attention_mask.sum(1)[:, None, None]
            mean = (x * weight).sum(1, keepdim=True)
            for member in self.blocks:
                block = expect(Block, member)
                x = x + block.down(torch.tanh(block.up(x + mean)))
            return x
        for block in self.blocks:
            x = block(x)
        return x


def padded(module: nn.Module, side: str, **options: Any) -> Evidence:
    """Return the evidence of texts of different length, padded on a side by a processor."""
    stream = tokens(module, LENGTHS, processor=SimpleNamespace(padding_side=side, pad_token_id=0))
    return evidence_of(stream, **options)
