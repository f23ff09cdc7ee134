"""Objects followed by learned references, by running means, and from frame to frame.

Digits that move as points and are seen through noise; each hides for some frames. A slot has the
digit's pixels, mapped to fewer numbers at random, and its place.
"""

from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor, nn
from torch.nn.functional import normalize

from sonde.layers import SlotTracker
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.arms import note_again, note_for
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

FIT, CLIPS, JUDGED, FRAMES, OBJECTS, HIDDEN, NOISE = 900, 1_500, 150, 10, 4, 3, 0.5
PIXELS, PLACE, STEPS, TINY, MEMORY = 12, 8, 500, 4, 0.7
MOVES = {"slow": 0.1, "fast": 0.3}
"""Standard deviation of a step in sides of the square in which objects begin."""
DIM = PIXELS + PLACE
KEPT = "share of the slots that keep their object"


@dataclass(frozen=True)
class _Clips:
    """Slots in another order in each frame but the first, and the object of each."""

    state: Float[Tensor, "clip frame slot dim"]
    thing: Int[Tensor, "clip frame slot"]
    real: Bool[Tensor, "clip frame slot"]


@final
class ReferredSlotsStudy(Study):
    """Clips of four digits in ten frames, which a tracker and three ways of matching follow."""

    name = "referred-slots"
    title = "do references that are learned keep more identities than running means?"
    paper = "zhang2023dvis"
    fidelity = "one block of cross-attention, taught by the identities of slots that are given"
    data = "digits as objects: 900 to learn from in 1,500 clips, others in 150 to judge"
    claims = (
        Claim("fast", "Where objects are fast, a tracker (1,662 trained weights) keeps more than "
              "running means of slots, which have none.", f"{KEPT}, tracker less mean",
              arms=("tracker, fast", "mean, fast")),
        Claim("slow", "It does so where they are slow (1,662 trained weights for none).",
              f"{KEPT}, tracker less mean",
              arms=("tracker, slow", "mean, slow")),
        Claim("map", "It keeps more fast ones than means under a map (400 weights) that learns "
              "identities in as many updates.", f"{KEPT}, tracker less map",
              arms=("tracker, fast", "map, fast")),
        Claim("gap", "It keeps more fast ones than means do in the first frame after a gap.",
              "share of the slots that keep their object, in the frame after a gap, tracker less "
              "mean, which is not trained",
              arms=("tracker, fast", "mean, fast")),
        Claim("absent", "A reference whose object is hidden takes .2 more from the empty slot.",
              "weight of the empty slot, hidden less seen, fast", above=0.2,
              arms=("tracker, fast", "tracker, fast, object seen")),
    )  # fmt: skip
    null = Claim("alike", "Objects that are one digit at places by lot cannot be followed.",
                 f"{KEPT}, tracker less assignments by lot")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train the tracker and the map, and follow slow and fast objects of other digits."""
        x, _ = shuffled_digits(seed)
        found: dict[str, float] = {}
        for name, move in MOVES.items():
            found |= _of_speed(x, name, move, seed, tiny, tick)
        return {
            **{name: found[f"tracker | {name}"] - found[f"mean | {name}"] for name in MOVES},
            "map": found["tracker | fast"] - found["map | fast"],
            "gap": found["tracker | fast, after a gap"] - found["mean | fast, after a gap"],
            "absent": found["absent, fast"],
            "alike": found["alike, fast"],
            **{arm: value for arm, value in found.items() if "|" in arm},
        }


def _of_speed(
    x: Tensor, name: str, move: float, seed: int, tiny: bool, tick: Tick
) -> dict[str, float]:
    draw = torch.Generator().manual_seed(seed)
    view = torch.randn(64, PIXELS, generator=draw) / 8
    n, judged = (12, 8) if tiny else (CLIPS, JUDGED)
    fit = _clips(x[:FIT] @ view, n, move, draw)
    held = _clips(x[FIT:] @ view, judged, move, draw)
    alike = _clips(x[FIT:] @ view, judged, move, draw, alike=True)
    steps = TINY if tiny else STEPS
    tick(f"tracker, {name}")
    tracker = drawn(lambda: SlotTracker(DIM), seed)
    _learn(tracker, fit, seed, steps)
    tick(f"map, {name}")
    ported = drawn(lambda: nn.Linear(DIM, DIM, bias=False), seed)
    _learn_map(ported, fit, seed, steps)
    note_for(f"mean, {name}", updates=0)
    note_again(f"tracker, {name}, object seen", f"tracker, {name}")
    with torch.no_grad():
        weights = tracker.weights(held.state, held.real)
        mapped = _Clips(ported(held.state), held.thing, held.real)
        right = {
            "tracker": _right(held, weights[..., :-1]),
            "mean": _right_of_means(held, MEMORY),
            "map": _right_of_means(mapped, MEMORY),
            "frame to frame": _right_of_means(held, 0.0),
        }
        null = _right(alike, tracker.weights(alike.state, alike.real)[..., :-1])
    lots = torch.rand(*alike.thing.shape, OBJECTS, generator=draw)
    after, there = _after_a_gap(held), _seen(held)[:, 1:]
    none = weights[:, 1:, :, -1]
    return {
        f"absent, {name}": float(none[~there].mean() - none[there].mean()),
        f"alike, {name}": _share(null, alike.real) - _share(_right(alike, lots), alike.real),
        **{f"{arm} | {name}": _share(one, held.real) for arm, one in right.items()},
        **{f"{arm} | {name}, after a gap": _share(one, after) for arm, one in right.items()},
    }


def _clips(x: Tensor, n: int, move: float, draw: torch.Generator, alike: bool = False) -> _Clips:
    """Return clips of digits that move; with ``alike`` one digit, at places drawn in each frame."""
    chosen = torch.stack([torch.randperm(len(x), generator=draw)[:OBJECTS] for _ in range(n)])
    chosen = chosen[:, :1].expand(-1, OBJECTS) if alike else chosen
    seen = x[chosen][:, None].expand(-1, FRAMES, -1, -1)
    noise = NOISE * torch.randn(n, FRAMES, OBJECTS, PIXELS, generator=draw)
    place = torch.rand(n, 1, OBJECTS, 2, generator=draw)
    steps = move * torch.randn(n, FRAMES, OBJECTS, 2, generator=draw).cumsum(1)
    place = torch.rand(n, FRAMES, OBJECTS, 2, generator=draw) if alike else place + steps
    waves = [f(k * torch.pi * place) for k in (1, 2) for f in (torch.sin, torch.cos)]
    state = torch.cat([seen + noise, *waves], -1)
    gone = torch.randint(1, FRAMES - HIDDEN, (n, 1, OBJECTS), generator=draw)
    time = torch.arange(FRAMES)[None, :, None] - gone
    real = (time < 0) | (time >= HIDDEN)
    order = torch.rand(n, FRAMES, OBJECTS, generator=draw).argsort(2)
    order[:, 0] = torch.arange(OBJECTS)
    state = state.gather(2, order[..., None].expand_as(state)) * real.gather(2, order)[..., None]
    return _Clips(state, order, real.gather(2, order))


def _seen(clips: _Clips) -> Bool[Tensor, "clip frame object"]:
    """Return whether each object is seen."""
    return torch.zeros_like(clips.real).scatter(2, clips.thing, clips.real)


def _after_a_gap(clips: _Clips) -> Bool[Tensor, "clip frame slot"]:
    """Return the slots whose object was hidden in the frame before."""
    seen = _seen(clips)
    again = torch.zeros_like(seen)
    again[:, 1:] = seen[:, 1:] & ~seen[:, :-1]
    return again.gather(2, clips.thing)


def _learn(tracker: SlotTracker, clips: _Clips, seed: int, steps: int) -> None:
    """Teach the weights the slot of each object; the empty slot if it is hidden."""
    slot = clips.thing.argsort(2)  # the slot of each object
    slot = slot.masked_fill(~_seen(clips), OBJECTS)[:, 1:]

    def loss(rows: Tensor) -> Tensor:
        weights = tracker.weights(clips.state[rows], clips.real[rows])[:, 1:]
        return -weights.gather(3, slot[rows][..., None]).clamp(min=1e-9).log().mean()

    minimise(loss, tracker.parameters(), len(slot), steps=steps, seed=seed, batch=32)


def _learn_map(ported: nn.Linear, clips: _Clips, seed: int, steps: int) -> None:
    """Teach a map that the slots of one object in two frames have the largest cosine."""
    draw = torch.Generator().manual_seed(seed)

    def loss(rows: Tensor) -> Tensor:
        a, b = torch.randint(FRAMES, (2,), generator=draw).tolist()
        states = normalize(ported(clips.state[rows]), dim=-1)
        odds = states[:, a] @ states[:, b].mT / 0.1
        same = clips.thing[rows][:, a, :, None] == clips.thing[rows][:, b, None]
        both = clips.real[rows][:, a, :, None] & clips.real[rows][:, b, None]
        odds = odds.masked_fill(~clips.real[rows][:, b, None], -1e4)
        return -odds.log_softmax(2)[same & both].mean()

    minimise(loss, ported.parameters(), len(clips.state), steps=steps, seed=seed, batch=32)


def _right(clips: _Clips, weights: Float[Tensor, "clip frame reference slot"]) -> Tensor:
    """Return whether each slot is assigned to the reference of its object."""
    right = torch.zeros_like(clips.real)
    for clip in range(len(weights)):
        for frame in range(1, weights.shape[1]):
            right[clip, frame] = _assigned(clips, clip, frame, -weights[clip, frame])[1]
    return right


def _assigned(clips: _Clips, clip: int, frame: int, cost: Tensor) -> tuple[Any, Tensor]:
    """Return the pairs of references and seen slots of least cost, and which slots are right."""
    slots = clips.real[clip, frame].nonzero()[:, 0]
    reference, at = linear_sum_assignment(cost[:, slots].numpy())
    pairs = torch.as_tensor(reference), slots[torch.as_tensor(at)]
    right = torch.zeros(len(clips.real[clip, frame]), dtype=torch.bool)
    right[pairs[1]] = clips.thing[clip, frame][pairs[1]] == pairs[0]
    return pairs, right


def _right_of_means(clips: _Clips, memory: float) -> Tensor:
    """Return whether each slot is assigned to its object, by cosines to running means."""
    middle = clips.state[clips.real].mean(0)
    state, right = normalize(clips.state - middle, dim=-1), torch.zeros_like(clips.real)
    for clip in range(len(state)):
        reference = state[clip, 0].clone()
        for frame in range(1, state.shape[1]):
            cost = -(normalize(reference, dim=-1) @ state[clip, frame].T)
            (old, new), right[clip, frame] = _assigned(clips, clip, frame, cost)
            reference[old] = memory * reference[old] + (1 - memory) * state[clip, frame][new]
    return right


def _share(right: Tensor, among: Tensor) -> float:
    """Return the share of the slots, from the second frame on."""
    return float(right[:, 1:][among[:, 1:]].double().mean())
