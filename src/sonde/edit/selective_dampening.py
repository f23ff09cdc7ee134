"""Unlearning in one pass: shrink the weights that matter mainly to the forget examples.

For classifiers and language models whose training data, or squared gradients of it, are at hand.
Where the model fits its data to a loss near zero, gradients are noise: look at ``loss_all``.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.inputs import Inputs, Model
from sonde.core.ranges import check_ranges
from sonde.tap import SquaredGradients, require_measured_on, squared_gradients
from sonde.weights import Change, Examples, Rewrite, RewritePlan, Sparse, module_of

SHARE = 0.35


@final
@dataclass(frozen=True)
class SelectiveDampening(Rewrite):
    """Shrink the weights whose Fisher information is concentrated on the forget examples.

    A weight with ``I_forget > alpha I_all`` becomes ``min(strength I_all / I_forget, 1)`` of what
    it was, where ``I`` is the mean over examples of the squared gradient of one example's loss.
    The forget examples are part of all, so ``I_forget <= (n_all / n_forget) I_all``: an ``alpha``
    of ``n_all / n_forget`` or more selects nothing.

    Range        weights only shrink, and keep their sign.
    Cost         one backward pass over the data, once; state 8 bytes for each weight and side.
    Assumes      both sides read at the same weights; a training loss that is not near zero.
    Differs      from the reference: gradients of single examples (the reference squares the mean
                 over a batch, so its numbers depend on the batch size), and ``alpha`` relative to
                 its bound, since the published 10 selects nothing if one of ten classes is
                 forgotten.

    Parameters
    ----------
    alpha : float, optional
        How much more a weight must matter to the forget examples; ``max(1, 0.35 n_all /
        n_forget)`` by default.
    strength : float, default=1.0
        Factor of what is left of a selected weight; smaller forgets more.

    Examples
    --------
    >>> from sonde.data import open_inputs
    >>> import torch
    >>> draw = torch.Generator().manual_seed(0)
    >>> rows = [{"x": torch.randn(4, generator=draw), "label": i % 3} for i in range(60)]
    >>> from torch import nn
    >>> model = Model(nn.Sequential(nn.Linear(4, 3)))
    >>> sides = {"forget": rows[0::3], "retain": rows[1::3] + rows[2::3]}
    >>> data = {name: open_inputs(model, side) for name, side in sides.items()}
    >>> plan = SelectiveDampening().plan(model, data)
    >>> 0 < plan.figures["share_changed"] < 1
    True

    References
    ----------
    foster2024ssd
    """

    alpha: float | None = None
    strength: float = 1.0
    paper: ClassVar[str] = "foster2024ssd"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"alpha": 1.0, "strength": 0.5})

    def __post_init__(self) -> None:
        check_ranges(self, alpha="> 0", strength=">= 0")

    def reads(self) -> dict[str, Examples]:
        """Read both sides, or their squared gradients; ``all`` includes the forget examples."""
        other = Examples(optional=True, summed=SquaredGradients)
        return {"forget": Examples(summed=SquaredGradients), "retain": other, "all": other}

    def planned(
        self,
        model: Model,
        forget: Inputs | SquaredGradients,
        retain: Inputs | SquaredGradients | None,
        all: Inputs | SquaredGradients | None,
    ) -> RewritePlan:
        """Return the changes that shrink weights.

        Raises
        ------
        InputError
            If ``alpha`` cannot select anything, or a side is empty.
        StateError
            If a state was taken at other weights.
        """
        part = _squares(model, "forget", forget)
        if all is not None:
            whole = _squares(model, "all", all)
        elif retain is not None:
            whole = part.merge(_squares(model, "retain", retain))
        else:
            raise InputError(
                "SelectiveDampening.plan: expected a dict with 'forget' and 'retain', or 'all' in "
                "place of 'retain', as fitted, got no 'retain'. Pass the examples to keep."
            )
        ratio = whole.n / part.n
        if whole.n <= part.n:
            raise InputError(
                "SelectiveDampening.plan: expected fewer forget examples than examples in all, got "
                f"{part.n} of {whole.n}. Add the examples to retain."
            )
        alpha = max(1.0, SHARE * ratio) if self.alpha is None else self.alpha
        if alpha >= ratio:
            raise InputError(
                f"SelectiveDampening.plan: expected alpha below {ratio:.4g} (examples in all "
                f"over forget examples), got {alpha:.4g}. No weight can matter that much more "
                f"to a part than to the whole: use at most {SHARE * ratio:.3g}, or leave alpha "
                "out."
            )
        return self._dampened(model, part, whole, alpha)

    def _dampened(
        self,
        model: Model,
        forget: SquaredGradients,
        whole: SquaredGradients,
        alpha: float,
    ) -> RewritePlan:
        of_part, of_all = forget.means(), whole.means()
        changes: dict[str, Change] = {}
        n_changed = n_weights = 0
        every = dict(module_of(model).named_parameters(remove_duplicate=False))
        own = {id(every[name]): name for name in of_part}
        for name, weight in every.items():
            of_one = own.get(id(weight))
            if of_one is None:
                continue
            change, n = self._change(weight, of_part[of_one], of_all[of_one], alpha)
            changes |= {} if n == 0 else {name: change}
            if name == of_one:
                n_changed, n_weights = n_changed + n, n_weights + weight.numel()
        return RewritePlan.of(
            model,
            changes,
            f"selective_dampening(alpha={alpha:.4g}, strength={self.strength:g})",
            alpha=alpha,
            share_changed=n_changed / max(1, n_weights),
            loss_forget=forget.mean_loss,
            loss_all=whole.mean_loss,
        )

    def _change(
        self, weight: Tensor, of_part: Tensor, of_all: Tensor, alpha: float
    ) -> tuple[Sparse, int]:
        """Return the change of a tensor, and the number of its changed entries."""
        index = (of_part > alpha * of_all).flatten().nonzero()[:, 0]
        left = (self.strength * of_all.flatten()[index] / of_part.flatten()[index]).clamp(max=1.0)
        values = weight.detach().double().flatten()[index.to(weight.device)] * left.to(
            weight.device
        )
        return Sparse(index.cpu(), values.cpu()), len(index)


def _squares(model: Model, name: str, side: Inputs | SquaredGradients) -> SquaredGradients:
    """Return the squared gradients of a side, computed at the model's weights.

    Raises
    ------
    StateError
        If they were taken at other weights.
    """
    state = side if isinstance(side, SquaredGradients) else squared_gradients(model, side)
    require_measured_on(
        model.module,
        state.model,
        f"SelectiveDampening.plan: the squared gradients of {name!r}",
        "squared_gradients",
    )
    return state
