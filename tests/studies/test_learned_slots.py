"""Clips by count, slots matched by trying all, tracks without noise, and a mean along time."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from sonde_studies._learned_slots import (
    CELLS,
    DIM,
    OBJECTS,
    PIXELS,
    SlotNet,
    clips_of_cells,
    learned_slots,
    matched,
    slots_of,
)
from sonde_studies._refined_tracks import Refiner, linked, tracks_of
from sonde_studies.parts.tracks import followed, optimal


def images(n=20):
    draw = torch.Generator().manual_seed(0)
    return torch.rand(n, PIXELS, generator=draw), torch.arange(n) % 10


@pytest.mark.truth("frames counted one by one")
def test_each_object_is_hidden_for_so_many_frames():
    x, label = images()
    clips = clips_of_cells(x, label, 15, frames=9, hidden=3, noise=0.0, seed=1)
    assert ((clips.cell < 0).sum(1) == 3).all()
    for clip, frame in itertools.product(range(15), range(9)):
        cells = [c for c in clips.cell[clip, frame].tolist() if c >= 0]
        assert len({*cells}) == len(cells)
        empty = [c for c in range(CELLS) if c not in cells]
        assert clips.view[clip, frame, empty].abs().sum() == 0
        for k in range(OBJECTS):
            if clips.cell[clip, frame, k] >= 0:
                seen = clips.view[clip, frame, clips.cell[clip, frame, k]]
                which = int((x == seen).all(1).nonzero())
                assert label[which] == clips.name[clip, k]
    assert (clips_of_cells(x, label, 5, frames=1, hidden=3, noise=0.0, seed=1).cell >= 0).all()


@pytest.mark.truth("all assignments tried one by one")
def test_objects_have_the_slots_of_the_largest_probability():
    torch.manual_seed(0)
    net = SlotNet(torch.nn.Identity(), PIXELS)
    x, label = images()
    clips = clips_of_cells(x, label, 4, frames=6, hidden=2, noise=0.3, seed=2)
    name = clips.name[:, None].expand_as(clips.cell)
    for view, cell, own in zip(
        *(v.flatten(0, 1) for v in (clips.view, clips.cell, name)), strict=True
    ):
        with torch.no_grad():
            slots = net(view[None])
            p, q = net.name(slots)[0].log_softmax(-1), net.cell(slots)[0].log_softmax(-1)
        seen = [k for k in range(OBJECTS) if cell[k] >= 0]
        want = max(
            itertools.permutations(range(CELLS), len(seen)),
            key=lambda s: sum(
                float(p[i, own[k]] + q[i, cell[k]]) for i, k in zip(s, seen, strict=True)
            ),
        )
        found = matched(net, slots, own[None], cell[None])[0]
        assert tuple(found[seen].tolist()) == want
        assert (found[cell < 0] == -1).all()


@pytest.mark.truth("the identities that parts.tracks counts, and objects without noise")
def test_tracks_are_those_whose_identities_are_counted():
    draw = torch.Generator().manual_seed(4)
    mixed = 0
    for noise in (0.0, 0.9):
        for _ in range(10):
            own = torch.randn(3, 6, generator=draw)
            frames, names = [], []
            for frame in range(7):
                seen = [k for k in torch.randperm(3, generator=draw).tolist()
                        if not (k == 1 and frame in (3, 4))]  # fmt: skip
                x = own[seen] + noise * torch.randn(len(seen), 6, generator=draw)
                frames.append(normalize(x, dim=1))
                names.append(seen)
            clip = {f: {str(k): s for k, s in zip(n, x, strict=True)}
                    for f, (n, x) in enumerate(zip(names, frames, strict=True))}  # fmt: skip
            right, _ = followed(clip, optimal, 0.7)
            tracks = [{f: names[f][k] for f, k in track} for track in linked(frames)]
            assert len(tracks) == 3  # all three are seen in the first frame
            same, owner = [], [track[0] for track in tracks]
            for f in range(1, 7):
                known = {*owner}
                for i, track in enumerate(tracks):
                    if f in track:
                        same += [track[f] == owner[i]] * (track[f] in known)
                        owner[i] = track[f]
            assert sorted(same) == sorted(right)
            mixed += same.count(False)
            assert noise or all(same)
    assert mixed > 3


@pytest.mark.slow
def test_slots_find_objects_and_their_tracks_have_names():
    x, label = images()
    net = learned_slots(
        torch.nn.Identity(),
        PIXELS,
        clips_of_cells(x, label, 400, frames=1, hidden=0, noise=0.1, seed=0),
        steps=250,
        seed=0,
    )
    clips = clips_of_cells(x, label, 12, frames=8, hidden=2, noise=0.1, seed=3)
    slots = slots_of(net, clips)
    right = [
        float((net.cell(s).argmax(1) == cell[k]).double().mean())
        for clip, cells in zip(slots, clips.cell, strict=True)
        for (k, s), cell in zip(clip, cells, strict=True)
    ]
    assert np.mean(right) > 0.8
    tracks = tracks_of(slots, clips.name)
    assert int((tracks.name >= 0).sum()) == int((clips.cell >= 0).sum())
    assert torch.equal(tracks.name >= 0, (tracks.state != 0).any(-1))


@pytest.mark.truth("a mean along time, by hand")
def test_a_refiner_mixes_frames_of_one_track():
    torch.manual_seed(0)
    net, x = Refiner(5), torch.randn(3, 5, DIM)
    torch.nn.init.zeros_(net.mixers[1].map)
    torch.nn.init.constant_(net.mixers[0].map, 0.2)
    marked = torch.cat([x, torch.ones(3, 5, 1)], -1)
    with torch.no_grad():
        want = net.head(marked + marked.mean(1, keepdim=True))
        torch.testing.assert_close(net(x), want)
