"""Heads, several labels, ranks, maps and boxes: each is judged by its own labels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sonde
from findings._evidence import evidence_of
from findings._nets import assert_clear, assert_raised
from sonde.findings.codes.snd071 import SND071
from sonde.findings.evidence.answers import head_accuracy, head_answers
from sonde.findings.evidence.answers.answers import judge_heads
from sonde.findings.settings import ScanSettings
from sonde.report import Report

N, K = 160, 5


class Heads(nn.Module):
    """Answers with one part of its numbers for each name, as a mapping, a tuple or a list."""

    def __init__(self, form: str = "mapping", **widths: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.form, self.widths = form, widths
        self.mix = nn.Linear(sum(widths.values()), sum(widths.values()))
        with torch.no_grad():
            self.mix.weight.copy_(torch.eye(len(self.mix.weight)))
            self.mix.bias.zero_()

    def forward(self, x: Tensor) -> Any:
        parts = self.mix(x).split(list(self.widths.values()), 1)
        named = dict(zip(self.widths, parts, strict=True))
        if self.form == "list":
            boxes = {name: part.unflatten(1, (-1, 4)) for name, part in named.items()}
            return [{name: v[i] for name, v in boxes.items()} for i in range(len(x))]
        return named if self.form == "mapping" else (*parts,)


class Alone(Heads):
    """Answers with all numbers at once."""

    def __init__(self, width: int) -> None:
        super().__init__(all=width)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x)


class Cuts(Heads):
    """Answers with how far a number lies above each of some cuts."""

    def __init__(self) -> None:
        super().__init__(all=8)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x)[:, :1] - torch.arange(K) - 0.5


class Mapped(nn.Module):
    """Give each pixel three numbers; the largest says its class."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 3, 1, bias=False)
        with torch.no_grad():
            self.mix.weight.copy_(torch.eye(3)[:, :, None, None])

    def forward(self, image: Tensor) -> Tensor:
        return self.mix(image)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def scanned(net: nn.Module, data: Any, **options: Any) -> Report:
    settings = ScanSettings(progress=False, only=("SND037", "SND071"))
    return sonde.scan(net.eval(), data, settings=settings, **options)


def raised(report: Report, code: str = "SND071") -> dict[str, Any] | None:
    return next((f for f in report.json()["findings"] if f["code"] == code), None)


def noisy(truth: Tensor, share: float, n: int, seed: int = 5) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    other = (truth + torch.randint(1, n, truth.shape, generator=draw)) % n
    return torch.where(torch.rand(truth.shape, generator=draw) < share, other, truth)


@pytest.mark.slow
@pytest.mark.truth("accuracy by hand")
@pytest.mark.parametrize("form", ["mapping", "tuple"])
def test_each_head_is_judged_by_its_own_column(form: str, tmp_path: Path) -> None:
    x = drawn(N, 8)
    kind, size = noisy(x[:, :4].argmax(1), 0.2, 4), x[:, 7] + 0.3 * drawn(N, seed=1)
    data = {"x": x, "kind": kind, "size": size}
    report = scanned(Heads(form, kind=4, pad=3, size=1), data, label_column="kind,size")
    answers = report.json()["answers"]
    first, second = answers["heads"]
    right = float((x[:, :4].argmax(1) == kind).double().mean())
    assert answers["value"] == pytest.approx(right)
    assert first["value"] == pytest.approx(right)
    off = float((x[:, 7] - size).square().mean()) ** 0.5
    assert (second["column"], second["measure"]) == ("size", "rms_error")
    assert second["value"] == pytest.approx(off, rel=1e-4)
    assert "size" in str(report).split("cause")[0]
    report.save(tmp_path / "page.html")
    bars = (tmp_path / "page.html").read_text().split('class="beside"')[1].split("Findings")[0]
    assert "kind" in bars
    assert "this model" not in bars


@pytest.mark.slow
@pytest.mark.truth("accuracy by hand; two labels planted in each other's place")
@pytest.mark.parametrize("columns", [False, True])
def test_several_labels_are_judged_one_by_one_and_exchanged_ones_are_raised(columns: bool) -> None:
    x = drawn(N, K)
    y = noisy((x > 0).long(), 0.1, 2)
    names = ["red", "round", "large", "old", "wet"]

    def scan(y: Tensor) -> Report:
        if not columns:
            return scanned(Alone(K), (x, y))
        data = {"x": x} | {name: y[:, i] for i, name in enumerate(names)}
        return scanned(Alone(K), data, label_column=",".join(names))

    (head,) = scan(y).json()["answers"]["heads"]
    hit = (x > 0).long() == y
    assert head["value"] == pytest.approx(float(hit.double().mean()))
    assert head["all_right"] == pytest.approx(float(hit.all(1).double().mean()))
    assert [p["value"] for p in head["parts"]] == pytest.approx(hit.double().mean(0).tolist())
    assert [p["name"] for p in head["parts"]] == (names if columns else list("01234"))
    assert raised(scan(y)) is None
    found = raised(scan(y[:, [0, 3, 2, 1, 4]]))
    assert found is not None
    assert found["level"] == "error"
    assert "with output 3 for 1, 1 for 3" in found["fix"]
    inverted = raised(scan(torch.cat([y[:, :4], 1 - y[:, 4:]], 1)))
    assert inverted is not None
    assert f"label {'wet' if columns else '4'} is correct on" in inverted["sentence"]


@pytest.mark.truth("brute force over classes; a mirrored map planted")
def test_maps_are_judged_by_pixel_and_by_class() -> None:
    image = drawn(60, 3, 6, 6)
    label = noisy(image.argmax(1), 0.15, 3)
    data = {"image": image, "label": label}
    (head,) = scanned(Mapped(), data).json()["answers"]["heads"]
    said = image.argmax(1)
    assert head["measure"] == "pixel_accuracy"
    assert head["value"] == pytest.approx(float((said == label).double().mean()))
    ratios = [
        float(((said == k) & (label == k)).sum() / ((said == k) | (label == k)).sum())
        for k in range(3)
    ]
    assert head["mean_overlap"] == pytest.approx(np.mean(ratios))
    assert raised(scanned(Mapped(), data)) is None
    found = raised(scanned(Mapped(), data | {"label": label.flip(-1)}))
    assert found is not None
    assert "mirrored" in found["fix"]


@pytest.mark.truth("ranks by hand")
def test_ranks_are_counted_by_their_cuts() -> None:
    x = 1.5 * drawn(N, 8) + 2.5
    truth = noisy((x[:, 0] + 0.5).floor().clamp(0, K).long(), 0.2, K + 1)
    (head,) = scanned(Cuts(), (x, truth)).json()["answers"]["heads"]
    answer = (x[:, :1] > torch.arange(K) + 0.5).sum(1)
    assert head["measure"] == "rank_accuracy"
    assert head["value"] == pytest.approx(float((answer == truth).double().mean()))
    assert head["ranks_off"] == pytest.approx(float((answer - truth).abs().double().mean()))


@pytest.mark.truth("planted: a target that is far off in units of its own column")
def test_the_worst_rows_of_several_numbers_name_the_number_that_is_furthest_off() -> None:
    x = drawn(N, 2)
    truth = (x + 0.1 * drawn(N, 2, seed=1)) * torch.tensor([1.0, 100.0])
    truth[3, 0] += 5
    head = head_accuracy.judged(
        x * torch.tensor([1.0, 100.0]), truth, ("age", "pay"), torch.arange(N)
    )
    assert head is not None
    targets, answers = head["words"]
    assert targets[3] == f"{float(truth[3, 0]):.3g} (age)"
    assert float(answers[3]) == pytest.approx(float(x[3, 0]))
    assert {word.rpartition(" ")[2] for word in targets} == {"(age)", "(pay)"}


@pytest.mark.truth("R^2 by hand")
def test_boxes_are_numbers_and_no_logits_and_are_judged_beside_boxes_alone() -> None:
    x = drawn(N, 12)
    boxes = (x + 0.5 * drawn(N, 12, seed=1)).reshape(N, 3, 4)
    data = {"x": x, "boxes": boxes}
    found = scanned(Heads("list", boxes=12), data, label_column="boxes").json()["answers"]
    assert found["measure"] == "rms_error"
    assert found["value"] == pytest.approx(
        float((x.reshape(N, 3, 4) - boxes).square().mean()) ** 0.5
    )
    for labels, reason in (
        (boxes[:, :2], "no single output of the model fits"),
        (None, "the data have no labels"),
    ):
        given = {"x": x} if labels is None else {"x": x, "label": labels}
        report = scanned(Heads("list", boxes=12), given)
        assert report.json()["answers"] is None
        first = " ".join(str(report).split())
        assert "answers not judged: " in first
        assert reason in first


def test_a_head_that_guesses_is_named() -> None:
    x = drawn(N, 8)
    data = {"x": x, "kind": x[:, :4].argmax(1), "side": (x[:, 5] < x[:, 4]).long() ^ 1}
    net = Heads(kind=4, side=2, pad=2)
    assert raised(scanned(net, data, label_column="kind,side")) is None
    found = raised(scanned(net, data | {"side": 1 - data["side"]}, label_column="kind,side"))
    assert found is not None
    assert "The head 'side' is correct on 0 % of rows" in found["sentence"]
    assert found["rows"]


def of_share(right: float) -> Any:
    draw = torch.Generator().manual_seed(1)
    usual, found = ((torch.rand(N, generator=draw) < p).double() for p in (0.5, right))
    rows = torch.arange(N)
    head = head_answers.HeadAnswers("a", "kind", "accuracy", found, usual, (*range(N),), rows)
    return SND071().check(
        evidence_of(drawn(N, 3)).having({judge_heads: head_answers.Heads((head,))})
    )


def test_a_head_below_one_answer_for_all_is_raised_and_one_above_is_not() -> None:
    assert_raised(of_share(0.2), "warning")
    assert_clear(of_share(0.6))


@pytest.mark.truth("the interval of as many rows as there are groups; rows without labels by hand")
def test_copies_of_a_row_are_one_row_and_rows_without_a_label_do_not_count() -> None:
    x = drawn(40, K)
    y = noisy((x > 0).long(), 0.2, 2).double()
    y[:8] = -1
    some = x[8:]

    def head(times: int) -> dict[str, Any]:
        items = [
            {"x": row, "label": label, "group": str(i)}
            for i, (row, label) in enumerate(zip(x, y, strict=True))
            for _ in range(times)
        ]
        (found,) = scanned(Alone(K), items).json()["answers"]["heads"]
        return found

    one, four = head(1), head(4)
    hit = (some > 0).double() == y[8:]
    assert one["n_rows"] == 32
    assert one["all_right"] == pytest.approx(float(hit.all(1).double().mean()))
    for name in ("value", "low", "high"):
        assert four[name] == pytest.approx(one[name], abs=0.01)


@pytest.mark.truth("R^2 of numbers that were multiplied, and of exponentials")
def test_numbers_on_another_scale_are_raised_with_the_line_that_turns_them_back() -> None:
    torch.manual_seed(0)
    said = torch.randn(80, 2).double()
    group = torch.arange(80)
    for truth, line in ((said * 2.2046, "y = 2.205 * y"), (said.exp(), "y = y.exp()")):
        made = head_accuracy.judged(said, truth, (), group)
        assert made is not None
        assert made["line"] == line
        assert made["other"][1] > 0.99
        head = head_answers.HeadAnswers("", "y", examples=(*range(80),), group=group, **made)
        check = SND071().check(
            evidence_of(torch.randn(30, 4)).having({judge_heads: head_answers.Heads((head,))})
        )
        assert assert_raised(check, "warning").fix.startswith(line)
    healthy = head_accuracy.judged(said, said + 0.3 * torch.randn(80, 2), (), group)
    assert healthy is not None
    assert "other" not in healthy


@pytest.mark.truth("planted permutations of classes; chance and one-sided confusions have none")
@pytest.mark.parametrize("shape", [(90, 6, 7), (90, 23)], ids=["maps", "positions"])
def test_renamed_classes_of_maps_and_positions(shape: tuple[int, ...]) -> None:
    draw = torch.Generator().manual_seed(3)
    truth = torch.multinomial(torch.tensor([0.7, 0.15, 0.1, 0.05]), 90 * 42, True, generator=draw)
    truth = truth.reshape(90, -1)[:, : int(np.prod(shape[1:]))].reshape(shape).double()
    truth[:7, :2] = torch.nan  # not labelled
    wrong = torch.rand(shape, generator=draw) < 0.08
    said = torch.where(
        wrong, torch.randint(0, 4, shape, generator=draw).double(), truth.nan_to_num()
    )

    def other(said: Tensor, truth: Tensor) -> Any:
        judgement = head_accuracy.judged(said, truth, (), torch.arange(90), True)
        assert judgement is not None
        return judgement.get("other")

    cycled = torch.where(truth.isnan(), torch.nan, (truth.nan_to_num() + 1) % 4)
    assert other(said, cycled)[0] == "with labels renamed (0 -> 3, 1 -> 0, 2 -> 1, 3 -> 2)"
    renamed = torch.tensor([0.0, 3.0, 1.0, 2.0])[truth.nan_to_num().long()]
    words, after = other(said, torch.where(truth.isnan(), torch.nan, renamed))
    assert words == "with labels renamed (1 -> 2, 2 -> 3, 3 -> 1)"
    held = ~truth.isnan()
    held[::2] = False
    assert after == pytest.approx(float((said == truth)[held].double().mean()))
    assert other(said, truth) is None
    assert other(torch.where(truth.nan_to_num() == 3, 1.0, said), truth) is None
    assert other(said.flip(0).roll(1, 0), truth) is None


class Tagger(nn.Module):
    """Gives each token one of five tags from its code."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.inner, self.last = (
            nn.Embedding(60, 24),
            nn.Linear(24, 32),
            nn.Linear(32, 5),
        )

    def forward(self, ids: Tensor) -> Tensor:
        return self.last(self.inner(self.table(ids)).relu())


@pytest.fixture(scope="module")
def tagged() -> tuple[nn.Module, Tensor, Tensor]:
    """Return a trained tagger, padded texts of unequal length, and their tags (-100: padding)."""
    draw = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net, ids = Tagger(), torch.randint(1, 60, (500, 20), generator=draw)
    real = torch.arange(20) < torch.randint(6, 18, (500, 1), generator=draw)
    ids, tags = torch.where(real, ids, 0), torch.where(real, ids % 5, -100)
    descent = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(150):
        rows = torch.randint(0, 300, (64,), generator=draw)
        loss = nn.functional.cross_entropy(net(ids[rows]).transpose(1, 2), tags[rows])
        descent.zero_grad()
        loss.backward()
        descent.step()
    return net.eval(), ids[300:], tags[300:]


@pytest.mark.slow
@pytest.mark.truth("planted: tags under other names; a layer of the other sign")
@pytest.mark.parametrize(("fault", "cause"), [("names", "SND071"), ("sign", "SND068")])
def test_the_cause_of_wrong_tags_is_told_from_its_rivals(tagged, fault: str, cause: str) -> None:
    """A layer of the other sign exchanges some tags, too: the larger gain is the cause."""
    net, ids, tags = tagged
    weight = net.last.weight.data.clone()
    if fault == "sign":
        net.last.weight.data.neg_()
    else:
        tags = torch.where(tags >= 0, torch.tensor([1, 2, 0, 3, 4])[tags.clamp(min=0)], tags)
    rows = [{"ids": x, "label": y} for x, y in zip(ids, tags, strict=True)]
    report = sonde.scan(net, rows, settings=ScanSettings(progress=False))
    net.last.weight.data = weight
    assert report.cause is not None
    assert report.cause.code == cause
    assert not [c["code"] for c in report.json()["checks"] if c["state"] == "failed"]
