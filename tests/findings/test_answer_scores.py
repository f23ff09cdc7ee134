"""Scores of answers in trials: one class, numbers, and a class at each position."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import sonde
from sonde.findings.evidence.trials.answer_scores import AnswerScores, line_does_as_well
from sonde.findings.settings import ScanSettings

ORDER = torch.tensor([7, 3, 5])


@pytest.mark.truth("torch's losses, row by row")
def test_losses_and_scores_are_those_of_the_rows() -> None:
    torch.manual_seed(0)
    place = {5: 0, 3: 1, 7: 2}
    label = torch.tensor([[0, 2, -100, 1], [1, 1, 0, -100], [2, 0, 0, 2]])
    for axis in (1, 2):
        logits = torch.randn(3, 3, 4) if axis == 1 else torch.randn(3, 4, 3)
        scores = AnswerScores("entries", label.clamp(min=-1), place, head="")
        rows = [cross_entropy(logits[i].movedim(axis - 1, 1), label[place[o]])
                for i, o in enumerate(ORDER.tolist())]  # fmt: skip
        assert torch.allclose(scores.losses(logits, ORDER).float(), torch.stack(rows))
        longer = torch.cat([label.clamp(min=-1), torch.tensor([[1, -1, 0]]).expand(3, 3)], 1)
        padded = AnswerScores("entries", longer, place, head="")
        assert torch.equal(padded.losses(logits, ORDER), scores.losses(logits, ORDER))
        assert torch.equal(padded.scores(logits, ORDER), scores.scores(logits, ORDER))
    y = torch.tensor([[1.0, 10.0], [2.0, 40.0], [6.0, 70.0]])
    given = y[[2, 1, 0]] + torch.tensor([1.0, 30.0])
    numbers = AnswerScores("numbers", y, place, head="")
    expected = 1 - (1 / y[:, 0].var(correction=0) + 900 / y[:, 1].var(correction=0)) / 2
    assert numbers.scores(given, ORDER).tolist() == pytest.approx([float(expected)] * 3)


@pytest.mark.truth("a line through answers of another unit, and through answers of other rows")
def test_a_line_through_the_answers_explains_another_unit_and_not_other_answers() -> None:
    torch.manual_seed(0)
    y, order = torch.randn(80), torch.arange(80)
    scores = AnswerScores("numbers", y, dict(zip(range(80), range(80), strict=True)), "")
    chooses, made = order % 2 == 0, (y + 0.2 * torch.randn(80))[:, None]
    assert line_does_as_well(scores, 2.2 * y[:, None], made, order, chooses)
    assert not line_does_as_well(scores, torch.randn(80, 1), made, order, chooses)
    far = 300 * (0.4 * y + torch.randn(80))[:, None]  # inputs that are not scaled
    assert not line_does_as_well(scores, far, made, order, chooses)


class Tags(nn.Module):
    """The class of a token, from its code and from a number of the text."""

    def __init__(self, is_last: bool) -> None:
        super().__init__()
        self.is_last, self.table = is_last, nn.Embedding(40, 3)
        self.table.weight.data = 4 * torch.eye(3)[torch.arange(40) % 3]

    def forward(self, tokens: Tensor, level: Tensor) -> Tensor:
        logits = self.table(tokens)
        logits = torch.where(level[:, None] > 5, logits.roll(1, 2), logits)
        return logits if self.is_last else logits.transpose(1, 2)


@pytest.mark.slow
@pytest.mark.truth("planted: a number of another unit, and labels with -100")
@pytest.mark.parametrize("is_last", [True, False])
def test_a_form_of_the_inputs_is_found_by_the_classes_of_tokens(is_last: bool) -> None:
    torch.manual_seed(0)
    tokens, level = torch.randint(0, 40, (200, 9)), 10 * torch.rand(200, 1)
    net = Tags(is_last).eval().requires_grad_(False)
    logits = net(tokens, level)
    label = logits.argmax(2 if is_last else 1)
    label[:, 7:] = -100
    rows = {"tokens": tokens, "level": level / 100, "label": label}
    report = sonde.scan(
        net,
        {name: x.numpy() for name, x in rows.items()},
        settings=ScanSettings(progress=False, only=("SND015", "SND071")),
    )
    answers = report.json()["answers"]
    right = float(
        (net(tokens, level / 100).argmax(2 if is_last else 1) == label)[:, :7].float().mean()
    )
    assert (answers["measure"], answers["value"]) == ("label_accuracy", pytest.approx(right))
    found = {f["code"]: f for f in report.findings}
    assert "level" in found["SND015"]["fix"].partition(":")[0]
    assert report.json()["cause"] == "SND015"
