import pytest
import torch

from sonde.tap._slab import SLAB_BYTES, Slab


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_a_kept_tensor_is_a_copy_of_its_own(dtype):
    slab, x = Slab(), torch.arange(24).reshape(4, 6).to(dtype)
    first, second = slab.keep(x), slab.keep(x.T)
    x.zero_()
    want = torch.arange(24).reshape(4, 6).to(dtype)
    assert torch.equal(first, want)
    assert torch.equal(second, want.T)
    first.zero_()
    assert torch.equal(second, want.T)
    assert second.is_contiguous()


def test_many_small_tensors_share_a_piece_and_outlive_the_slab():
    slab = Slab()
    kept = [slab.keep(torch.full((100,), float(i))) for i in range(2000)]
    pieces = {x.untyped_storage().data_ptr() for x in kept}
    assert len(pieces) == -(-2000 * 448 // (SLAB_BYTES // 448 * 448))
    del slab
    assert all(bool((x == i).all()) for i, x in enumerate(kept))


def test_large_and_empty_tensors_are_handed_back():
    slab = Slab()
    for x in (torch.zeros(0, 5), torch.zeros(SLAB_BYTES)):
        assert slab.keep(x) is x
