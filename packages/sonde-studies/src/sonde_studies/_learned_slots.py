"""Clips of digits that move between cells, and learned slots that find the digits of a frame."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.layers import Readout
from sonde_studies.worlds.learning import drawn, minimise

CELLS, OBJECTS, PIXELS, NAMES, DIM, STAY = 6, 3, 64, 10, 64, 0.7
"""``STAY``: how often an object keeps its cell from one frame to the next."""


Slots = list[tuple[Int[Tensor, "seen"], Float[Tensor, "seen dim"]]]
"""Of each frame of a clip the objects that are seen, and the slot of each."""


@dataclass(frozen=True)
class Clips:
    """Clips of objects that move from cell to cell.

    Parameters
    ----------
    view : Float[Tensor, "clip frame cell pixel"]
    cell : Int[Tensor, "clip frame object"]
        Where the object is; -1 where it is hidden.
    name : Int[Tensor, "clip object"]
    """

    view: Float[Tensor, "clip frame cell pixel"]
    cell: Int[Tensor, "clip frame object"]
    name: Int[Tensor, "clip object"]


def clips_of_cells(
    x: Float[Tensor, "image pixel"],
    label: Int[Tensor, "image"],
    n: int,
    *,
    frames: int,
    hidden: int,
    noise: float,
    seed: int,
) -> Clips:
    """Return clips of three images each, all behind noise; each is hidden for some frames.

    Parameters
    ----------
    x, label
        Images and their names.
    n, frames : int
        Clips, and frames of each.
    hidden : int
        Frames in a row without the object; none in clips that are as short.
    noise : float
        Standard deviation.
    seed : int
    """
    draw = np.random.default_rng(seed)
    chosen = np.stack([draw.choice(len(x), OBJECTS, replace=False) for _ in range(n)])
    cell = np.zeros((n, frames, OBJECTS), dtype=np.int64)
    for clip in range(n):
        cell[clip, 0] = draw.permutation(CELLS)[:OBJECTS]
        for frame in range(1, frames):
            cell[clip, frame] = cell[clip, frame - 1]
            for k in np.flatnonzero(draw.random(OBJECTS) > STAY):
                free = np.setdiff1d(np.arange(CELLS), cell[clip, frame])
                cell[clip, frame, k] = draw.choice(free)
    view = torch.from_numpy(draw.normal(0, noise, (n, frames, CELLS, PIXELS))).float()
    gone = draw.integers(1, max(2, frames - hidden), (n, OBJECTS))
    time = np.arange(frames)[None, :, None] - gone[:, None]
    cell[(time >= 0) & (time < (hidden if frames > hidden else 0))] = -1
    for clip, frame, k in zip(*np.nonzero(cell >= 0), strict=True):
        view[clip, frame, cell[clip, frame, k]] += x[chosen[clip, k]]
    return Clips(view, torch.from_numpy(cell), label[torch.from_numpy(chosen)])


class SlotNet(nn.Module):
    """Learned queries read slots from the cells of a frame; a slot names an object and its cell.

    Parameters
    ----------
    encoder : nn.Module
        A trained encoder of single cells, which is not trained further.
    width : int
        Of its states.
    """

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.token = nn.Sequential(nn.Linear(width + CELLS, DIM), nn.ReLU())
        self.slots = Readout((DIM,), DIM, "queries", n_queries=CELLS)
        self.name, self.cell = nn.Linear(DIM, NAMES + 1), nn.Linear(DIM, CELLS)

    def forward(self, view: Float[Tensor, "frame cell pixel"]) -> Float[Tensor, "frame slot dim"]:
        """Return the slots of frames."""
        place = torch.eye(CELLS).expand(len(view), -1, -1)
        return self.slots(self.token(torch.cat([self.encoder(view), place], -1)))


def matched(
    net: SlotNet,
    slots: Float[Tensor, "frame slot dim"],
    name: Int[Tensor, "frame object"],
    cell: Int[Tensor, "frame object"],
) -> Int[Tensor, "frame object"]:
    """Return the slot of each object, by the assignment of the largest total log-probability.

    An object that is hidden, of cell -1, has slot -1.
    """
    with torch.no_grad():
        named = net.name(slots).log_softmax(-1)
        placed = net.cell(slots).log_softmax(-1)
        own = name[:, None].expand(-1, slots.shape[1], -1)
        where = cell.clamp(min=0)[:, None].expand_as(own)
        cost = -(named.gather(2, own) + placed.gather(2, where)).numpy()
    found = torch.full_like(cell, -1)
    for frame, here in enumerate((cell >= 0).numpy()):
        seen = np.flatnonzero(here)
        rows, columns = linear_sum_assignment(cost[frame][:, seen])
        found[frame, torch.from_numpy(seen[columns])] = torch.from_numpy(rows)
    return found


def learned_slots(
    encoder: nn.Module, width: int, clips: Clips, *, steps: int, seed: int
) -> SlotNet:
    """Return slots trained on single frames to find a set: each object once, or nothing."""
    net = drawn(lambda: SlotNet(encoder, width), seed)
    view, cell = clips.view.flatten(0, 1), clips.cell.flatten(0, 1)
    name = clips.name[:, None].expand_as(clips.cell).flatten(0, 1)

    def loss(rows: Tensor) -> Tensor:
        slots = net(view[rows])
        owner = matched(net, slots, name[rows], cell[rows])
        frame, thing = (owner >= 0).nonzero(as_tuple=True)
        slot = owner[frame, thing]
        truth = torch.full(slots.shape[:2], NAMES)
        truth[frame, slot] = name[rows][frame, thing]
        named = cross_entropy(net.name(slots).flatten(0, 1), truth.flatten())
        return named + cross_entropy(net.cell(slots[frame, slot]), cell[rows][frame, thing])

    own = [p for p in net.parameters() if p.requires_grad]
    minimise(loss, own, len(view), steps=steps, seed=seed)
    return net.eval()


@torch.no_grad()
def slots_of(net: SlotNet, clips: Clips) -> list[Slots]:
    """Return the slots of the objects of each clip."""
    found = list[Slots]()
    for view, cell, name in zip(clips.view, clips.cell, clips.name, strict=True):
        slots = net(view)
        owner = matched(net, slots, name.expand_as(cell), cell)
        seen = [(own >= 0).nonzero().flatten() for own in owner]
        found.append([(k, s[o[k]]) for k, s, o in zip(seen, slots, owner, strict=True)])
    return found
