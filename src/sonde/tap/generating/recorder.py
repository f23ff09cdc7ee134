"""Record rows during generation, equal to one forward pass over the whole texts.

Every call of the model is one stretch of positions: the prompts, then the next tokens. The ids
that the model was given are kept beside the rows; if the ids do not spell the sequences, the rows
are thrown away.
"""

import inspect
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sonde.tap.generating.growing import Marks, Stretch, growing
from sonde.tap.hooks.cache import cache_argument
from sonde.tap.hooks.outputs import find
from sonde.tap.hooks.session import Session
from sonde.tap.model.placement import placement
from sonde.tap.rows.frame import Frame
from sonde.tap.rows.kind import Kind, at_site
from sonde.tap.rows.reduce import Reduction

REDUCERS = ("mean", "last", "cls", "tokens")


@dataclass(frozen=True)
class RecordedOutput:
    """An output of a module (its first floating-point tensor, or ``key``), and its reduction."""

    module: nn.Module
    key: str | None
    reduction: Reduction


class StepRecorder:
    """Reduces the outputs of some modules call by call during generation.

    Parameters
    ----------
    root : nn.Module
    tapped_sites : mapping of name to RecordedOutput
    marks : Marks
        Of the prompts.
    length : int
        The most tokens of a text.
    """

    def __init__(
        self, root: nn.Module, tapped_sites: Mapping[str, RecordedOutput], marks: Marks, length: int
    ) -> None:
        self.root, self.marks = root, marks
        self.grown = {
            name: growing(tapped.reduction, length) for name, tapped in tapped_sites.items()
        }
        self.calls = dict.fromkeys(tapped_sites, 0)
        self.stretches: list[Stretch] = []
        self.ids: list[Tensor] = []
        self.aligns = True
        self.session = Session(
            root,
            outputs=[
                (s.module, partial(self._take, name, s.key)) for name, s in tapped_sites.items()
            ],
            inputs=[(root, self._take_ids)],
        )

    def _take_ids(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids, prompts = kwargs.get("input_ids"), self.marks.shape
        if not self.aligns or not isinstance(ids, Tensor) or len(ids) != prompts[0]:
            self.aligns = False
            return
        if not self.ids and ids.shape != prompts:
            self.aligns = False
            return
        self.stretches.append(self.marks.stretch(ids))
        self.ids.append(ids.detach().clone())

    def _take(self, name: str, key: str | None, output: Any) -> None:
        if not self.aligns:
            return
        leaf, self.calls[name] = find(output, key), self.calls[name] + 1
        stretch = self.stretches[-1]
        if leaf is None or leaf.shape[:-1] != stretch.real.shape:
            self.aligns = False
        elif self.calls[name] == len(self.stretches):
            self.grown[name].take(leaf.detach(), stretch)

    def last_token(self, sequences: Tensor, mask: Tensor, cache: Any) -> None:
        """Run the model with its cache on the last token, which ``generate`` did not read."""
        device, _ = placement(self.root)
        seen = torch.ones_like(mask)
        first = mask.argmax(dim=1, keepdim=True)
        seen[torch.arange(mask.shape[1]) < first] = 0
        kwargs: dict[str, Any] = {
            "input_ids": sequences[:, -1:].to(device),
            "attention_mask": seen.to(device),
            cache_argument(self.root): cache,
            "use_cache": True,
        }
        if "position_ids" in inspect.signature(self.root.forward).parameters:
            kwargs["position_ids"] = (seen.sum(dim=1, keepdim=True) - 1).to(device)
        with self.session:
            self.session.run((), kwargs)

    def rows(self, frame: Frame) -> dict[str, tuple[Tensor, Hashable]] | None:
        """Return rows and layout of every site, or None if the calls do not match the sequences."""
        once = all(n == len(self.stretches) for n in self.calls.values())
        if not (self.aligns and once and self.ids):
            return None
        if not torch.equal(torch.cat(self.ids, dim=1).cpu(), frame.batch.kwargs["input_ids"]):
            return None
        rows_of: dict[str, tuple[Tensor, Hashable]] = {}
        for name, grown in self.grown.items():
            with at_site(name):
                rows = grown.rows(frame)
            if rows is None:
                return None
            rows_of[name] = rows
        return rows_of


def may_record(kinds: Sequence[Kind]) -> bool:
    """Return whether rows of these kinds can be computed position by position."""
    return all(map(_is_plain, kinds))


def _is_plain(kind: Kind) -> bool:
    is_output = kind.site.port == "out" and kind.site.call is None
    reduction = kind.reduction
    in_order = reduction.axes.words == ("row", "pos", "dim")
    return is_output and in_order and reduction.reducer.name in REDUCERS
