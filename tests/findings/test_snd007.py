from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2Model, LlamaConfig, LlamaModel

from findings._nets import Block, assert_clear, assert_raised, evidence_of, tokens
from sonde.findings.snd006 import SND006
from sonde.findings.snd007 import SND007
from sonde.findings.snd008 import SND008

LENGTHS = [9 + 3 * (i % 8) for i in range(24)]


def gpt2(dtype: torch.dtype = torch.float32) -> GPT2Model:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=61, n_embd=32, n_layer=3, n_head=4, n_positions=96)
    return GPT2Model(config).to(dtype).eval()


def llama() -> LlamaModel:
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
            for block in self.blocks:
                x = x + block.down(torch.tanh(block.up(x + mean)))
            return x
        for block in self.blocks:
            x = block(x)
        return x


def evidence(module: nn.Module, side: str, **options: Any) -> Any:
    stream = tokens(module, LENGTHS, processor=SimpleNamespace(padding_side=side, pad_token_id=0))
    return evidence_of(stream, **options)


def test_a_model_that_ignores_its_mask() -> None:
    found = evidence(Forgetful(False).eval(), "right")
    check = SND007().check(found)
    assert_raised(check, "error")
    assert check.finding is not None
    assert check.finding.sentence.startswith("Padding on the right changes real tokens at blocks.0")
    assert_clear(SND006().check(found))
    assert SND008().check(found).state == "not_applicable"


def test_the_same_model_with_its_mask() -> None:
    assert_clear(SND007().check(evidence(Forgetful(True).eval(), "right")))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_learned_positions_padded_left(dtype: torch.dtype) -> None:
    found = evidence(gpt2(dtype), "left")
    padded, positions = SND007().check(found), SND008().check(found)
    assert_raised(positions, "error")
    assert_raised(padded, "error")
    assert padded.finding is not None
    assert padded.finding.because_of == "SND008"
    assert "Padded on the right it is stable." in padded.finding.sentence
    assert found.model.self_check.left_positions.worst < found.model.self_check.tau
    assert found.model.self_check.right.worst < found.model.self_check.tau


def test_learned_positions_padded_right_are_clear_unless_deep() -> None:
    found = evidence(gpt2(), "right")
    assert_clear(SND007().check(found))
    assert SND008().check(found).state == "not_applicable"
    assert_raised(SND007().check(evidence(gpt2(), "right", deep=True)), "error")


def test_rotary_positions_do_not_care() -> None:
    found = evidence(llama(), "left")
    assert_clear(SND007().check(found))
    assert_clear(SND008().check(found))
    assert_clear(SND006().check(found))


def test_sixteen_bits_say_what_they_cannot_see() -> None:
    check = SND007().check(evidence(llama().bfloat16(), "right"))
    assert_clear(check)
    assert "--dtype float32" in check.reason
