"""Rows as batches for training: each once, over ranks and workers, and resumed in the middle."""

import os
import pickle
import sys

import numpy as np
import pytest
import torch
from torch.multiprocessing.spawn import spawn
from torch.utils.data import DataLoader

from object_storage import require_packages
from run_case import rows
from sonde.core.errors import InputError, StateError
from sonde.core.stream import Stream
from sonde.store import Store, write_store

N, DIM = 203, 4


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows") / "a"
    return Store(write_store(Stream.of(rows(N, DIM)), folder, unit_size=20))


def numbers(batches) -> list[int]:
    return [row for batch in batches for row in batch["row"].tolist()]


@pytest.mark.parametrize("shuffle", [0, 7, 64, 1000])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 10, 100])
def test_each_row_comes_once_in_one_rank(store, shuffle, world_size, batch_size):
    whole = rows(N, DIM)
    of_rank, lengths = [], []
    for rank in range(world_size):
        batches = store.torch(
            batch_size=batch_size, shuffle=shuffle, seed=3, rank=rank, world_size=world_size
        )
        held = list(batches)
        lengths.append(len(held))
        assert len(batches) == len(held)
        assert all(torch.equal(b["x"], whole[b["row"]]) for b in held)
        of_rank += numbers(held)
    assert sorted(of_rank) == list(range(N))
    assert len(set(lengths)) == 1, "a rank that has fewer batches would stop the others"
    if world_size == 1:
        assert (of_rank == sorted(of_rank)) == (shuffle == 0)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_see_the_batches_of_one_process(store, world_size):
    one = list(store.torch(batch_size=12, shuffle=50, seed=1))
    of_ranks = [
        store.torch(batch_size=12 // world_size, shuffle=50, seed=1, rank=r, world_size=world_size)
        for r in range(world_size)
    ]
    for whole, *parts in zip(one, *of_ranks, strict=True):
        assert numbers([whole]) == numbers(parts)


def test_epochs_and_seeds_have_orders_of_their_own(store):
    batches = store.torch(batch_size=10, shuffle=50, seed=1)
    first = numbers(batches)
    assert numbers(batches) == first, "the order is that of the epoch"
    batches.set_epoch(1)
    second = numbers(batches)
    assert first != second
    assert numbers(store.torch(batch_size=10, shuffle=50, seed=2)) != first
    places = [first.index(row) for row in range(50)]
    assert max(places) - min(places) == 49, "a window is read together"


@pytest.mark.parametrize("n", [0, 1, 7, 20])
def test_an_iteration_goes_on_from_its_state(store, n):
    batches = store.torch(batch_size=10, shuffle=50, seed=1)
    batches.set_epoch(4)
    whole = numbers(batches)
    walk = iter(batches)
    seen = numbers([next(walk) for _ in range(n)])
    state = pickle.loads(pickle.dumps(batches.state_dict()))
    again = store.torch(batch_size=10, shuffle=50, seed=1)
    again.load_state_dict(state)
    assert seen + numbers(again) == whole
    assert numbers(again) == whole, "the iteration after it begins anew"
    ranks = store.torch(batch_size=5, shuffle=50, seed=1, rank=0, world_size=2)
    ranks.load_state_dict(state)
    with pytest.raises(StateError, match="expected seed=2, got 1"):
        store.torch(batch_size=10, shuffle=50, seed=2).load_state_dict(state)


def test_arguments_out_of_range_are_refused(store):
    for arguments, message in (
        ({"batch_size": 0}, "batch_size of at least 1"),
        ({"shuffle": -1}, "shuffle of at least 0"),
        ({"rank": 2, "world_size": 2}, "a rank below world_size"),
        ({"rank": 0, "world_size": 300}, "one row for each of 300 processes"),
    ):
        with pytest.raises(InputError, match=message):
            store.torch(**arguments)


@pytest.mark.slow
@pytest.mark.parametrize("n_workers", [1, 2])
def test_workers_hand_out_the_order_of_one_process(store, n_workers):
    batches = store.torch(batch_size=10, shuffle=50, seed=1)
    expected = numbers(batches)
    told = {"batch_size": None, "num_workers": n_workers, "multiprocessing_context": "fork"}
    assert numbers(DataLoader(batches, **told)) == expected
    batches.load_state_dict({"epoch": 0, "batches": 5})
    assert numbers(DataLoader(batches, **told)) == expected[50:]


class Coder(torch.nn.Module):
    """A small sparse autoencoder."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.up = torch.nn.Linear(DIM, 9)
        self.down = torch.nn.Linear(9, DIM)
        for weights in self.parameters():
            weights.data = torch.randn(weights.shape, generator=generator) * 0.3

    def forward(self, x):
        z = torch.relu(self.up(x))
        return ((self.down(z) - x) ** 2).mean() + 0.01 * z.abs().mean()


def train(coder, batches) -> list[float]:
    optimiser = torch.optim.SGD(coder.parameters(), lr=0.02)
    losses = []
    for epoch in range(3):
        batches.set_epoch(epoch)
        for batch in DataLoader(batches, batch_size=None):
            optimiser.zero_grad()
            loss = coder(batch["x"])
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
    return losses


def in_rank(rank: int, folder: str, address: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    batches = Store(folder).torch(batch_size=20, shuffle=60, seed=5)
    assert (batches.rank, batches.world_size) == (rank, 2)
    losses = train(torch.nn.parallel.DistributedDataParallel(Coder()), batches)
    gathered = [None, None]
    torch.distributed.all_gather_object(gathered, losses)
    if rank == 0:
        torch.save(gathered, f"{folder}.losses")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="gloo by a file")
@pytest.mark.truth("one process with the doubled batch")
def test_two_ranks_train_as_one_process_with_the_doubled_batch(tmp_path):
    folder = write_store(Stream.of(rows(240, DIM)), tmp_path / "a", unit_size=20)
    one = train(Coder(), Store(folder).torch(batch_size=40, shuffle=60, seed=5))
    address = f"file://{tmp_path}/meeting"
    spawn(in_rank, (os.fspath(folder), address), nprocs=2)
    first, second = torch.load(f"{folder}.losses")
    assert first != second
    torch.testing.assert_close((np.add(first, second) / 2).tolist(), one, rtol=1e-5, atol=1e-6)
    assert one[-1] < 0.7 * one[0]


@pytest.mark.slow
def test_windows_of_a_bucket_are_read_once(monkeypatch):
    require_packages()
    from object_storage import BUCKET, proxied, s3_server, settings
    from sonde.files.services import service_of

    with s3_server() as server, proxied(server) as proxy:
        for name, value in settings(proxy.address).items():
            monkeypatch.setenv(name, value)
        service_of.cache_clear()
        x = rows(4000, 64)
        store = Store(write_store(Stream.of(x), f"s3://{BUCKET}/a", unit_size=500))
        batches = store.torch(batch_size=100, shuffle=800, seed=1)
        proxy.reset()
        held = list(batches)
        assert sorted(numbers(held)) == list(range(4000))
        assert all(torch.equal(b["x"], x[b["row"]]) for b in held)
        assert proxy.n_bytes_sent < 1.5 * x.nbytes
    service_of.cache_clear()
