"""Follow objects from frame to frame by learned references that attend to each frame's slots.

For slots or detections of a clip whose states change too much for a running mean.
"""

from typing import Any, ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.layers.layer import Layer

FIRST = -1.0
"""Offset of the gates before training: a reference keeps about .73 of itself in a frame."""


@final
class SlotTracker(Layer):
    """References that begin as the slots of the first frame and look for themselves in each next.

    ``w = softmax(q(r) k(s)' / sqrt(dim))`` over the slots ``s`` of a frame and an empty slot, whose
    value is the reference itself: an object that is hidden keeps its reference. Then ``r`` becomes
    ``norm(r + gate(r, w s) (w s - r))``. The k-th reference is one object in all frames, so its
    states along time are a track, which a refiner such as ``GridMixer`` can read.

    Train ``weights`` by the cross-entropy of the slot that each object has in each frame; without
    labels of identity, take the assignment of a matched frame as the label.

    Cost         ``2 slot^2 dim`` products a frame and maps of ``5 dim^2`` for each slot.
    Assumes      every object has a slot in the first frame; later frames in any order of slots.
    Differs      from the paper: one block of cross-attention, no self-attention among references.

    Parameters
    ----------
    dim : int
        Width of the slots.

    Examples
    --------
    >>> x = torch.eye(3).expand(1, 2, 3, 3).clone()
    >>> tracker = SlotTracker(3)
    >>> tracker(x).shape, tracker.weights(x).shape
    (torch.Size([1, 2, 3, 3]), torch.Size([1, 2, 3, 4]))

    References
    ----------
    zhang2023dvis
    """

    paper: ClassVar[str] = "zhang2023dvis"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"dim": 4},)
    layout: ClassVar[tuple[str, ...]] = ("row time slot dim",)
    insertable = False
    causal = True

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 1:
            raise InputError(f"SlotTracker: expected a dim of at least 1, got {dim}.")
        self.dim = dim
        self.query, self.key = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        with torch.no_grad():  # begins as a comparison of states, not of two random maps
            self.key.weight.copy_(self.query.weight)
        self.sharpness, self.absent = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(()))
        self.gate = nn.Linear(2 * dim, dim)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, FIRST)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self,
        x: Float[Tensor, "row time slot dim"],
        present: Bool[Tensor, "row time slot"] | None = None,
        mask: Bool[Tensor, "row time"] | None = None,
    ) -> Float[Tensor, "row time slot dim"]:
        """Return the references after each frame, in the order of the first frame's slots.

        Parameters
        ----------
        x : Float[Tensor, "row time slot dim"]
        present : Bool[Tensor, "row time slot"], optional
            True for slots that hold something; all are needed in the first frame.
        mask : Bool[Tensor, "row time"], optional
            True for real frames; in padding references stay as they are.
        """
        return self._followed(x, present, mask)[0]

    def weights(
        self,
        x: Float[Tensor, "row time slot dim"],
        present: Bool[Tensor, "row time slot"] | None = None,
        mask: Bool[Tensor, "row time"] | None = None,
    ) -> Float[Tensor, "row time slot choice"]:
        """Return how much each reference takes from each slot of a frame; last, from none.

        In the first frame each reference takes its own slot.
        """
        return self._followed(x, present, mask)[1]

    def _followed(
        self, x: Tensor, present: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        n = x.shape[2]
        there = torch.ones(x.shape[:3], dtype=torch.bool, device=x.device)
        there = there if present is None else present
        real = torch.ones_like(there[:, :, 0]) if mask is None else mask
        begins = real & (real.cumsum(1) == 1)
        if not bool(there[begins].all()):
            raise InputError(
                "SlotTracker: expected no gap in the first frame, whose slots become the "
                "references. Begin the clip at a frame that shows all objects."
            )
        states, own = self.norm(x), torch.eye(n, n + 1, dtype=x.dtype, device=x.device)
        reference = torch.zeros_like(states[:, :1]).sum(1)
        references, weights = list[Tensor](), list[Tensor]()
        for frame in range(x.shape[1]):
            slots, first = states[:, frame], begins[:, frame, None, None]
            weight = torch.where(first, own, self._weight(reference, slots, there[:, frame]))
            seen = weight[..., :-1] @ slots + weight[..., -1:] * reference
            gate = torch.sigmoid(self.gate(torch.cat([reference, seen], -1)))
            after = self.norm(reference + gate * (seen - reference))
            after = torch.where(first, slots, after)
            reference = torch.where(real[:, frame, None, None], after, reference)
            references.append(reference)
            weights.append(weight)
        if not references:
            return torch.zeros_like(x), x.new_zeros(*x.shape[:3], n + 1)
        return torch.stack(references, 1), torch.stack(weights, 1)

    def _weight(self, reference: Tensor, slots: Tensor, there: Tensor) -> Tensor:
        odds = self.query(reference) @ self.key(slots).mT / self.dim**0.5 * self.sharpness
        odds = odds.masked_fill(~there[:, None], -torch.inf)
        none = self.absent.expand(*odds.shape[:2], 1)
        return torch.cat([odds, none], 2).softmax(2)
