import math

import pytest
import torch

from findings import _evidence as arrays
from findings._nets import assert_clear, assert_raised
from sonde.findings.codes.snd066 import SND066, _kinds
from sonde.findings.evidence.texts.lens import LensEvidence, TextAnswers, _texts, measure_lens
from sonde.findings.rule import Check

WORDS = {0: "a", 1: " B", 2: "\n", 3: ".", 4: "é"}
SHARES = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05])


def ended(lost: set[int], lag: float = -0.5, special: frozenset[int] = frozenset()) -> Check:
    """Return how texts end whose author is known, but for some tokens that were taken out."""
    draw = torch.Generator().manual_seed(5)
    texts = [torch.multinomial(SHARES, 60, replacement=True, generator=draw) for _ in range(40)]
    kept = [x[~torch.isin(x, torch.tensor(sorted(lost)))] for x in texts]
    said = torch.stack([(len(x) - 1) * SHARES for x in kept])
    nothing = tuple(torch.zeros(len(x) - 1) for x in kept)
    answers = TextAnswers(tuple(kept), nothing, nothing, said, WORDS, special=special)
    lens = LensEvidence(texts=answers, final=1.5 + lag, counted=1.5, n_groups=40, n_rows=2000)
    return SND066().check(arrays.evidence_of(torch.randn(40, 3)).having({measure_lens: lens}))


def test_a_kind_that_was_lost_is_raised_and_texts_with_every_kind_are_clear() -> None:
    finding = assert_raised(ended({2}), "warning")
    assert "line breaks at 15 % of positions, the texts have them at 0 %" in finding.sentence
    assert_clear(ended(set()))


def test_the_end_of_a_text_is_no_kind_that_was_lost() -> None:
    assert_raised(ended({3}), "warning")
    assert_clear(ended({3}, special=frozenset({3})))


def test_an_unknown_token_that_ends_texts_is_special() -> None:
    class Tokenizer:
        all_special_ids, unk_token_id, bos_token_id, eos_token_id = (0,), 0, 0, 0

        def decode(self, ids: list[int]) -> str:
            return WORDS[ids[0]]

    ids = torch.tensor([1, 2, 3, 4])
    read = [(ids, torch.zeros(3), torch.zeros(3))] * 2
    found = _texts(Tokenizer(), read, torch.full((2, 5), 0.2), torch.arange(2))
    assert (found.unknown, found.special) == (None, frozenset({0}))
    assert "small letters" not in {k.name for k in _kinds(found) if k.said > 0.3}
    Tokenizer.eos_token_id = Tokenizer.bos_token_id = 1
    found = _texts(Tokenizer(), read, torch.full((2, 5), 0.2), torch.arange(2))
    assert found.unknown == 0
    assert "unknown tokens" in {k.name for k in _kinds(found)}


def test_a_model_that_is_far_worse_than_counts_has_another_fault() -> None:
    assert_clear(ended({4}, lag=2.0))


@pytest.mark.truth("brute force: shares and divergence of each kind, token by token")
def test_shares_and_costs_are_those_of_a_loop_over_tokens() -> None:
    draw = torch.Generator().manual_seed(2)
    ids = tuple(torch.randint(0, 5, (n,), generator=draw) for n in (9, 14, 5))
    said = torch.stack([torch.rand(len(x) - 1, 5, generator=draw).softmax(1).sum(0) for x in ids])
    nothing = tuple(torch.zeros(len(x) - 1) for x in ids)
    found = {k.name: k for k in _kinds(TextAnswers(ids, nothing, nothing, said, WORDS))}
    n = sum(len(x) - 1 for x in ids)
    for name, members in (
        ("capital letters", {1}), ("small letters", {0, 4}), ("line breaks", {2}),
        ("blanks", {1}), ("punctuation", {3}), ("signs .", {3}), ("letters beyond ASCII", {4}),
    ):  # fmt: skip
        seen = sum(int(t) in members for x in ids for t in x[1:]) / n
        expected = sum(float(said[i, m]) for i in range(3) for m in members) / n
        cost = sum(
            p * math.log(p / q) for p, q in ((seen, expected), (1 - seen, 1 - expected)) if p
        )
        assert found[name].seen == pytest.approx(seen)
        assert found[name].said == pytest.approx(expected, rel=1e-5)
        assert found[name].cost == pytest.approx(cost, rel=1e-4, abs=1e-9)
    assert "tabs" not in found
