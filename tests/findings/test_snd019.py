from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from findings._nets import assert_clear, assert_raised, evidence_of, tokens
from sonde.findings.causes import name_causes
from sonde.findings.codes.snd007 import SND007
from sonde.findings.codes.snd019 import SND019
from sonde.findings.rule import Check


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=61, n_embd=32, n_layer=3, n_head=4, n_positions=96)
    return GPT2LMHeadModel(config).eval()  # pyright: ignore[reportArgumentType]


class Ahead(torch.nn.Module):
    """Mixes every token with the mean of its text, where it does not look back alone."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.causal = torch.nn.Embedding(61, 16), causal
        self.mix, self.head = torch.nn.Linear(16, 16), torch.nn.Linear(16, 61)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        x = self.embedding(input_ids) * attention_mask[..., None]
        seen = attention_mask.cumsum(1)[..., None]
        mean = x.cumsum(1) / seen if self.causal else x.mean(1, keepdim=True)
        return self.head(x + self.mix(mean))


def ended(model: torch.nn.Module, **options: Any) -> tuple[Check, Check]:
    evidence = evidence_of(tokens(model, [8, 12, 16, 24] * 6, **options))
    checks = [SND019().check(evidence), SND007().check(evidence)]
    ahead, padded = name_causes(evidence, checks)
    return ahead, padded


def test_later_tokens_that_reach_earlier_states_are_raised_and_not_taken_for_padding() -> None:
    check, padded = ended(Ahead(False).eval(), task="causal")
    assert_raised(check, "error")
    assert padded.finding is not None
    assert padded.finding.because_of == "SND019"
    check, _ = ended(Ahead(True).eval(), task="causal")
    assert_clear(check)


@pytest.mark.parametrize("task", ["encoder", "causal"])
def test_an_encoder_may_look_ahead_and_a_gpt2_does_not(task: str) -> None:
    check, _ = ended(Ahead(False).eval() if task == "encoder" else gpt2(), task=task)
    assert check.state == ("not_applicable" if task == "encoder" else "clear")
