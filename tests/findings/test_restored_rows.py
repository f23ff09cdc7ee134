"""Rows in another form than the others, on nets that are right about all other rows."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sonde
from scan._zoo import quiet

N = 240
SOME = torch.arange(N) % 3 == 1
Rows = dict[str, Tensor]


class Two(nn.Module):
    """Classes of two tables."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(3)
        self.left, self.right = nn.Linear(5, 5), nn.Linear(4, 5)
        for one in (self.left, self.right):
            nn.init.normal_(one.weight, generator=g)
            nn.init.zeros_(one.bias)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.left(left) + self.right(right)


class Edges(nn.Module):
    """A class for each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(1, 2, 1)
        self.mix.weight = nn.Parameter(torch.tensor([[[[-9.0]]], [[[9.0]]]]))
        self.mix.bias = nn.Parameter(torch.tensor([4.5, -4.5]))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.mix(pixels)


class Sum(nn.Module):
    """A number from two tables."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(7, 1)
        nn.init.normal_(self.head.weight, generator=torch.Generator().manual_seed(1))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head(torch.cat([left, right], 1))


def drawn(net: nn.Module, **shapes: tuple[int, ...]) -> tuple[Rows, Tensor]:
    g = torch.Generator().manual_seed(5)
    rows = {name: torch.rand((N, *shape), generator=g) * 2 - 0.6 for name, shape in shapes.items()}
    with torch.no_grad():
        return rows, net(**rows)


def scanned(net: nn.Module, rows: Rows, **truth: Tensor) -> list[Any]:
    items = [{"id": str(i), **{k: v[i] for k, v in rows.items()},
              **{k: v[i] for k, v in truth.items()}} for i in range(N)]  # fmt: skip
    report = sonde.scan(net.eval(), items, settings=quiet(only=("SND015",)))
    assert report.json()["verdict"]["failed"] == 0
    return [f for f in report.findings if f["code"] == "SND015"]


def on_some(x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.where(SOME.reshape(-1, *[1] * (x.ndim - 1)), change(x), x)


def negated(x: Tensor) -> Tensor:
    return torch.cat([x[:, :2], -x[:, 2:3], x[:, 3:]], 1)


@pytest.mark.slow
@pytest.mark.truth("a column of a third of the rows has the other sign")
def test_rows_whose_column_has_another_sign_are_named_beside_a_second_table() -> None:
    net = Two()
    rows, logits = drawn(net, left=(5,), right=(4,))
    rows["right"] = on_some(rows["right"], negated)
    found = scanned(net, rows, label=logits.argmax(1))
    assert [f["location"]["tensors"] for f in found] == [["right"]]


@pytest.mark.slow
@pytest.mark.truth("pictures of a third of the rows are a tenth as bright, two hold NaN")
def test_rows_with_nan_take_nothing_from_the_others() -> None:
    net = Edges()
    rows, logits = drawn(net, pixels=(1, 6, 5))
    rows["pixels"] = on_some(rows["pixels"], lambda x: x / 10)
    rows["pixels"][6, 0, 1, 1] = rows["pixels"][4, 0, 2, 2] = torch.nan
    (found,) = scanned(net, rows, label=logits.argmax(1))
    assert (found["level"], found["location"]["tensors"]) == ("error", ["pixels"])


@pytest.mark.slow
@pytest.mark.truth("pictures of a third of the rows are a tenth as bright")
def test_pictures_of_another_scale_are_named_by_wrong_pixels() -> None:
    net = Edges()
    rows, logits = drawn(net, pixels=(1, 6, 5))
    rows["pixels"] = on_some(rows["pixels"], lambda x: x / 10)
    (found,) = scanned(net, rows, label=logits.argmax(1))
    assert found["location"]["tensors"] == ["pixels"]
    assert "multiplied by" in found["sentence"]


@pytest.mark.slow
@pytest.mark.truth("a column of a third of the rows is eight times as large")
def test_numbers_of_rows_in_another_unit_are_named() -> None:
    net = Sum()
    rows, numbers = drawn(net, left=(3,), right=(4,))
    rows["left"] = on_some(
        rows["left"], lambda x: torch.cat([x[:, :1], 8 * x[:, 1:2], x[:, 2:]], 1)
    )
    (found,) = scanned(net, rows, label=numbers[:, 0])
    assert (found["location"]["tensors"], found["location"]["columns"]) == (["left"], [1])
    listed = torch.isin(torch.arange(N), torch.tensor([int(i) for i in found["rows"]]))
    assert not bool((listed & ~SOME).any())
    assert int(listed.sum()) > 0.5 * int(SOME.sum())


@pytest.mark.slow
@pytest.mark.truth("targets of a third of the rows are wrong: no inputs are")
@pytest.mark.parametrize("fault", ["drawn anew", "one class"])
def test_wrong_labels_are_no_other_form(fault: str) -> None:
    net = Two()
    rows, logits = drawn(net, left=(5,), right=(4,))
    label = logits.argmax(1)
    other = {
        "drawn anew": torch.randint(0, 5, (N,), generator=torch.Generator().manual_seed(9)),
        "one class": torch.zeros_like(label),
    }[fault]
    assert not scanned(net, rows, label=torch.where(SOME, other, label))


@pytest.mark.slow
@pytest.mark.truth("a number is added to the targets of a third of the rows")
def test_targets_with_an_offset_are_no_other_form() -> None:
    net = Sum()
    rows, numbers = drawn(net, left=(3,), right=(4,))
    assert not scanned(net, rows, label=numbers[:, 0] + 3 * SOME.double())


@pytest.mark.slow
@pytest.mark.truth("planted: skewed targets, all in another unit; inputs are right")
@pytest.mark.parametrize("unit", [lambda y: y / 10, torch.sqrt, lambda y: y.log() + 1])
def test_skewed_targets_in_another_unit_are_no_form_of_some_rows(unit: Callable) -> None:
    """Rows with small answers seem right beside those of large ones, which any form shrinks."""
    draw = torch.Generator().manual_seed(5)
    x = torch.randn(500, 4, generator=draw)
    weight = torch.tensor([0.8, -0.5, 0.3, 0.2])

    class Price(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 1)
            self.inner.weight.data, self.inner.bias.data = weight[None].clone(), torch.tensor([8.0])

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).exp()

    y = (x @ weight + 8 + 0.1 * torch.randn(500, generator=draw)).exp()
    report = sonde.scan(Price().eval(), (x, unit(y)), progress=False)
    assert "SND015" not in {f.code for f in report.findings}
    assert report.json()["cause"] in ("SND037", None)


@pytest.mark.slow
@pytest.mark.parametrize("is_chance", [True, False])
def test_wrong_rows_are_searched_unless_right_ones_are_chance(
    is_chance: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[int] = []

    def search(_: Any, rows: Any) -> str:
        searched.append(len(rows.wrong))
        return "not searched"

    monkeypatch.setattr("sonde.findings.evidence.trials.restored_rows._restored", search)
    net = Two()
    rows, logits = drawn(net, left=(5,), right=(4,))
    lot = torch.randint(0, 5, (N,), generator=torch.Generator().manual_seed(6))
    scanned(net, rows, label=lot if is_chance else torch.where(SOME, lot, logits.argmax(1)))
    assert bool(searched) != is_chance
