"""The planted passages, and a retriever that learns which of them help a reader."""

import pytest
import torch

from sonde_studies._passages import (
    COPIES,
    RELIABLE,
    SOURCES,
    TOLD,
    UNRELIABLE,
    Questions,
    Reader,
    Retriever,
    questions_and_passages,
)
from sonde_studies._taught_retriever import gains, shares, taught_by


def _truth(of: Questions) -> dict[tuple[int, int], int]:
    columns = (of.subject.tolist(), of.relation.tolist(), of.answer.tolist())
    return {(s, r): a for s, r, a in zip(*columns, strict=True)}


@pytest.mark.truth("the table, counted anew")
def test_half_of_the_sources_are_mostly_right():
    known, new = questions_and_passages(1, (400, 7))
    assert not {*known.subject.tolist()} & {*new.subject.tolist()}
    truth, right = _truth(known), [[] for _ in range(SOURCES)]
    columns = (known.about, known.fact, known.value, known.source)
    for about, fact, value, source in zip(*(x.tolist() for x in columns), strict=True):
        right[source].append(truth[about, fact] == value)
    rates = sorted(sum(r) / len(r) for r in right)
    assert rates == pytest.approx([UNRELIABLE] * 3 + [RELIABLE] * 3, abs=0.08)
    assert len(known.about) == 400 * TOLD * COPIES
    assert len(new.answerable) == 7 * TOLD
    rows, every = torch.arange(len(new.answer)), torch.arange(len(new.about))
    helps = new.helpful(rows, every.expand(len(rows), -1)).nonzero().tolist()
    wanted = [
        [q, p]
        for q in rows.tolist()
        for p in every.tolist()
        if (new.about[p], new.fact[p], new.value[p])
        == (new.subject[q], new.relation[q], new.answer[q])
    ]
    assert helps == wanted


@pytest.mark.truth("losses of a reader by hand")
@torch.no_grad()
def test_labels_are_gains_and_harmful_passages_have_none():
    torch.manual_seed(3)
    of, reader = questions_and_passages(2, (5,))[0], Reader()
    rows, found = torch.arange(6), torch.randint(len(of.about), (6, 4))
    label, weight = gains(reader, of, rows, found)
    for row in range(6):
        alone = -float(reader(of, rows[[row]]).log_softmax(1)[0, of.answer[row]])
        gain = []
        for passage in found[row]:
            logits = reader(of, rows[[row]], passage[None])
            gain.append(alone + float(logits.log_softmax(1)[0, of.answer[row]]))
        size = [torch.tensor(g / 0.5).exp().item() if g >= 0 else 0.0 for g in gain]
        wanted = [s / sum(size) if sum(size) else 0.0 for s in size]
        assert label[row].tolist() == pytest.approx(wanted, abs=1e-5)
        assert float(weight[row]) == (sum(size) > 0)


def test_a_retriever_learns_its_labels():
    torch.manual_seed(4)
    of = questions_and_passages(5, (30,))[0]
    untaught = Retriever(30)
    rows = of.answerable

    def helped(retriever: Retriever) -> float:
        return float(of.helpful(rows, retriever(of, rows).argmax(1)[:, None]).mean())

    taught = taught_by(untaught, of, lambda r, found: shares(of.helpful(r, found)), 60, 0)
    assert helped(taught) > helped(untaught) + 0.2
