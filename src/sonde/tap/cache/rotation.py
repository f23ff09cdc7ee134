"""Measure how an attention layer rotates queries and keys by their position in the text.

transformers gives attentions ``position_embeddings``, cosines and sines of each column. The
model's own code decides which of a head's numbers they turn, and whether a layer turns any.
"""

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sonde.core.errors import SiteError
from sonde.core.query_moments import ComingRotation
from sonde.tap.attention.interface import kernels_through

TURN = "apply_rotary_pos_emb"
GIVEN = "position_embeddings"
Turn = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Rotation:
    """The rotation of one attention layer, at any position of the texts in a cache.

    Parameters
    ----------
    turn : callable
        Rotates ``(row, head, token, width)`` by cosines and sines ``(row, token, plane)``.
    phase : Float[Tensor, "row plane"]
        Angle at the first real token of each row.
    angle : Float[Tensor, "plane"] or None
        Difference between neighbours; None until two tokens were seen.
    size : float
        Length of a rotated vector over that of the vector.
    """

    turn: Turn
    phase: Float[Tensor, "row plane"]
    angle: Float[Tensor, "plane"] | None
    size: float

    @classmethod
    def of(cls, turn: Turn, cos: Tensor, sin: Tensor, index: Int[Tensor, "row column"]) -> Any:
        """Return the rotation seen in a model's first call: its columns and their real tokens."""
        cos, sin = (x.double().expand(len(index), -1, -1) for x in (cos, sin))
        phase, n = torch.atan2(sin, cos), index[:, -1].clamp(min=0)
        size, row = float(torch.hypot(cos, sin)[0, 0, 0]), int(n.argmax())
        angle, last = None, int(n[row])
        if last > 0:
            start, end = (int(torch.searchsorted(index[row], i)) for i in (0, last))
            angle = _wrapped(phase[row, start + 1] - phase[row, start])
            # n tokens tell the angle n times as exactly as two
            whole = phase[row, end] - phase[row, start]
            angle = angle + _wrapped(whole - last * angle) / last
        first = (index >= 0).int().argmax(1)
        return cls(turn, phase[torch.arange(len(index)), first], angle, size)

    def later(self, cos: Tensor, sin: Tensor, index: Int[Tensor, "row column"]) -> "Rotation":
        """Return the rotation with the angle between adjacent tokens, from a later call."""
        if self.angle is not None:
            return self
        row = int(index[:, 0].argmax())
        if int(index[row, 0]) != 1:
            return self
        cos, sin = (x[min(row, len(x) - 1), 0].double() for x in (cos, sin))
        return replace(self, angle=_wrapped(torch.atan2(sin, cos) - self.phase[row]))

    def turned(
        self,
        x: Float[Tensor, "row head token width"],
        index: Int[Tensor, "row token"],
        back: bool = False,
    ) -> Float[Tensor, "row head token width"]:
        """Return vectors rotated as the attention layer rotates real tokens, or rotated back."""
        cos, sin = self._planes(index)
        if back:
            cos, sin = cos / self.size**2, -sin / self.size**2
        return self.turn(x.float(), cos.float(), sin.float()).to(x.dtype)

    def _planes(self, index: Tensor) -> tuple[Tensor, Tensor]:
        assert self.angle is not None
        at = self.phase[:, None] + index[..., None] * self.angle
        return self.size * at.cos(), self.size * at.sin()

    def over_rows(self, change: Callable[[Tensor], Tensor]) -> "Rotation":
        """Return the rotation of other rows."""
        return replace(self, phase=change(self.phase))


@dataclass(frozen=True, eq=False)
class Coming(ComingRotation):
    """The rotation of the queries that follow the first ``total`` tokens of each row.

    Parameters
    ----------
    rotation : Rotation
    total : Int[Tensor, "row"]
    width : int
    """

    rotation: Rotation
    total: Int[Tensor, "row"]
    width: int

    def each(self, n: int) -> Float[Tensor, "row next width width2"]:
        """Return the rotation matrix of a query at each of the next ``n`` positions."""
        cos, sin = self._planes(n)
        matrices = [self._matrix(cos[:, i], sin[:, i]) for i in range(n)]
        return torch.stack(matrices, 1)

    def mean(self, n: int) -> Float[Tensor, "row width width2"]:
        """Return the mean matrix of ``each``, since rotation is linear in cosines and sines."""
        cos, sin = self._planes(n)
        return self._matrix(cos.mean(1), sin.mean(1))

    def _planes(self, n: int) -> tuple[Tensor, Tensor]:
        steps = torch.arange(n, device=self.total.device)
        return self.rotation._planes(self.total[:, None] + steps)

    def _matrix(self, cos: Tensor, sin: Tensor) -> Tensor:
        eye = torch.eye(self.width, device=cos.device)[None, None].expand(len(cos), -1, -1, -1)
        each = (x.float()[:, None].expand(-1, self.width, -1) for x in (cos, sin))
        return self.rotation.turn(eye, *each)[:, 0].mT


def turn_of(attention: nn.Module, named: dict[str, Any]) -> Turn | None:
    """Measure an attention layer's rotation on the states of a call, or None if it has none.

    Parameters
    ----------
    attention : nn.Module
    named : dict
        The arguments of the call, without a cache.

    Raises
    ------
    SiteError
        If it rotates in a way that is not known here.
    """
    given, module = named.get(GIVEN), sys.modules[type(attention).__module__]
    if given is None and not any("rotary" in name.lower() for name in vars(module)):
        return None
    own = getattr(module, TURN, None)
    takes = own is not None and list(inspect.signature(own).parameters)[:4] == [
        "q",
        "k",
        "cos",
        "sin",
    ]
    if not isinstance(given, tuple) or given[0].ndim != 3 or not takes:
        raise SiteError(_unknown(attention))
    cos, sin = (x[:1, -1:].float() for x in cast("tuple[Tensor, Tensor]", given))
    angle = torch.atan2(sin, cos) + 1  # the first token has an angle of 0
    cos, sin = (x.to(given[0]) for x in (angle.cos(), angle.sin()))
    turned = _query(attention, named, (cos, sin))
    plain = _query(attention, named, (torch.ones_like(cos), torch.zeros_like(sin)))
    if torch.equal(turned, plain):
        return None
    width = plain.shape[-1]
    for size in (width, cos.shape[-1]):
        turn = partial(_turned, own, size)
        try:
            again = turn(plain.float(), cos.float(), sin.float())
        except RuntimeError:  # the function wants the part that is rotated
            continue
        if torch.allclose(again, turned.float(), rtol=1e-2, atol=1e-2 * float(turned.abs().max())):
            return turn
    raise SiteError(_unknown(attention))


def _turned(own: Any, size: int, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    part = own(x[..., :size], x[..., :size], cos, sin)[0]
    return torch.cat([part, x[..., size:]], -1)


class _Query(BaseException):
    """Exception that returns the query from inside an attention layer."""

    def __init__(self, query: Tensor) -> None:
        self.query = query


def _query(attention: nn.Module, named: dict[str, Any], planes: tuple[Tensor, Tensor]) -> Tensor:
    """Return an attention layer's query of a call's last column, rotated by ``planes``."""

    def take(
        kernel: Any, implementation: str, module: nn.Module, query: Tensor, *_: Any, **__: Any
    ):
        raise _Query(query)

    alone = {k: x for k, x in named.items() if k != GIVEN} | {
        "hidden_states": named["hidden_states"][:1, -1:]
    }
    alone["attention_mask"] = None
    try:
        with torch.no_grad(), kernels_through(take):
            attention.forward(**alone, **{GIVEN: planes})
    except _Query as found:
        return found.query
    raise SiteError(_unknown(attention))


def _wrapped(x: Tensor) -> Tensor:
    return torch.remainder(x + torch.pi, 2 * torch.pi) - torch.pi


def _unknown(attention: nn.Module) -> str:
    return (
        f"caching: {type(attention).__name__} rotates its queries in an unknown way, so the "
        "rotation cannot be undone. Use a rule or a packing that needs no rotation."
    )
