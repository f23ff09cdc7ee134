"""A retriever and a reader that learn from each other, and answers by lot."""

from dataclasses import replace

import pytest
import torch

from sonde_studies._passages import VALUES, questions_and_passages
from sonde_studies._taught_retriever import trained_together
from sonde_studies.learned_together import answered, dealt, helped, untrained
from sonde_studies.study import NULL_LEVEL, Outcome


def _informed(of):
    """A leak: passages say the answers of the questions that they are about."""
    key = of.subject * 100 + of.relation
    order = key.argsort()
    at = order[torch.searchsorted(key[order], of.about * 100 + of.fact)]
    return replace(of, value=of.answer[at])


def test_both_move_and_what_was_given_stays():
    known, _ = questions_and_passages(0, (20, 5))
    pair = untrained(0, 25)
    before = [p.clone() for net in pair for p in net.parameters()]
    after = trained_together(*pair, known, 2, 0)
    assert all(map(torch.equal, before, [p for net in pair for p in net.parameters()]))
    for net, moved in zip(pair, after, strict=True):
        learned = [
            not torch.equal(p, q) and p.requires_grad
            for p, q in zip(net.parameters(), moved.parameters(), strict=True)
        ]
        assert learned == [p.requires_grad for p in net.parameters()]


@pytest.mark.truth("first passages, one question after another")
@torch.no_grad()
def test_shares_of_answers_and_of_passages_that_help():
    _, new = questions_and_passages(4, (3, 9))
    retriever, reader = untrained(4, 12)
    right, helps = 0, 0
    for row in new.answerable:
        first = retriever(new, row[None]).argmax(1)
        right += int(reader(new, row[None], first).argmax(1)) == int(new.answer[row])
        same = (new.about[first] == new.subject[row]) & (new.fact[first] == new.relation[row])
        helps += bool(same & (new.value[first] == new.answer[row]))
    assert answered(retriever, reader, new) == pytest.approx(right / len(new.answerable))
    assert helped(retriever, new) == pytest.approx(helps / len(new.answerable))


@pytest.mark.slow
def test_passages_that_know_the_lot_are_seen_by_answers_by_lot():
    for leaks in (False, True):
        found = list[float]()
        for seed in range(5):
            lots = [
                dealt(of, seed + i) for i, of in enumerate(questions_and_passages(seed, (120, 80)))
            ]
            lots = [_informed(of) for of in lots] if leaks else lots
            pair = trained_together(*untrained(seed, 200), lots[0], 200, seed)
            found.append(answered(*pair, lots[1]) - 1 / VALUES)
        seen = not Outcome(tuple(found), 0.0, NULL_LEVEL).covers
        assert seen == leaks, found
