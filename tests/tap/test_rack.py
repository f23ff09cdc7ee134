import pytest
import torch
from torch import nn

from sonde.tap import Tap
from sonde.tap._rack import Rack
from sonde.tap._slab import SLAB_BYTES, Slab

FLOAT = torch.float32


def asked(rack: Rack, n: int, dim: int) -> torch.Tensor:
    place = rack.place(n, dim, FLOAT)
    assert place is not None
    return place


def test_places_of_one_forward_lie_in_one_piece_and_are_handed_out_once():
    rack = Rack(Slab())
    for forward in range(3):
        rack.begin()
        places = [asked(rack, 2, 5) for _ in range(4)]
        for i, place in enumerate(places):
            place.fill_(i)
        assert [float(p.mean()) for p in places] == [0.0, 1.0, 2.0, 3.0]
        sizes = {p.untyped_storage().nbytes() for p in places}
        assert sizes == ({40} if forward == 0 else {160})


def test_forwards_share_nothing_though_one_asked_for_less():
    rack = Rack(Slab())
    seen = []
    for n_sites in (3, 3, 1, 2, 5):
        rack.begin()
        seen.append({asked(rack, 1, 4).untyped_storage().data_ptr() for _ in range(n_sites)})
    assert sum(map(len, seen)) == len(set.union(*seen))


def test_what_is_too_large_or_empty_gets_no_place():
    rack = Rack(Slab())
    for _ in range(2):
        rack.begin()
        assert rack.place(1, SLAB_BYTES, FLOAT) is None
        assert rack.place(0, 4, FLOAT) is None
        places = [asked(rack, 1, SLAB_BYTES // 8) for _ in range(3)]
        assert len({place.data_ptr() for place in places}) == 3


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
