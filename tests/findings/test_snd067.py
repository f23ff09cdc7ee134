"""Rows of an embedding and of a head, exchanged in a model that knows its texts exactly."""

from dataclasses import replace

import pytest
import torch

from findings import _evidence as arrays
from findings._nets import assert_clear, assert_raised, texts_of, tokens
from scan._plants_chain import WORDS, Chain, drawn
from sonde.findings.codes.snd067 import SND067
from sonde.findings.evidence.texts.lens import lens_evidence, measure_lens
from sonde.findings.evidence.texts.read_in_a_row import ReadInARow, read_in_a_row
from sonde.findings.evidence.texts.text_forms import TextForms, text_forms
from sonde.findings.evidence.texts.token_rows import OddToken, token_rows
from sonde.findings.rule import Check

TEXTS = 64


def often(texts: torch.Tensor) -> list[int]:
    """Return the four most frequent words."""
    return torch.bincount(texts.flatten()).argsort(descending=True)[:4].tolist()


def ended(
    part: str,
    other: float = 1.0,
    odd: tuple[OddToken, ...] = (),
    copies: int = 1,
    row: ReadInARow | None = None,
) -> Check:
    """Scan the author of some texts, with rows of one of its layers exchanged.

    Parameters
    ----------
    part : str
    other : float
        Loss of these texts in another form, over the loss of the texts as they are given.
    odd : tuple of OddToken
        Tokens that stand out, in place of those that are found.
    copies : int
        How often each text is there.
    row : ReadInARow, optional
        What the model says of texts after others; by default nobody asks.
    """
    model = Chain(0.7).requires_grad_(False).eval()
    texts = drawn(model, TEXTS // copies, 50).repeat(copies, 1)
    a, b, c, d = often(texts)
    for layer in [model.get_submodule(part)] if part else []:
        for weight in layer.parameters():
            weight[[a, b, c, d]] = weight[[c, d, a, b]]
    stream = tokens(model, [50] * TEXTS, task="causal", vocabulary=WORDS)
    for item, text in zip(texts_of(stream), texts.tolist(), strict=True):
        item[:] = text
    lens = lens_evidence(stream)
    evidence = arrays.evidence_of(torch.randn(40, 3)).having({measure_lens: lens})
    every = torch.arange(TEXTS)
    losses = {"in lower case": torch.full((TEXTS,), other)}
    forms = TextForms(torch.ones(TEXTS), losses, every, every % 2 == 0)
    rows = token_rows(stream, evidence)
    if odd and rows is not None:
        rows = replace(rows, odd=odd)
    parts = {token_rows: rows, text_forms: forms, read_in_a_row: row}
    return SND067(forms=1.3).check(evidence.having(parts))


@pytest.mark.truth("planted: two pairs of rows exchanged in a model that wrote the texts itself")
@pytest.mark.parametrize(("part", "said"), [("embedding", "embedding"), ("head", "head")])
def test_exchanged_rows_are_named_with_the_gain(part: str, said: str) -> None:
    finding = assert_raised(ended(part), "warning")
    assert f"in the {said} exchanged" in finding.sentence
    a, b, c, d = often(drawn(Chain(0.7).eval(), TEXTS, 50))
    for pair in ((a, c), (b, d)):
        names = [f"number {x} and number {y}" for x, y in (pair, pair[::-1])]
        assert any(name in finding.fix for name in names), (pair, finding.fix)


def test_copies_of_few_texts_are_too_few_to_name_an_exchange() -> None:
    assert_raised(ended("head", copies=2), "warning")
    found = ended("head", copies=4).finding
    assert found is None or "exchanged" not in found.sentence


@pytest.mark.slow
def test_texts_that_are_better_in_another_form_are_no_exchange_of_rows() -> None:
    assert_raised(ended("head", other=0.9), "warning")
    assert_clear(ended("head", other=0.01))


def test_a_rare_token_is_a_note_and_a_frequent_one_a_warning() -> None:
    for n, level in ((12, "note"), (90, "warning")):
        finding = assert_raised(ended("", odd=(OddToken(7, n, "at", 0.9, -0.4),)), level)
        assert finding.sentence.startswith("At the token number 7 the model's loss is 0.9 nats")


def test_a_token_that_is_predicted_after_other_texts_is_of_their_form() -> None:
    odd = (OddToken(7, 90, "after", 3.9, -0.4),)
    tokens, nothing = torch.tensor([[5, 7, 7, 8], [7, 8, 9, 7]]), torch.zeros(1, 10)
    for beyond, is_of_form in ((torch.tensor([3.0, 0.1, -0.4, 3.0]), True), (tokens[0] / 5, False)):
        row = ReadInARow(1.0, (2.0, 2.0, 2.0), tokens, beyond, nothing, nothing)
        check = ended("", odd=odd, row=row)
        if is_of_form:
            assert_clear(check)
        else:
            assert_raised(check, "warning")


def test_the_author_of_the_texts_is_clear() -> None:
    assert_clear(ended(""))
