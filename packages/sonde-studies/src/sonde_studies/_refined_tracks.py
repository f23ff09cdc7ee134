"""Tracks of slots along a clip, and models that name the objects of a track."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from sonde.layers import Adapter, GridMixer
from sonde_studies._learned_slots import DIM, NAMES, Slots
from sonde_studies.parts.tracks import optimal
from sonde_studies.worlds.learning import drawn, minimise

MEMORY = 0.7


def linked(frames: list[Float[Tensor, "detection dim"]]) -> list[list[tuple[int, int]]]:
    """Return the tracks of a clip, each as pairs of a frame and a detection in it.

    A detection goes on with the track of the best assignment to running references.

    Parameters
    ----------
    frames : list of Float[Tensor, "detection dim"]
        States of unit length.
    """
    references, tracks = list[Tensor](), list[list[tuple[int, int]]]()
    for frame, x in enumerate(frames):
        taken = dict[int, int]()
        if tracks and len(x):
            cost = 1 - (torch.stack(references) @ x.T).numpy()
            taken = {int(new): int(old) for old, new in optimal(cost)}
        for new, state in enumerate(x):
            if new in taken:
                old = taken[new]
                references[old] = MEMORY * references[old] + (1 - MEMORY) * state
                tracks[old].append((frame, new))
            else:
                references.append(state)
                tracks.append([(frame, new)])
    return tracks


@dataclass(frozen=True)
class Tracks:
    """Slots along tracks; a frame without a detection is zero and has the name -1.

    Parameters
    ----------
    state : Float[Tensor, "track frame dim"]
    name : Int[Tensor, "track frame"]
        The name of the object whose slot the track holds there.
    """

    state: Float[Tensor, "track frame dim"]
    name: Int[Tensor, "track frame"]


def tracks_of(slots: list[Slots], name: Int[Tensor, "clip object"]) -> Tracks:
    """Link the slots of clips by their directions."""
    middle = torch.cat([s for clip in slots for _, s in clip]).mean(0)
    states, names = list[Tensor](), list[Tensor]()
    for clip, own in zip(slots, name, strict=True):
        for track in linked([normalize(s - middle, dim=1) for _, s in clip]):
            state, said = torch.zeros(len(clip), DIM), torch.full((len(clip),), -1)
            for frame, k in track:
                state[frame], said[frame] = clip[frame][1][k], own[clip[frame][0][k]]
            states.append(state)
            names.append(said)
    return Tracks(torch.stack(states), torch.stack(names))


class Refiner(nn.Module):
    """Mixes the slots of a track along time and names each of them."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.mixers = nn.ModuleList(GridMixer(DIM + 1, "full", grid=(frames, 1)) for _ in range(2))
        self.maps = nn.ModuleList(Adapter(DIM + 1, DIM) for _ in range(2))
        self.head = nn.Linear(DIM + 1, NAMES)

    def forward(self, state: Float[Tensor, "track frame dim"]) -> Float[Tensor, "track frame name"]:
        """Return the logits of the names."""
        seen = (state != 0).any(-1, keepdim=True).to(state)
        x = torch.cat([state, seen], -1)
        for mixer, own in zip(self.mixers, self.maps, strict=True):
            x = own(mixer(x.movedim(2, 1)[..., None])[..., 0].movedim(1, 2))
        return self.head(x)


def named_by(model: nn.Module, tracks: Tracks) -> float:
    """Return how often a model of tracks names the object, over the frames with a detection."""
    with torch.no_grad():
        said = model(tracks.state).argmax(-1)
    seen = tracks.name >= 0
    return float((said == tracks.name)[seen].double().mean())


class Alone(nn.Module):
    """Names each slot of a track from itself, or all from the mean of the track."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.whole = whole
        self.map, self.head = Adapter(DIM, 2 * DIM), nn.Linear(DIM, NAMES)

    def forward(self, state: Float[Tensor, "track frame dim"]) -> Float[Tensor, "track frame name"]:
        """Return the logits of the names."""
        if self.whole:
            n = (state != 0).any(-1).sum(1)[:, None, None]
            state = (state.sum(1, keepdim=True) / n).expand_as(state)
        return self.head(self.map(state))


def learned_names(
    make: Callable[[], nn.Module], tracks: Tracks, *, steps: int, seed: int
) -> nn.Module:
    """Return a model of tracks trained to name the object in each frame with a detection."""
    net = drawn(make, seed)

    def loss(rows: Tensor) -> Tensor:
        return cross_entropy(
            net(tracks.state[rows]).flatten(0, 1), tracks.name[rows].flatten(), ignore_index=-1
        )

    minimise(loss, net.parameters(), len(tracks.name), steps=steps, seed=seed)
    return net.eval()
