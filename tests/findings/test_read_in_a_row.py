"""Texts that resemble each other: what counts know of them, and a model only after a few."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from findings import _evidence as arrays
from findings._nets import assert_clear, assert_raised, texts_of, tokens
from sonde.findings.codes.snd037 import SND037
from sonde.findings.codes.snd066 import SND066
from sonde.findings.evidence.texts.lens import lens_evidence, measure_lens
from sonde.findings.evidence.texts.read_in_a_row import read_in_a_row
from sonde.findings.rule import Check, Rule
from sonde.tap import LiveStream

WORDS, LENGTH = 61, 20


class Remembering(nn.Module):
    """Predicts what followed a token earlier in the row, or else, far too surely, the next number.

    ``reach`` is how many tokens back it looks; 0 remembers nothing.
    """

    def __init__(self, reach: int) -> None:
        super().__init__()
        self.reach = reach
        self.embedding = nn.Embedding(WORDS, 8)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        share = 0 * self.embedding(input_ids).sum(-1, keepdim=True) + 0.01
        following = nn.functional.one_hot(input_ids, WORDS).roll(-1, 1).float()
        same = (input_ids[:, :, None] == input_ids[:, None]).float().tril(-1).triu(-self.reach)
        share = share + 0.2 * nn.functional.one_hot((input_ids + 1) % WORDS, WORDS)
        share = share + (same @ following) * (self.reach > 0)
        return {"logits": share.log()}


def checked(module: nn.Module, texts: list[list[int]], rule: Rule | None = None) -> Check:
    """Return what a rule says of a model; words of the first template are letters."""
    stream: LiveStream = tokens(
        module.eval(), [LENGTH] * len(texts), task="causal", vocabulary=WORDS
    )
    for item, text in zip(texts_of(stream), texts, strict=True):
        item[:] = text
    lens = lens_evidence(stream)
    assert lens.texts is not None
    known = {word for text in of_one_template(48) for word in text}
    words = {i: "a" if i in known else "-" for i in range(WORDS)}
    lens = replace(lens, texts=replace(lens.texts, words=words))
    evidence = arrays.evidence_of(torch.randn(40, 3)).having({measure_lens: lens})
    row = read_in_a_row(stream, evidence)
    assert row is not None
    return (rule or SND037()).check(evidence.having({read_in_a_row: row}))


def of_one_template(n: int) -> list[list[int]]:
    """Return texts of one form in which every fifth word is one of four."""
    draw = torch.Generator().manual_seed(1)
    form = torch.randperm(WORDS - 20, generator=draw)[:LENGTH] + 20
    texts = form.repeat(n, 1)
    texts[:, ::5] = torch.randint(0, 4, (n, 4), generator=draw) + torch.tensor([0, 5, 10, 15])
    return texts.tolist()


def of_one_language(n: int) -> list[list[int]]:
    """Return texts in which each word is followed by one of sixteen."""
    draw = torch.Generator().manual_seed(1)
    after = torch.stack([torch.randperm(WORDS, generator=draw)[:16] for _ in range(WORDS)])
    texts = [torch.randint(0, WORDS, (n,), generator=draw)]
    while len(texts) < LENGTH:
        texts.append(after[texts[-1], torch.randint(0, 16, (n,), generator=draw)])
    return torch.stack(texts, 1).tolist()


@pytest.mark.truth("a model that remembers by construction what followed a word")
def test_a_model_that_catches_up_on_texts_of_one_template_is_not_blamed() -> None:
    check = checked(Remembering(reach=200), of_one_template(48))
    assert_clear(check)
    assert "it catches up" in check.reason


def test_texts_of_one_template_are_only_noted_of_a_model_that_does_not_catch_up() -> None:
    finding = assert_raised(checked(Remembering(reach=0), of_one_template(48)), "note")
    assert "resemble each other" in finding.fix


def test_a_model_that_is_worse_than_chance_is_blamed_on_any_texts() -> None:
    model = Remembering(reach=0)
    model.register_forward_hook(lambda _, __, out: {"logits": 3 * out["logits"]})
    finding = assert_raised(checked(model, of_one_template(48)), "warning")
    assert "Load the weights again" in finding.fix


def test_a_model_that_counts_of_many_texts_beat_is_blamed() -> None:
    finding = assert_raised(checked(Remembering(reach=0), of_one_language(600)), "warning")
    assert "Load the weights again" in finding.fix


@pytest.mark.slow
def test_a_kind_that_is_expected_no_more_after_texts_of_one_form_is_not_raised() -> None:
    assert_raised(checked(Remembering(reach=0), of_one_template(48), SND066()), "warning")
    check = checked(Remembering(reach=200), of_one_template(48), SND066())
    assert_clear(check)
    assert "once it has read some of the texts" in check.reason
