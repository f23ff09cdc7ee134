"""Models cut at a site: the front runs up to the site, the back continues from given states."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde import InputError, Model, Tap, editing, gather, read
from sonde.core import Replace
from sonde.data import ItemInputs, open_inputs
from sonde.measure import stitch
from sonde.tap import place_of
from sonde_studies.parts.figures import check_order, error_of
from sonde_studies.parts.heads import linear_head
from sonde_studies.parts.owners import groups_told, judges, owners_of, parted

MOST_CUTS = 6
EITHER = "the front or the back differs"
ADVICE = {
    EITHER: (
        "The states of the fronts say equally much, and one back does badly: it is damaged, or its "
        "own front gives states that it cannot read. Compare with an earlier copy of the same "
        "model, which needs no map: that tells which.",
    ),
    "the front differs": (
        "The map to the states of a worse front passes on no more than that front knows: the table "
        "cannot say whether the backs differ as well.",
    ),
}
"""What to say beside a verdict that was reached through a map."""
LEAST = 0.05
"""Accuracy of heads by which fronts must differ at least: heads of equal fronts differ a little."""


@dataclass(eq=False)
class HalfModel:
    """A classifier that can stop at a site and continue from there.

    Parameters
    ----------
    model : Model
    inputs : ItemInputs
    site : str
        Where it is cut.
    held : Int[Tensor, "example"]
        Numbers of the examples that ``back`` runs on.
    """

    model: Model
    inputs: ItemInputs
    site: str
    held: Int[Tensor, "example"]

    def front(self, examples: Int[Tensor, "example"]) -> Float[Tensor, "place dim"]:
        """Return the states at the site, one row for each token or position of each example."""
        parts = list[Tensor]()
        for args, kwargs in self._calls(examples):
            with Tap(self.model, self.site) as tap:
                self.model.module(*args, **kwargs)
            (states,) = tap.rows.values()
            parts.append(_features_last(states).flatten(0, -2).float())
        return torch.cat(parts)

    def back(self, states: Float[Tensor, "place dim"]) -> Float[Tensor, "example class"]:
        """Return the logits of the test examples for given states at the site."""
        parts, used = list[Tensor](), 0
        for args, kwargs in self._calls(self.held):
            with Tap(self.model, self.site) as tap:
                self.model.module(*args, **kwargs)
            (own,) = tap.rows.values()
            shape = _features_last(own).shape
            n = shape[:-1].numel()
            if used + n > len(states):
                raise InputError(
                    f"expected models that see the same tokens or places, got {len(states)} rows "
                    f"of states for more than that at {self.site}. Give models of one tokenizer."
                )
            given = states[used : used + n].reshape(shape)
            used += n
            with editing(self.model, Replace(given), self.site):
                parts.append(_logits(self.model.module(*args, **kwargs)))
        return torch.cat(parts)

    def labels(self) -> Int[Tensor, "example"]:
        """Return the classes of the test examples, in the order of ``back``."""
        return torch.cat([batch.label for batch in self._batches(self.held)])

    def _calls(self, examples: Tensor) -> Any:
        batches = self._batches(examples)
        place = place_of(self.model.module, batches[0])
        return (place.call(batch.args, batch.kwargs) for batch in batches)

    def _batches(self, examples: Tensor) -> list[Any]:
        part = self.inputs.at(examples.numpy())
        return list(part.batches(0, len(part)))


@dataclass(frozen=True, eq=False)
class Cut:
    """Models that are each cut at a site, with examples for fitting maps and for testing.

    Parameters
    ----------
    sites : list of str
        Where each model is cut.
    halves : list of HalfModel
    fit, held : Int[Tensor, "example"]
        Numbers of the examples.
    label : Int[Tensor, "example"]
        Classes of the held examples.
    label_names : tuple of str
    groups : dict of str to str
        The fact about groups that an answer states.
    """

    sites: list[str]
    halves: list[HalfModel]
    fit: Int[Tensor, "example"]
    held: Int[Tensor, "example"]
    label: Int[Tensor, "example"]
    label_names: tuple[str, ...]
    groups: dict[str, str]

    def stitched(self, recipe: str, how: Literal["map", "none"] = "map") -> Any:
        """Return the accuracy of each front on each back, from ``sonde.measure.stitch``.

        Raises
        ------
        InputError
            If no model as it is does better than half of chance.
        """
        fronts, backs = [h.front for h in self.halves], [h.back for h in self.halves]
        found = stitch(fronts, backs, self.fit, self.held, self.label, how)
        check_order(recipe, float(found.accuracy.diagonal().max()), self.label_names)
        return found

    def widths(self) -> set[int]:
        """Return the number of units at each model's site."""
        return {half.front(self.held[:2]).shape[1] for half in self.halves}


def cuts_of(
    recipe: str,
    models: list[Model],
    data: Any,
    sites: str,
    seed: int,
    *,
    group_column: str | None = None,
    limit: int | None = None,
    **options: Any,
) -> list[Cut]:
    """Return the models cut at each depth; half of the groups fit, one row of each other tests.

    Parameters
    ----------
    recipe : str
        Named in errors.
    models : list of Model
    data : data
    sites : str
        "auto", up to six equal shares of the depth; or a site for all models, or a site for each
        with commas between them.
    seed : int
        Draws the halves.
    group_column : str, optional
        Column of the group, if its name is not "group".
    limit : int, optional
        Read only the first examples.
    **options
        Others of ``open_inputs``.
    """
    owner = owners_of(data, group_column, limit)
    options |= {"group_column": group_column, "limit": limit}
    inputs = [open_inputs(model, data, **options) for model in models]
    if len({len(part) for part in inputs}) > 1 or len(inputs[0]) < 40:
        raise InputError(
            f"{recipe}: expected 40 or more examples that all models read whole, got "
            f"{', '.join(str(len(part)) for part in inputs)}."
        )
    groups = owner[inputs[0].source_rows]
    first, rest = parted(groups, 0.5, np.random.default_rng(seed))
    fit, held = torch.from_numpy(first), torch.from_numpy(judges(groups, rest))
    found, label = list[Cut](), None
    for named in _places(models, data, sites, **options):
        each = zip(models, inputs, named, strict=True)
        halves = [HalfModel(model, x, site, held) for model, x, site in each]
        label = halves[0].labels() if label is None else label
        names = tuple(inputs[0].label_names)
        found.append(Cut(named, halves, fit, held, label, names, groups_told(owner)))
    if label is None or bool((label < 0).any()):
        n = 0 if label is None else int((label < 0).sum())
        raise InputError(
            f"{recipe}: expected labelled examples, got {n} without a label. Look at label_column."
        )
    return found


def is_one_origin(table: Tensor, n_classes: int) -> bool:
    """Return whether parts fit without a map: a swap in each pair still classifies.

    Where one part of one model is damaged, the swap that leaves this part out answers well.
    """
    chance, n = 1 / max(n_classes, 2), len(table)
    for a in range(n):
        for b in range(a):
            best = float(table[[a, b], [a, b]].max())
            if float(table[[a, b], [b, a]].max()) < chance + 0.5 * (best - chance):
                return False
    return True


def read_fronts(
    models: Sequence[Model], cut: Cut, data: Any, progress: bool, **options: Any
) -> dict[int, Any]:
    """Return the test examples that a linear head on each front's states gets right."""
    found = dict[int, Any]()
    for number, (model, site) in enumerate(zip(models, cut.sites, strict=True)):
        rows = gather(read(model, data, sites=site, logits=False, **options), progress)
        x, label = rows.last.numpy(), rows.label.numpy()
        fit, held = cut.fit.numpy(), cut.held.numpy()
        head = linear_head().fit(x[fit], label[fit])
        found[number] = (head.predict(x[held]) == label[held]) * 1.0
    return found


def which_differs(found: Any, noise: float, heads: list[Any]) -> str:
    """Return the part, front or back, that accounts for the difference.

    With a map, fronts are compared by their heads. Backs are not: the map to the states of a front
    that its back cannot read passes on what this back cannot read either, and the back looks bad.
    """
    front, back = (float(v.max() - v.min()) for v in (found.front, found.back))
    if heads:
        pairs = [a - b for i, a in enumerate(heads) for b in heads[:i]]
        if any(abs(float(p.mean())) > max(3 * error_of(p), LEAST) for p in pairs):
            return "the front differs"
        if back > noise:
            return EITHER
    elif max(front, back) > noise:
        return "the front differs" if front > back else "the back differs"
    return "they do not fit" if float(found.null - found.value) > noise else "they are alike"


def _places(models: list[Model], data: Any, sites: str, **options: Any) -> list[list[str]]:
    """Return the sites at which each model may be cut, without the last."""
    if sites != "auto":
        named = sites.split(",") if "," in sites else [sites] * len(models)
        if len(named) != len(models):
            raise InputError(f"sites: expected one site, or {len(models)}, got {len(named)}.")
        return [named]
    depth = [[s.key for s in read(m, data, check=False, **options).schema] for m in models]
    n = min(MOST_CUTS, *(len(keys) - 1 for keys in depth))
    if n < 1:
        raise InputError("expected models of two blocks or more. Name the sites: --sites.")
    shares = [(i + 1) / (n + 1) for i in range(n)]
    return [[keys[max(0, round(s * len(keys)) - 1)] for keys in depth] for s in shares]


def _features_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1) if x.ndim == 4 else x


def _logits(said: Any) -> Tensor:
    said = getattr(said, "logits", said)
    return said.float()
