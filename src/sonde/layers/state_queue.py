"""A bounded memory of earlier states, with a filter or attention over them."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sonde.core.autocast import without_autocast
from sonde.core.errors import InputError
from sonde.layers._attending import wide_type
from sonde.layers._recomputing import EarlierStates, is_recomputing
from sonde.layers.layer import Layer, Symmetry
from sonde.tap.hooks.latest import Latest

LATEST = 4
"""Calls whose queue is remembered for gradient checkpointing."""


@final
class StateQueue(Layer):
    """Add to each state a filter of the last states, or attention over them.

    ``filter``: ``y_t = h_t + sum_i a_i h_(t - i stride)``, taps of each channel, which start at 0;
    with ``gated`` ``h + U(h) sigmoid(V(h))`` with two filters ``U`` and ``V``. ``attention``: the
    state attends to the last ``length`` states; the result is added times a gate that starts at 0.

    With a ``bottleneck`` the queue holds ``z = prelu(B h)``, a few channels, and an output layer
    ``O`` that starts at 0 maps what it gives back: ``h + O q(z)``. ``depth`` queues of strides
    ``stride 2^i`` then stand behind one another, each fed with a linear map of ``z`` and of all
    earlier outputs (dense connections): the recurrent module of MossFormer2.

    A call with ``scene`` lets attention read the queues of all rows of a scene: rows are then
    agents, and what one of them did several steps ago is found in one step.

    Cost         ``length`` products for each channel, or ``3 dim^2 + 2 length dim`` for each state;
                 with scenes ``2 length dim`` for each agent of the scene.
    Assumes      equal steps of time. The queue is empty before the first step.
    Differs      from MossFormer2: no norm inside, and gates are filters of their own.

    Parameters
    ----------
    dim : int
        Width of the states.
    length : int, default=4
        States in the queue; 0 adds nothing.
    read : {"filter", "attention"}, default="filter"
        How the last states are read: by a filter or by attention.
    push : {"shift", "soft"}, default="shift"
        ``soft`` moves the queue by a learned share at each step; for ``attention``.
    stride : int, default=1
        Steps between the taps: ``2^layer`` in a stack of dilated filters.
    lookahead : int, default=0
        Taps on later states; for ``filter``.
    gated : bool, default=False
        For ``filter``.
    streaming : bool, default=False
        Go on with the last call's states, until ``reset()``.
    bottleneck : int, default=0
        Channels between a bottleneck layer and an output layer; 0 leaves both layers out.
    depth : int, default=1
        Queues behind one another, with dense connections; more than one need ``bottleneck``.

    References
    ----------
    zhang2018fsmn, zhao2024mossformer2, tao2020dscmp
    """

    paper: ClassVar[str] = "zhang2018fsmn"
    variants: ClassVar[Mapping[str, str]] = {
        "gated=True, bottleneck=2, depth=2": "zhao2024mossformer2"
    }
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"dim": 4, "length": 2, "stride": 2},
        {"dim": 4, "length": 2, "lookahead": 1, "gated": True},
        {"dim": 4, "length": 3, "read": "attention"},
        {"dim": 4, "length": 3, "read": "attention", "push": "soft"},
        {"dim": 4, "length": 2, "gated": True, "bottleneck": 3, "depth": 2},
    )
    layout: ClassVar[tuple[str, ...]] = ("row time dim",)

    def __init__(
        self,
        dim: int,
        length: int = 4,
        read: Literal["filter", "attention"] = "filter",
        push: Literal["shift", "soft"] = "shift",
        stride: int = 1,
        lookahead: int = 0,
        gated: bool = False,
        streaming: bool = False,
        bottleneck: int = 0,
        depth: int = 1,
    ) -> None:
        super().__init__()
        if min(length, lookahead) < 0 or stride < 1:
            raise InputError(
                "StateQueue: expected length and lookahead of 0 or more and a stride of 1 or more, "
                f"got {length}, {lookahead} and {stride}."
            )
        if streaming and (lookahead or push == "soft"):
            raise InputError(
                "StateQueue: streaming has no later states and shifts the queue, so "
                "lookahead must be 0 and the push 'shift'."
            )
        if read == "attention" and (lookahead or gated or stride > 1):
            raise InputError(
                "StateQueue: stride, lookahead and gated are only used with read='filter'."
            )
        if read == "filter" and push == "soft":
            raise InputError("StateQueue: push='soft' is only used with read='attention'.")
        if bottleneck < 0 or depth < 1 or (depth > 1 and (not bottleneck or read == "attention")):
            raise InputError(
                "StateQueue: expected a depth of 1, or more with a bottleneck and read='filter', "
                f"got depth={depth} and bottleneck={bottleneck}."
            )
        self.dim, self.length, self.stride, self.lookahead = dim, length, stride, lookahead
        self.causal = lookahead == 0
        self.streaming = streaming
        self.streams: Latest[Tensor] = Latest()  # the last states of each thread or task
        self.earlier = EarlierStates(LATEST)
        self.symmetry: Symmetry = "none" if streaming or push == "soft" else "translation"
        self.taps = self.gate_taps = self.maps = self.write = self.module = None
        if bottleneck:
            queues = [
                StateQueue(bottleneck, length, read, push, stride * 2**i, lookahead, gated,
                           streaming)
                for i in range(depth)
            ]  # fmt: skip
            self.module = _Bottleneck(dim, bottleneck, queues)
        elif read == "filter":
            self.taps = nn.Parameter(torch.zeros(length + lookahead, dim))
            if gated:
                self.gate_taps = nn.Parameter(torch.zeros(length + lookahead, dim))
        else:
            names = ("query", "key", "value")
            self.maps = nn.ModuleDict({name: nn.Linear(dim, dim) for name in names})
            self.gate = nn.Parameter(torch.zeros(()))
            if push == "soft":
                self.write = nn.Parameter(torch.tensor(2.0))

    def reset(self) -> None:
        """Clear the states of earlier calls of this thread or task."""
        self.streams.forget()
        for queue in [] if self.module is None else self.module.queues:
            cast(StateQueue, queue).reset()

    @property
    def kept(self) -> Tensor | None:
        """The last states of this thread's or task's stream."""
        return self.streams.own()

    def forward(
        self,
        x: Float[Tensor, "row time dim"],
        mask: Bool[Tensor, "row time"] | None = None,
        scene: Int[Tensor, "row"] | None = None,
    ) -> Float[Tensor, "row time dim"]:
        """Return the states plus the output of the queue.

        Parameters
        ----------
        x : Float[Tensor, "row time dim"]
        mask : Bool[Tensor, "row time"], optional
            True for real steps.
        scene : Int[Tensor, "row"], optional
            Scene of each row. With ``read="attention"`` a row, which is then an agent, also reads
            the queues of the other rows of its scene.
        """
        if scene is not None and (self.streaming or self.maps is None):
            raise InputError(
                "StateQueue: scenes are only used with read='attention', and not while streaming."
            )
        if self.streaming and mask is not None:
            raise InputError(
                "StateQueue: expected no mask while streaming. Stream each text by itself."
            )
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        h = x if mask is None else x * real.unsqueeze(-1)
        if not self.length + self.lookahead:
            return x
        if self.module is not None:
            return x + self.module(x, mask)
        again = self.streaming and self.training and is_recomputing()
        kept = self.kept if self.streaming else None
        kept = self.earlier.of(x, "StateQueue") if again else kept
        before = self._before(h, real, kept)
        near = None if scene is None else _rows_of_scenes(scene)
        if self.taps is not None:
            added = self._filtered(before, h, self.taps)
            if self.gate_taps is not None:
                added = added * self._filtered(before, h, self.gate_taps).sigmoid()
        elif self.write is not None:
            added = self.gate * self._soft(h, real, near)
        else:
            queue = _queue(before, self.length, x.shape[1])
            added = self.gate * self._asked(h, *_heard(queue[..., :-1], queue[..., -1] > 0, near))
        if self.streaming and not again:
            if self.training:
                self.earlier.keep(x, kept)
            last = before[:, before.shape[1] - self.length * self.stride :]
            self.streams.put(last.detach())
        return x + added

    def _before(self, h: Tensor, real: Tensor, kept: Tensor | None) -> Tensor:
        """Return earlier and new states, each with a 1 if it is real."""
        states = torch.cat([h, real.unsqueeze(-1).to(h)], 2)
        empty = states.new_zeros(len(h), self.length * self.stride, states.shape[2])
        return torch.cat([empty if kept is None else kept.to(states), states], 1)

    def _filtered(self, before: Tensor, h: Tensor, taps: Tensor) -> Tensor:
        n, reach = h.shape[1], self.length * self.stride
        ahead = h.new_zeros(len(h), self.lookahead * self.stride, self.dim)
        whole = torch.cat([before[..., :-1], ahead], 1)
        steps = [-(i + 1) for i in range(self.length)] + [i + 1 for i in range(self.lookahead)]
        parts = (
            a * whole[:, reach + step * self.stride :][:, :n]
            for a, step in zip(taps, steps, strict=True)
        )
        return torch.stack(list(parts)).sum(0)

    def _asked(self, h: Tensor, slots: Tensor, filled: Tensor) -> Tensor:
        """Return each state's attention over its slots; zeros if all slots are empty."""
        maps = cast(nn.ModuleDict, self.maps)
        projected = (maps["query"](h), maps["key"](slots), maps["value"](slots))
        with without_autocast(h.device):  # sums over half types overflow
            q, k, v = (y.to(wide_type(y)) for y in projected)
            scores = torch.einsum("rtd,rtqd->rtq", q, k) / self.dim**0.5
            share = scores.masked_fill(~filled, torch.finfo(scores.dtype).min).softmax(-1)
            return torch.einsum("rtq,rtqd->rtd", share.masked_fill(~filled, 0.0), v).to(h.dtype)

    def _soft(self, h: Tensor, real: Tensor, near: tuple[Tensor, Tensor] | None) -> Tensor:
        """Return the attention over queues that move by a fraction at each real step."""
        share = cast(Tensor, self.write).sigmoid()
        slots = h.new_zeros(len(h), self.length, self.dim)
        n_pushed = torch.zeros(len(h), 1, dtype=torch.long, device=h.device)
        place, answers = torch.arange(self.length, device=h.device), []
        for t in range(h.shape[1]):
            one = h[:, t : t + 1]
            filled = (place < n_pushed).unsqueeze(1)
            answers.append(self._asked(one, *_heard(slots.unsqueeze(1), filled, near)))
            moved = torch.cat([one, slots[:, :-1]], 1)
            here = share * real[:, t, None, None]
            slots = here * moved + (1 - here) * slots
            n_pushed = n_pushed + real[:, t : t + 1]
        return torch.cat(answers, 1)


class _Bottleneck(nn.Module):
    """Queues of few channels behind one another, between a bottleneck and an output layer."""

    def __init__(self, dim: int, width: int, queues: list[StateQueue]) -> None:
        super().__init__()
        self.enter, self.bend = nn.Linear(dim, width), nn.PReLU()
        self.queues = nn.ModuleList(queues)
        later = range(2, len(queues) + 1)
        self.joins = nn.ModuleList(nn.Linear(n * width, width) for n in later)
        self.leave = nn.Linear(width, dim)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        z = self.bend(self.enter(x))
        outputs = [z, self.queues[0](z, mask=mask)]
        for queue, join in zip(self.queues[1:], self.joins, strict=True):
            outputs.append(queue(join(torch.cat(outputs, 2)), mask=mask))
        return self.leave(outputs[-1])


def _rows_of_scenes(scene: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of each row's scene (row, agent), and which of them are not padding."""
    same = scene[:, None] == scene
    most = int(same.sum(1).max()) if len(scene) else 0
    rows = same.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, :most]
    return rows, same.gather(1, rows)


def _heard(
    slots: Tensor, filled: Tensor, near: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Return the slots (row time slot dim) of all rows of a row's scene, and which are filled."""
    if near is None:
        return slots, filled
    rows, real = near
    others = filled.expand(slots.shape[:3])[rows] & real[..., None, None]
    return slots[rows].transpose(1, 2).flatten(2, 3), others.transpose(1, 2).flatten(2, 3)


def _queue(before: Tensor, length: int, n: int) -> Tensor:
    """Return the last ``length`` entries before each step, the newest first."""
    return torch.stack([before[:, length - 1 - i : length - 1 - i + n] for i in range(length)], 2)
