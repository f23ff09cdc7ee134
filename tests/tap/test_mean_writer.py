import pytest
import torch
from torch import nn

from narrow import present
from sonde.core.errors import ShapeError, SiteError
from sonde.tap import Tap
from sonde.tap.rows.mean_writer import MeanWriter
from sonde.tap.rows.means import PickedMean, WholeMean
from sonde.tap.rows.row_memory import PIECE_BYTES, RowMemory


def taken(writer: MeanWriter, x: torch.Tensor) -> torch.Tensor:
    key = x.shape, x.dtype
    rows = writer.again(key, x)
    if rows is None:
        rows = writer.first(key, x, WholeMean(len(x), x.shape[1], x.dtype, x.device))
    assert rows is not None
    return rows


def test_means_of_one_forward_lie_in_one_piece_and_each_in_its_own_place():
    writer = MeanWriter(RowMemory())
    for forward in range(3):
        writer.begin()
        rows = [taken(writer, torch.full((2, 3, 5), float(i))) for i in range(4)]
        assert [float(r.mean()) for r in rows] == pytest.approx([0.0, 1.0, 2.0, 3.0])
        sizes = {r.untyped_storage().nbytes() for r in rows}
        assert sizes == ({40} if forward == 0 else {160})


def test_as_many_places_are_made_as_texts_of_another_length_took():
    writer = MeanWriter(RowMemory())
    for length in (7, 3, 9):
        writer.begin()
        rows = [taken(writer, torch.ones(2, length, 5)) for _ in range(4)]
        sizes = {r.untyped_storage().nbytes() for r in rows}
    assert sizes == {160}


def test_forwards_share_nothing_though_one_asked_for_less():
    writer = MeanWriter(RowMemory())
    seen = []
    for n_sites in (3, 3, 1, 2, 5):
        writer.begin()
        rows = [taken(writer, torch.ones(1, 2, 4)) for _ in range(n_sites)]
        seen.append({r.untyped_storage().data_ptr() for r in rows})
    assert sum(map(len, seen)) == len(set.union(*seen))


def test_what_is_too_large_or_empty_is_left_to_others():
    writer = MeanWriter(RowMemory())
    for _ in range(2):
        writer.begin()
        mean = WholeMean(1, 1, torch.float32, torch.device("cpu"))
        for shape in ((1, 1, PIECE_BYTES), (1, 1, 0)):
            assert writer.first(shape, torch.ones(shape), mean) is None
            assert writer.again(shape, torch.ones(shape)) is None
        rows = [taken(writer, torch.ones(1, 1, PIECE_BYTES // 8)) for _ in range(3)]
        assert len({r.data_ptr() for r in rows}) == 3


def test_what_does_not_count_is_not_looked_at_at_any_site():
    writer, kept = MeanWriter(RowMemory()), torch.tensor([[True, True, False]])
    mean = PickedMean(kept, torch.float32, torch.device("cpu"))
    x = torch.tensor([[[1.0], [2.0], [torch.nan]]])
    assert writer.first("here", x, mean) == 1.5
    writer.begin()
    writer.first("here", x, mean)
    assert writer.again("here", x) is None  # one site ran in the forward before
    writer.begin()
    for _ in range(2):
        writer.first("here", x, mean)
    writer.begin()
    writer.first("here", x, mean)
    assert writer.again("here", 2 * x) == 3.0


@pytest.mark.truth("the mean of plain hooks")
def test_means_of_many_forwards_stay_as_they_were():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 4))
    net.double()
    inputs = [torch.randn(n, 7, 3, dtype=torch.float64) for n in (2, 2, 5, 2, 1)]
    kept, want = [], []
    with Tap(net, ["0", "1", "2"], "mean") as tap:
        for x in inputs:
            net(x)
            kept.append(tap.rows)
    net[0].register_forward_hook(lambda m, a, out: want.append(out.mean(1)))
    net[2].register_forward_hook(lambda m, a, out: want.append(out.mean(1)))
    for x in inputs:
        net(x)
    found = [rows[f"{i}:out"] for rows in kept for i in (0, 2)]
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(found, want, strict=True))


def test_a_forward_that_counts_like_the_one_before_gets_as_many_new_places():
    writer = MeanWriter(RowMemory())
    kept = []
    for n_sites in (3, 3, 1, 2, 2):
        writer.again_as_before()
        rows = [taken(writer, torch.full((1, 2, 4), float(i))) for i in range(n_sites)]
        assert [float(r.mean()) for r in rows] == pytest.approx([*range(n_sites)])
        kept.append({r.untyped_storage().data_ptr() for r in rows})
    assert sum(map(len, kept)) == len(set.union(*kept))
    assert [len(storages) for storages in kept] == [3, 1, 1, 2, 1]
    writer.again_as_before()
    writer.again_as_before()
    assert writer.is_empty


class Halves(nn.Module):
    """Keeps the second of its blocks from half of the examples, when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.cut = nn.Linear(3, 3), nn.Linear(3, 3), False

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        x = self.a(x)
        return self.b(x[: len(x) // 2] if self.cut else x)


@pytest.mark.truth("a mean by hand over the tokens that count")
def test_what_counts_is_asked_of_every_forward():
    generator = torch.Generator().manual_seed(0)
    net, whole = Halves(), torch.ones(4, 5)
    padded = whole.clone()
    padded[1, 3:] = 0
    short = torch.ones(4, 5)
    with Tap(net, ["a", "b"], "mean") as tap:
        for mask in (whole, whole, whole, padded, padded, whole, None, None, None, whole, short):
            x = torch.randn(4, 5, 3, generator=generator)
            if mask is short:
                present(mask)[2, 0] = 0  # in place, between two forwards of one tensor
            first = nn.functional.linear(x, net.a.weight, net.a.bias).detach()
            outputs = [first, nn.functional.linear(first, net.b.weight, net.b.bias).detach()]
            tap.run(x, attention_mask=mask)
            weights = whole if mask is None else mask
            weights = weights / weights.sum(1, keepdim=True)
            for rows, output in zip(tap.rows.values(), outputs, strict=True):
                torch.testing.assert_close(rows, (weights[:, :, None] * output).sum(1))


def test_a_mask_of_another_length_and_another_number_of_examples_are_still_refused():
    net, x = Halves(), torch.randn(4, 5, 3)
    with Tap(net, ["a", "b"], "mean") as tap:
        for _ in range(3):
            tap.run(x, attention_mask=torch.ones(4, 5))
        with pytest.raises(SiteError, match="expected 7 tokens"):
            tap.run(x, attention_mask=torch.ones(4, 7))
        for _ in range(3):
            tap.run(x)
        net.cut = True
        with pytest.raises(ShapeError, match="expected 2 examples, got 4"):
            tap.run(x)
