import io
import os

import pytest
import torch

from sonde.tap import Tap
from sonde.tap.rows.row_memory import PIECE_BYTES, RowMemory


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_a_kept_tensor_is_a_copy_of_its_own(dtype):
    memory, x = RowMemory(), torch.arange(24).reshape(4, 6).to(dtype)
    first, second = memory.keep(x), memory.keep(x.T)
    x.zero_()
    want = torch.arange(24).reshape(4, 6).to(dtype)
    assert torch.equal(first, want)
    assert torch.equal(second, want.T)
    first.zero_()
    assert torch.equal(second, want.T)
    assert second.is_contiguous()


def test_many_small_tensors_share_a_piece_and_outlive_the_slab():
    memory = RowMemory()
    kept = [memory.keep(torch.full((100,), float(i))) for i in range(2000)]
    starts = torch.tensor([x.data_ptr() for x in kept])
    n_pieces = 1 + int((starts.diff() != 448).sum())
    assert n_pieces == -(-2000 * 448 // (PIECE_BYTES // 448 * 448))
    del memory
    assert all(bool((x == i).all()) for i, x in enumerate(kept))


@pytest.mark.parametrize("dtype", [torch.bool, torch.float16, torch.complex64, torch.float8_e4m3fn])
def test_what_is_saved_holds_nothing_of_other_rows(dtype):
    memory = RowMemory()
    memory.keep(torch.full((40,), 3.0))
    kept = memory.keep(torch.ones(5).to(dtype))
    file = io.BytesIO()
    torch.save(kept, file)
    assert kept.untyped_storage().nbytes() == kept.nbytes
    assert len(file.getvalue()) < PIECE_BYTES // 10
    found = torch.load(io.BytesIO(file.getvalue()))
    assert torch.equal(found.to(torch.complex64), kept.to(torch.complex64))


def test_large_and_empty_tensors_are_handed_back():
    memory = RowMemory()
    for x in (torch.zeros(0, 5), torch.zeros(PIECE_BYTES)):
        assert memory.keep(x) is x


def test_inference_mode_leaves_nothing_that_others_may_not_write():
    memory = RowMemory()
    with torch.inference_mode():
        memory.keep(torch.ones(3))
        place = memory.place((2, 3), torch.float32)
    assert not place.is_inference()
    assert torch.equal(memory.keep(torch.full((3,), 2.0)), torch.full((3,), 2.0))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded", "ignore:lance is not fork-safe")
def test_a_forked_child_writes_into_pages_of_its_own():
    kept = RowMemory().keep(torch.ones(3))
    if (child := os.fork()) == 0:
        try:
            kept.fill_(-7.0)
            os._exit(0 if kept[0] == -7.0 else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert kept.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.truth("autograd")
def test_rows_of_two_forwards_go_through_one_backward():
    torch.manual_seed(0)
    net, probe = torch.nn.Sequential(torch.nn.Linear(4, 8)), torch.nn.Linear(8, 1)
    x, y = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    with Tap(net, ["0"], "mean") as tap:
        tap.run(x)
        a = tap.rows["0:out"]
        loss = probe(a).sum()
        tap.run(y)
        b = tap.rows["0:out"]
    (loss - probe(b).sum()).backward()
    want = (net(x).mean(1) - net(y).mean(1)).sum(0)
    assert probe.weight.grad is not None
    torch.testing.assert_close(probe.weight.grad[0], want)
