import pytest
import torch
from torch import nn

import sonde
from sonde.core.inputs import InputBatch
from sonde.core.site import Reducer
from sonde.tap import Tap
from sonde.tap.model.axes import Axes
from sonde.tap.rows.frame import Frame
from sonde.tap.rows.mean_writer import MeanWriter
from sonde.tap.rows.means import BLOCK, CACHED_BYTES, PickedMean, WholeMean
from sonde.tap.rows.reduce import Reduction, mean_of_each
from sonde.tap.rows.row_memory import RowMemory

CPU, LAST = torch.device("cpu"), Reducer("mean", axis=2)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SIZES = [(2, 12), (3, BLOCK), (2, 97), (2, 8192), (1, 1_000_003), (1, 1_000_000)]


def drawn(n: int, length: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(length)
    return (100 + torch.randn(n, length, 4, generator=generator)).to(dtype)


def off(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the largest error beyond that of rounding the exact mean to the type of the rows."""
    rounded = exact.to(found.dtype)
    return float((found.double() - rounded.double()).abs().max())


def two_units(dtype: torch.dtype) -> float:
    """Return twice the spacing of the numbers from 64 to 128."""
    return 128 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "length"), SIZES)
@pytest.mark.truth("the mean in float64; torch.mean in float32 as what to beat")
def test_a_mean_is_as_exact_as_that_of_torch(n, length, dtype):
    x, net = drawn(n, length, dtype), nn.Identity()
    with Tap(net, [""], LAST) as tap:
        net(x)
    exact = x.double().mean(1)
    theirs = x.float().mean(1).to(dtype)
    assert off(tap.rows[":out"], exact) <= max(off(theirs, exact), two_units(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "length"), SIZES)
@pytest.mark.truth("the mean in float64 over the tokens that count")
def test_so_is_one_that_leaves_tokens_out_and_never_looks_at_them(n, length, dtype):
    x, kept = drawn(n, length, dtype), torch.ones(n, length, dtype=torch.bool)
    kept[:, ::7], kept[-1, length // 2 :] = False, False
    kept[:, 1] = True
    parts = [one[own] for one, own in zip(x, kept, strict=True)]
    exact = torch.stack([part.double().mean(0) for part in parts])
    theirs = torch.stack([part.float().mean(0) for part in parts]).to(dtype)
    net = Looks()
    with Tap(net, ["inner"], LAST) as tap:
        net(x.masked_fill(~kept[..., None], torch.nan), kept)
    assert off(tap.rows["inner:out"], exact) <= max(off(theirs, exact), two_units(dtype))


class Looks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Identity()

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


@pytest.mark.parametrize("length", [64, 1024, 2048])
@pytest.mark.truth("the mean in float64; torch.mean in float32 as what to beat")
def test_so_is_one_of_more_than_a_cache_holds(length):
    n = 1 + CACHED_BYTES // (length * 4 * 4)
    x = drawn(n, length, torch.float32)
    exact, theirs = x.double().mean(1), x.mean(1)
    found = WholeMean(n, length, x.dtype, CPU)(x)
    assert off(found, exact) <= max(off(theirs, exact), two_units(x.dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.truth("the mean in float64")
def test_the_mean_of_a_long_step_too(dtype):
    x = drawn(1, 40_000, dtype)[0]
    row = (torch.arange(len(x)) > 10_000).long()
    found = mean_of_each(x, torch.arange(len(x)), row)
    exact = torch.stack([x[row == i].double().mean(0) for i in (0, 1)])
    assert off(found, exact) <= two_units(dtype)


@pytest.mark.truth("torch.mean in float64")
def test_views_of_all_kinds_and_autocast_make_no_difference():
    x = drawn(3, 96, torch.float32)
    exact = x.double().mean(1).float()
    whole = WholeMean(3, 96, torch.float32, CPU)
    turned = x.transpose(0, 1).contiguous().transpose(0, 1)
    picked = PickedMean(torch.ones(3, 96, dtype=torch.bool), torch.float32, CPU)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for mean in (whole, picked):
            for one in (x, turned, x[:, :, :]):
                torch.testing.assert_close(mean(one), exact, rtol=3e-7, atol=0)


@pytest.mark.truth("the mean of each site alone")
def test_means_of_sites_that_wait_are_those_of_each():
    reduction = Reduction(Reducer("mean"), Axes(("row", "pos", "dim")))
    copies = [drawn(2, 9, torch.float32) + i for i in range(3)]
    for masked in (False, True):
        mask = torch.ones(2, 9, dtype=torch.bool)
        mask[1, 4:] = not masked
        frame = Frame(batch_of(2, mask), CPU)
        rows, _ = reduction.stacked(copies, frame)
        alone = [reduction.token_mean(x, frame, MeanWriter(RowMemory())) for x in copies]
        assert torch.equal(torch.stack(list(rows)), torch.stack(alone))


def batch_of(n: int, mask: torch.Tensor) -> InputBatch:
    index, keys = torch.arange(n), [b""] * n
    return InputBatch((), {}, ["a"] * n, keys, index, index, keys, index, mask=mask)


@pytest.mark.truth("torch.mean of the tensor with its axes put in order")
@pytest.mark.parametrize("batch_size", [3, 5])
def test_the_mean_of_features_that_stand_before_the_examples(batch_size):
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv1d(4, 5, 1), nn.Identity()

        def forward(self, x):
            return self.last(self.first(x).transpose(0, 1)).sum(2).T

    net = Turned().eval()
    x = torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(0))
    how = Reducer("mean", axis=0)
    stream = sonde.read(net, list(x), sites="last", reducer=how, batch_size=batch_size)
    rows = torch.cat([batch.rows["last:out"] for batch in stream])
    assert torch.allclose(rows, net.first(x).mean(2), atol=1e-6)
