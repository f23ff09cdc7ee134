"""Rows on their way to disk: the same batch on the host, pinned copies from a GPU."""

import pytest
import torch

from sonde.core.stream import Stream
from sonde.store import Store, write_store
from sonde.store.writing import to_host


def test_rows_of_the_host_are_not_copied():
    batch = next(iter(Stream.of(torch.randn(4, 3))))
    coming = to_host(batch)
    assert coming.arrived() is batch
    assert not coming.copied


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature")
@pytest.mark.truth("the rows that were stored, bit for bit")
def test_rows_of_a_gpu_are_stored_bit_for_bit_without_a_wait(tmp_path):
    rows = {d: torch.randn(1000, 64, device="cuda").to(d) for d in (torch.float32, torch.bfloat16)}
    stream = Stream.of({str(d).removeprefix("torch."): x for d, x in rows.items()})
    batch = next(iter(stream))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        coming = to_host(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(x.is_pinned() for x in coming.arrived().rows.values())
    store = Store(write_store(stream, tmp_path / "acts"))
    for dtype, x in rows.items():
        key = str(dtype).removeprefix("torch.")
        found = torch.cat([b.rows[key] for b in store])
        assert torch.equal(found, x.cpu())
