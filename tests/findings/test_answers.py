"""Which label gets which answer: counts, the worst pairs, and where the report says them."""

import pytest
import torch
from sklearn.metrics import confusion_matrix

from findings import _evidence as arrays
from sonde.findings.evidence.answers.answers import class_answers, confusion
from sonde.findings.evidence.record import Evidence

OWN = {"labels_are_models": True}
SWAP = torch.tensor([0, 1, 2, 8, 4, 5, 6, 7, 3, 9])


def answering(n_classes: int, swap: torch.Tensor) -> tuple[Evidence, torch.Tensor, torch.Tensor]:
    """Return evidence of answers that take classes for others, also by chance on a tenth."""
    draw = torch.Generator().manual_seed(0)
    label = torch.randint(0, n_classes, (1_200,), generator=draw)
    chance = torch.randint(0, n_classes, (1_200,), generator=draw)
    answer = torch.where(torch.rand(1_200, generator=draw) < 0.1, chance, swap[label])
    logits = 4 * torch.nn.functional.one_hot(answer, n_classes).double()
    x = torch.randn(1_200, 6, generator=draw)
    return arrays.evidence_of(x, label=label, logits=logits, facts=OWN), label, answer


@pytest.mark.truth("sklearn.metrics.confusion_matrix")
def test_an_exchange_stands_in_the_table_and_leads_the_pairs() -> None:
    evidence, label, answer = answering(10, SWAP)
    table = confusion(evidence)
    assert table is not None
    assert table["labels"] == table["answers"] == [str(i) for i in range(10)]
    assert table["counts"] == confusion_matrix(label, answer).tolist()
    assert {(p["label"], p["predicted"]) for p in table["pairs"][:2]} == {("3", "8"), ("8", "3")}
    first = table["pairs"][0]
    mine = label == int(first["label"])
    hit = int((answer[mine] == int(first["predicted"])).sum())
    assert first["n"] == hit
    assert first["share"] == pytest.approx(hit / int(mine.sum()))


def test_of_many_classes_the_table_holds_those_that_are_confused() -> None:
    swap = torch.arange(60)
    swap[[7, 41]] = swap[[41, 7]]
    evidence, label, answer = answering(60, swap)
    table = confusion(evidence)
    assert table is not None
    assert table["n_classes"] == 60
    assert {"7", "41"} <= set(table["labels"])
    assert set(table["labels"]) == {pair["label"] for pair in table["pairs"]}
    at = table["labels"].index("7"), table["answers"].index("41")
    assert table["counts"][at[0]][at[1]] == int(((label == 7) & (answer == 41)).sum())
    assert table["sizes"][at[0]] == int((label == 7).sum())


@pytest.mark.truth("a share counted by hand")
def test_texts_that_nobody_numbered_come_with_the_share_in_sorted_order() -> None:
    label = torch.arange(40) % 2
    answer = torch.where(torch.arange(40) < 10, 1 - label, label)
    logits = torch.nn.functional.one_hot(answer, 2).double()
    facts = {"labels_are_models": False, "label_names": ("cat", "sea cow")}
    evidence = arrays.evidence_of(torch.randn(40, 3), label=label, logits=logits, facts=facts)
    why = class_answers(evidence)
    assert isinstance(why, str)
    assert why.endswith(
        "in the order cat and sea cow, it is correct on 75 %: then pass --classes 'cat,sea cow'"
    )
    turned = arrays.evidence_of(torch.randn(40, 3), label=label, logits=-logits, facts=facts)
    why = class_answers(turned)
    assert isinstance(why, str)
    assert why.endswith(
        "in the order cat and sea cow, it is correct on 25 %, in the order sea cow and cat on "
        "75 %: then pass --classes 'sea cow,cat'"
    )
