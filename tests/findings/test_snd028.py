import pytest
import torch
from torch import Tensor, nn

from findings._nets import assert_clear, assert_raised, evidence_of, texts_of, tokens
from sonde.findings.codes.snd028 import SND028
from sonde.findings.evidence.texts.text_variants import text_variant_evidence
from sonde.findings.rule import Check

WORDS = 61


class Clock(nn.Module):
    """Expects the word of the next position, where its positions are right."""

    def __init__(self, off: int = 0) -> None:
        super().__init__()
        self.words, self.off = nn.Embedding.from_pretrained(5 * torch.eye(WORDS)), off
        self.head = nn.Linear(WORDS, WORDS, bias=False).requires_grad_(False)
        nn.init.eye_(self.head.weight)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None
    ) -> dict[str, Tensor]:
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        return {"logits": self.head(self.words(position_ids + 3 + self.off))}


def ended(model: nn.Module) -> Check:
    stream = tokens(model.eval(), [20] * 40, task="causal", vocabulary=WORDS)
    draw = torch.Generator().manual_seed(0)
    for text in texts_of(stream):
        noise = (torch.rand(20, generator=draw) < 0.2).tolist()
        text[:] = [w if noise[i] else 2 + i for i, w in enumerate(text)]
    evidence = evidence_of(stream)
    return SND028().check(
        evidence.having({text_variant_evidence: text_variant_evidence(stream, evidence)})
    )


@pytest.mark.parametrize(("off", "said"), [(1, "1 lower"), (-1, "1 higher")])
def test_positions_that_are_off_by_one_are_named(off: int, said: str) -> None:
    finding = assert_raised(ended(Clock(off)), "warning")
    assert f"For the texts with positions {said}," in finding.sentence


def test_a_model_whose_positions_fit_is_clear() -> None:
    assert_clear(ended(Clock()))
