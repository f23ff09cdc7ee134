"""A fitted score that decides for each example whether an edit applies."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.core.site import Reducer, Site
from sonde.tap.hand.features_last import axes_in
from sonde.tap.hooks.call import CallArguments
from sonde.tap.model.axes import Axes
from sonde.tap.model.time_first import rows_first
from sonde.tap.rows.frame import Frame
from sonde.tap.rows.reduce import Reduction


@runtime_checkable
class Scores(Protocol):
    """Interface that scores rows, such as the ``Scorer`` of a fitted detector."""

    def score(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row"]:
        """Return a score for each row."""
        ...


@final
@dataclass(frozen=True, eq=False)
class Gate:
    """Apply an edit to the examples with a score above a threshold, or in proportion to it.

    An example's prompt decides, before it is edited; generated tokens follow that decision.

    Parameters
    ----------
    scorer : object with ``score(x) -> row``
        Scorer of a fitted detector, or any object that scores rows.
    threshold : float
        Score above which the edit applies.
    site : pattern, Site, or several, optional
        Where states are scored; by default the first site that is edited. It
        must run before the sites that are edited. The rows of several sites are joined, in the
        order in which they are named.
    reducer : str or Reducer, default="mean"
        Over the tokens of the prompt: ``mean``, ``last`` or ``cls``.
    full : float, optional
        Score from which on the edit acts fully; between ``threshold`` and ``full`` it acts in
        proportion. If ``full`` is below the threshold, low scores open the gate.

    Examples
    --------
    >>> import sonde
    >>> import torch
    >>> from sonde.core import Scale
    >>> class First:
    ...     def score(self, x):
    ...         return x[:, 0]
    >>> net = nn.Sequential(nn.Identity(), nn.Identity())
    >>> with sonde.editing(net, Scale(3.0), "1", gate=Gate(First(), 0.0, "0")):
    ...     net(torch.tensor([[1.0], [-1.0]])).tolist()
    [[3.0], [-1.0]]
    """

    scorer: Scores
    threshold: float
    site: str | Site | Sequence[str | Site] | None = None
    reducer: str | Reducer = "mean"
    full: float | None = None

    def __post_init__(self) -> None:
        if self.full == self.threshold:
            raise InputError(
                f"Gate: expected full to differ from the threshold, got {self.full} for both. "
                "Leave full out for a gate that is either open or closed."
            )

    def rows(
        self, x: Tensor, call: CallArguments, site: Site, module: nn.Module, root: nn.Module
    ) -> Float[Tensor, "example dim"]:
        """Return the row of each example in a site's raw output.

        Raises
        ------
        InputError
            If the reducer leaves several rows for an example.
        """
        reducer = Reducer(self.reducer) if isinstance(self.reducer, str) else self.reducer
        x = rows_first(x, module, root, call.named, site.key)
        axes = axes_in(call, x, module, root, reducer.axis, site.port, site.key)
        axes = Axes(tuple(call.axis if word == "pos" else word for word in axes.words))
        n = len(x.unbind()) if x.is_nested else len(x)
        frame = Frame(call.inputs(n, None), x.device)
        rows = Reduction(reducer, axes)(x.detach(), frame)[0]
        if len(rows) != n:
            raise InputError(
                f"Gate: expected one row for each of {n} examples, got {len(rows)} at {site}. A "
                "gate reduces the tokens of an example to one row: reducer mean, last or cls."
            )
        return rows

    def decide(self, rows: Sequence[Float[Tensor, "example _dim"]]) -> Float[Tensor, "example"]:
        """Return the edit's strength for each example, in [0, 1], from its rows at each site."""
        score = self.scorer.score(torch.cat([x.to(rows[0]) for x in rows], 1))
        if score.shape != (len(rows[0]),):
            raise InputError(
                f"{type(self.scorer).__name__}.score: expected one score for each of "
                f"{len(rows[0])} rows, got shape {tuple(score.shape)}."
            )
        if self.full is None:
            return (score > self.threshold).float()
        share = (score - self.threshold) / (self.full - self.threshold)
        return share.clamp(0.0, 1.0).float()
