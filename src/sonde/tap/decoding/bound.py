"""A decoding rule inside one model's ``generate``, as a ``LogitsProcessor``."""

import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import LogitsProcessor

from sonde.core.errors import InputError, ShapeError
from sonde.core.inputs import Model
from sonde.core.model_config import is_encoder_decoder
from sonde.core.site import Site
from sonde.tap.decoding.context import DecodeContext, OtherLogits, OtherState
from sonde.tap.decoding.last_states import LastStates
from sonde.tap.decoding.layers import ModelBlocks
from sonde.tap.decoding.other_run import OtherRun
from sonde.tap.decoding.own_calls import ASIDE, OwnCalls
from sonde.tap.decoding.prompts import Rewording
from sonde.tap.decoding.vocabulary import check_vocabulary
from sonde.tap.hooks.session import check_readable
from sonde.tap.model.sites import resolve

if TYPE_CHECKING:
    from sonde.tap.decoding.rule import Decode

Read = OtherLogits | OtherState


class BoundRule(LogitsProcessor):
    """Result of ``Decode.bind``: computes the rule's log-probabilities.

    Parameters
    ----------
    rule : Decode
    model : Model or nn.Module

    Attributes
    ----------
    close : callable
        Takes the hooks off the model; they also come off when the processor is deleted.
    """

    def __init__(self, rule: "Decode", model: Model | nn.Module) -> None:
        self.rule = rule
        own, *others = _grouped(rule.reads(), model)
        self._own, self._calls = own, OwnCalls(own.module, own.states)
        for group in others:
            group.check(own, model)
        self._now, self._ends = _Generation(others), end_tokens(own.module)
        self.close = weakref.finalize(self, _remove, self._calls.hooked())

    def __enter__(self) -> "BoundRule":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(
        self, input_ids: Int[Tensor, "row pos"], scores: Float[Tensor, "row token"]
    ) -> Float[Tensor, "row token"]:
        """Return the changed scores of the next token."""
        mask, states, begins = self._calls.take(input_ids)
        now = self._now
        token = ASIDE.set(True)
        try:
            now.follow(input_ids, mask, begins or len(now.texts) != len(input_ids))
        finally:
            ASIDE.reset(token)
        others = self._own.values(scores, states)
        for group, run in now.others:
            others |= group.values(run.logits, run.kept)
        others = {name: x.to(scores) for name, x in others.items()}
        new = self.rule.step(scores, DecodeContext(others, input_ids, mask, now.step, self._ends))
        if new is scores:
            return scores
        if new.shape != scores.shape:
            raise ShapeError(
                f"{type(self.rule).__name__}.step: expected shape {tuple(scores.shape)}, got "
                f"{tuple(new.shape)}. A rule keeps the shape of the logits."
            )
        return new.log_softmax(dim=-1)


def end_tokens(module: nn.Module) -> tuple[int, ...]:
    """Return the ids at which a model's own settings end a text."""
    configured = getattr(getattr(module, "generation_config", None), "eos_token_id", None)
    several = configured if isinstance(configured, list | tuple) else [configured]
    return tuple(int(i) for i in several if i is not None)


class _Generation(threading.local):
    """The generation in this thread: its texts, and the other runs that read them."""

    def __init__(self, groups: "Sequence[_Group]") -> None:
        self.others = [(g, OtherRun(g.module, g.prompt, g.states)) for g in groups]
        self.texts = self.origins = torch.empty(0)
        self.step = 0

    def follow(self, ids: Tensor, mask: Tensor, begins: bool) -> None:
        """Let the other runs read the new tokens, each row after the row that it continues."""
        texts = ids.masked_fill(~mask, -1)
        if not begins:
            before = torch.cat((self.origins, self.texts), dim=1)
            parent = _parents(before, torch.cat((self.origins, texts[:, :-1]), dim=1))
            begins = parent is None
            if parent is not None:
                moved = None if torch.equal(parent, torch.arange(len(ids)).to(parent)) else parent
                for _, run in self.others:
                    run.go_on(ids[:, -1], moved)
        if begins:
            for _, run in self.others:
                run.begin(ids, mask)
            origins = [run.origin().to(ids) for _, run in self.others]
            self.origins = torch.stack(origins, 1) if origins else ids.new_empty(len(ids), 0)
        self.step = 0 if begins else self.step + 1
        self.texts = texts


def _parents(before: Tensor, now: Tensor) -> Int[Tensor, "row"] | None:
    """Return the earlier row that each row continues, or None if a row continues none."""
    if torch.equal(before, now):
        return torch.arange(len(now), device=now.device)
    same = (now[:, None] == before[None]).all(dim=2)
    return same.to(torch.uint8).argmax(dim=1) if bool(same.any(dim=1).all()) else None


class _Group:
    """The logits and states that a rule reads from a model after one kind of prompt."""

    def __init__(
        self, model: Model | nn.Module, prompt: Rewording | None, reads: Mapping[str, Read]
    ) -> None:
        self.module = model.module if isinstance(model, Model) else model
        self.model, self.prompt, self._reads = model, prompt, reads
        check_readable(self.module)
        self._layers = ModelBlocks(self.module)
        sites: dict[str, Site] = {}
        for name, read in reads.items():
            if isinstance(read, OtherState):
                sites[name] = _lone(resolve(self.module, read.site), read.site)
            elif read.layer is not None:
                sites[name] = self._layers.site(read.layer)
        if any(isinstance(reads[name], OtherLogits) for name in sites):
            self._layers.check()
        self.states = LastStates(self.module, sites)

    def values(self, logits: Tensor, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the values read, by name."""
        logits_of: dict[str, Tensor] = {}
        for name, read in self._reads.items():
            x = states.get(name, logits)
            is_layer = isinstance(read, OtherLogits) and read.layer is not None
            logits_of[name] = self._layers.logits(x) if is_layer else x
        return logits_of

    def check(self, own: "_Group", model: Model | nn.Module) -> None:
        """Raise if a model cannot read the texts of the generating model."""
        for module in (own.module, self.module):
            if is_encoder_decoder(getattr(module, "config", None)):
                raise InputError(
                    f"Decode: expected causal language models, got {type(module).__name__}, "
                    "an encoder-decoder model, whose decoder does not read the prompt."
                )
        check_vocabulary(model, self.model)


def _grouped(reads: Mapping[str, Read], model: Model | nn.Module) -> list[_Group]:
    """Return a group for the generating model's own calls, then one for each other run."""
    groups: dict[tuple[int, int], tuple[Any, Any, dict[str, Read]]] = {}
    own = model.module if isinstance(model, Model) else model
    groups[id(own), id(None)] = (model, None, {})
    for name, read in reads.items():
        its = model if read.model is None else read.model
        module = its.module if isinstance(its, Model) else its
        key = id(module), id(read.prompt)
        groups.setdefault(key, (its, read.prompt, {}))[2][name] = read
    return [_Group(its, prompt, named) for its, prompt, named in groups.values()]


def _lone(sites: Sequence[Site], pattern: str) -> Site:
    if len(sites) == 1 and sites[0].port in ("in", "out"):
        return sites[0]
    raise InputError(
        f"OtherState: expected a single module with port in or out, got {pattern!r}, which names "
        f"{', '.join(map(str, sites))}."
    )


def _remove(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()
