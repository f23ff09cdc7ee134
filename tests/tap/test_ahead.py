"""Small batches are read several at a time: same rows, a clean model at every batch, few ahead."""

import pytest
import torch
from torch import nn

from models import bert
from sonde.core.inputs import Model
from sonde.tap import live_stream
from sonde.tap.streams import live
from tap_inputs import Arrays, texts
from tap_snapshot import assert_unchanged, snapshot

NAMES = ("tokens", "last")


class Counted(Arrays):
    """Arrays that count the batches that were fetched."""

    fetched = 0

    def batches(self, start, stop):
        for batch in super().batches(start, stop):
            self.fetched += 1
            yield batch


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))


def rows(n: int, width: int = 8) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.truth("the same stream read one batch at a time")
def test_rows_are_those_of_batches_read_one_by_one(monkeypatch):
    inputs = texts([5, 3, 9, 3, 7, 4, 4, 6], batch_size=1)
    stream = live_stream(Model(bert(), task="encoder"), inputs, further=("tokens", "last"))
    together = list(stream.batches(0, 8))
    monkeypatch.setattr(live, "MOST_AHEAD", 1)
    for one, other in zip(together, stream.batches(0, 8), strict=True):
        assert one.ids == other.ids
        for key, x in one.rows.items():
            assert torch.equal(x, other.rows[key])
            assert torch.equal(one.position[key], other.position[key])


@pytest.mark.truth("the same kinds of rows, each read by a stream of its own")
@pytest.mark.parametrize(
    ("lengths", "batch_size", "dtype"),
    [
        ([6] * 7, 1, torch.float32),
        ([6] * 7, 3, torch.bfloat16),
        ([5, 3, 9, 3, 7, 4, 4], 1, torch.bfloat16),
        ([5, 3, 9, 3, 7, 4, 4], 3, torch.float32),
    ],
)
def test_means_beside_tokens_have_the_bits_of_means_alone(lengths, dtype, batch_size):
    model = Model(bert().to(dtype), task="encoder")
    both = live_stream(model, texts(lengths, batch_size=batch_size), reducer="mean", further=NAMES)
    for name in ("mean", *NAMES):
        alone = live_stream(model, texts(lengths, batch_size=batch_size), reducer=name)
        pairs = zip(both.batches(0, 7), alone.batches(0, 7), strict=True)
        for one, other in pairs:
            for key, x in other.rows.items():
                found = key if name == "mean" else f"{key}|{name}"
                assert torch.equal(one.rows[found], x)
                assert torch.equal(one.example[found], other.example[key])
                assert torch.equal(one.position[found], other.position[key])


class Poisoned(nn.Module):
    """An embedding whose padding is NaN, as some kernels leave it."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.last = nn.Embedding(100, 4), nn.Identity()

    def forward(self, input_ids, attention_mask):
        x = self.block(input_ids)
        return self.last(x.masked_fill(attention_mask[..., None] == 0, float("nan")))


@pytest.mark.truth("the mean of the embeddings of the real tokens")
def test_nan_in_padding_does_not_reach_a_mean_that_is_taken_later():
    torch.manual_seed(0)
    module = Poisoned()
    inputs = texts([5, 3, 9, 3, 7, 4], batch_size=2)
    model, how = Model(module, task="encoder"), {"reducer": "mean", "keep_special": True}
    stream = live_stream(model, inputs, "last", further=("tokens",), **how)
    for batch, raw in zip(stream.batches(0, 6), inputs.batches(0, 6), strict=True):
        weights = module.block.weight
        ids, mask = raw.kwargs["input_ids"], raw.kwargs["attention_mask"].bool()
        each = [weights[i[m]].mean(0) for i, m in zip(ids, mask, strict=True)]
        torch.testing.assert_close(batch.rows["last:out"], torch.stack(each).detach())


def test_the_model_is_as_it_was_whenever_a_batch_is_handed_out():
    module = net().train()
    before = snapshot(module)
    for _ in live_stream(Model(module), Arrays(rows(12), batch_size=1)).batches(0, 12):
        assert_unchanged(before, module)


def test_hooks_are_put_on_once_for_many_small_batches(monkeypatch):
    module, puts = net(), []
    put = module[0].register_forward_hook
    monkeypatch.setattr(
        module[0], "register_forward_hook", lambda *a, **k: (puts.append(1), put(*a, **k))[1]
    )
    stream = live_stream(Model(module), Arrays(rows(33), batch_size=1), "0")
    _ = stream.schema
    puts.clear()
    assert len(list(stream.batches(0, 33))) == 33
    assert len(puts) == 2  # the first batch tells how small they are


@pytest.mark.parametrize(("width", "ahead"), [(8, 32), (2**18, 3), (2**20, 1)])
def test_no_more_is_fetched_than_is_small_together(width, ahead):
    torch.manual_seed(0)
    n = ahead + 4
    inputs = Counted(rows(n, width), batch_size=1)
    batches = live_stream(Model(nn.Linear(width, 2)), inputs).batches(0, n)
    next(batches)
    inputs.fetched = 0
    next(batches)
    assert inputs.fetched == ahead  # rows take a little of the 4 MiB


def test_what_a_broken_input_raises_comes_through():
    class Broken(Arrays):
        def batches(self, start, stop):
            yield from super().batches(start, stop)
            raise OSError("disk gone")

    module = net()
    before = snapshot(module)
    with pytest.raises(OSError, match="disk gone"):
        list(live_stream(Model(module), Broken(rows(5), batch_size=1)).batches(0, 5))
    assert_unchanged(before, module)
