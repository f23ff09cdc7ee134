"""Measure how a model's answers change when one unit is held at its largest value."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.batch import SiteSchema
from sonde.core.errors import InputError
from sonde.core.inputs import InputBatch, Model
from sonde.stats.divergence import kl_divergence
from sonde.tap.hand.restart import record_forward
from sonde.tap.model.probe import find_logits
from sonde.tap.model.watch import watch
from sonde.tap.streams.site_function import arguments_of

AT_ONCE = 64
NAMED = 5


@dataclass(frozen=True, eq=False)
class Clamped:
    """Mean change of log-probabilities over some examples, for each unit that was clamped.

    ``up`` and ``down`` are the classes or tokens that gain and lose most, ``rise`` and ``fall`` are
    their changes; ``divergence`` is ``KL(clamped || own)`` of the answers, in nats.
    """

    units: Sequence[int]
    level: Float[Tensor, "unit"]
    divergence: Float[Tensor, "unit"]
    up: Int[Tensor, "unit token"]
    rise: Float[Tensor, "unit token"]
    down: Int[Tensor, "unit token"]
    fall: Float[Tensor, "unit token"]


Moved = Callable[[Tensor, Sequence[int], Tensor], Tensor]
"""Rows (place, dim), units and their levels -> rows (unit, place, dim) with each clamped."""


def clamp_units(
    model: Model,
    examples: Sequence[InputBatch],
    site: SiteSchema,
    units: Sequence[int],
    level: Float[Tensor, "unit"],
    moved: Moved | None = None,
) -> Clamped:
    """Rerun the model from a site on, with one unit at a time held at its level in all positions.

    Parameters
    ----------
    model : Model
    examples : sequence of InputBatch
        Each with a single example; the answer is the prediction at its last token.
    site : SiteSchema
    units : sequence of int
    level : Float[Tensor, "unit"]
    moved : callable, optional
        Clamps features of a dictionary in place of units.

    Raises
    ------
    InputError
        If the model gives no logits.
    """
    change, rises = moved or _clamped, []
    far = torch.zeros(len(units), dtype=torch.float64)
    where = site.axes.split().index("dim")
    for example in examples:
        last = -1 if example.mask is None else int(example.mask[0].nonzero()[-1])
        args, kwargs = arguments_of(model.module, example)
        with torch.no_grad():
            run = record_forward(model, *args, **kwargs)
            own = _answer(run.output, last)
            states = watch(model.module, example, [site.site]).tensors[str(site.site)]
            rows = states.movedim(where, -1)
            parts: list[Tensor] = []
            for start in range(0, len(units), AT_ONCE):
                cut = slice(start, start + AT_ONCE)
                flat = change(rows.reshape(-1, rows.shape[-1]), units[cut], level[cut])
                new = flat.reshape(-1, *rows.shape[1:]).movedim(-1, where)
                parts.append(_answer(run.from_site(site.site, new.to(states)), last))
        answer = torch.cat(parts)
        far += kl_divergence(answer, own) / len(examples)
        rises.append(answer - own)
    rise = torch.stack(rises).mean(0)
    n = min(NAMED, rise.shape[1])
    up, down = rise.topk(n, dim=1), rise.topk(n, dim=1, largest=False)
    return Clamped(list(units), level, far, up.indices, up.values, down.indices, down.values)


def _clamped(rows: Tensor, units: Sequence[int], level: Tensor) -> Tensor:
    new = rows.repeat(len(units), 1, 1)
    index = torch.arange(len(units))
    new[index, :, torch.tensor(units)] = level.to(rows)[:, None]
    return new


def _answer(output: object, place: int) -> Float[Tensor, "row token"]:
    logits = find_logits(output)
    if logits is None:
        raise InputError(
            "units: expected a model that returns logits to compare, got a model without logits."
        )
    last = logits[:, place] if logits.ndim == 3 else logits
    return last.double().log_softmax(-1).cpu()
