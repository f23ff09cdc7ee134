"""Models that are cut at a site: the front runs up to there, the back goes on from given states."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde import InputError, Model, Tap, editing, read
from sonde.core import Replace
from sonde.data import ItemInputs, open_inputs
from sonde.tap import place_of

MOST_CUTS = 6


@dataclass(eq=False)
class HalfModel:
    """A classifier that can be stopped at a site and continued from there.

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
        """Return the states at the site, one row for each token or place of each example."""
        parts = list[Tensor]()
        for args, kwargs in self._calls(examples):
            with Tap(self.model, self.site) as tap:
                self.model.module(*args, **kwargs)
            (states,) = tap.rows.values()
            parts.append(_features_last(states).flatten(0, -2).float())
        return torch.cat(parts)

    def back(self, states: Float[Tensor, "place dim"]) -> Float[Tensor, "example class"]:
        """Return the logits of the held examples if the site has these states."""
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
        """Return the classes of the held examples, in the order of ``back``."""
        return torch.cat([batch.label for batch in self._batches(self.held)])

    def _calls(self, examples: Tensor) -> Any:
        batches = self._batches(examples)
        place = place_of(self.model.module, batches[0])
        return (place.call(batch.args, batch.kwargs) for batch in batches)

    def _batches(self, examples: Tensor) -> list[Any]:
        part = self.inputs.at(examples.numpy())
        return list(part.batches(0, len(part)))


def halves_of(
    models: list[Model], data: Any, seed: int, **options: Any
) -> tuple[list[ItemInputs], list[Tensor]]:
    """Return the data as inputs of each model, and the examples that fit a map and that judge."""
    inputs = [open_inputs(model, data, **options) for model in models]
    if len({len(part) for part in inputs}) > 1 or len(inputs[0]) < 40:
        raise InputError(
            "expected 40 or more examples that all models read whole, got "
            f"{', '.join(str(len(part)) for part in inputs)}."
        )
    order = np.random.default_rng(seed).permutation(len(inputs[0]))
    sides = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
    return inputs, [torch.from_numpy(side) for side in sides]


def cuts_of(models: list[Model], data: Any, sites: str, **options: Any) -> list[list[str]]:
    """Return where each model may be cut, at equal shares of its depth, the last place left out.

    Parameters
    ----------
    models : list of Model
    data : data
    sites : str
        "auto", or a site for all models, or one for each with commas between them.
    """
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
