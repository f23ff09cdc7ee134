"""Run a live model with activations changed at some sites."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sonde.core.autocast import without_autocast
from sonde.core.edit import Edit, EditContext
from sonde.core.errors import InputError, ShapeError, SiteError
from sonde.core.inputs import Model
from sonde.core.site import ATTENTION_PORTS, Site
from sonde.tap.attention.opening import watch_attention
from sonde.tap.attention.places import what_runs
from sonde.tap.hand.edited_call import EditedCall, Recorded
from sonde.tap.hand.features_last import FeaturesLast
from sonde.tap.hand.gate import Gate
from sonde.tap.hand.texts import GrowingTexts, TextLog
from sonde.tap.hand.where import TermPlaces, Where
from sonde.tap.hooks.call import CallArguments, encoder_of
from sonde.tap.hooks.latest import Latest
from sonde.tap.hooks.names import ModuleNames
from sonde.tap.hooks.outputs import find, find_input, replaced, with_input
from sonde.tap.hooks.port_view import PortView
from sonde.tap.hooks.session import (
    Followed,
    Session,
    check_readable,
    open_sessions,
)
from sonde.tap.hooks.stack import in_assisted_decoding, require_one_run
from sonde.tap.model.sites import Pattern, resolve
from sonde.tap.rows.reduce import NARROW

NO_CONTEXT = EditContext()


@contextmanager
def editing(
    model: Model | nn.Module,
    edit: Edit,
    sites: Pattern | Iterable[Pattern],
    where: Where = "all",
    *,
    gate: Gate | None = None,
    others: Recorded | None = None,
    cache: Literal["refuse", "keep"] = "refuse",
    here: bool = False,
) -> Iterator[None]:
    """Apply an edit at some sites of a live model inside a ``with`` block.

    Padding is never edited. States of half precision are edited in float32 and rounded once. A
    module that runs several times is edited at each call unless ``@call`` is given. Taps, also
    those opened before, read what the next module receives. Every call of the model is edited,
    whichever thread or task makes it.

    Parameters
    ----------
    model : Model or nn.Module
        Model to edit; it is restored at the end of the block.
    edit : Edit
        Edit of the activations.
    sites : pattern, Site, or several
        Every port but ``grad``. If ``probs`` of an attention are edited, its heads are the edited
        probabilities times the values. Edited keys and values go into the cache.
    where : str, TokenIds, or a sequence of these and of positions, default="all"
        Tokens that are edited. ``prompt`` is what the first call reads, ``generated`` the tokens
        that later calls add to it; ``last`` is the last token of the prompt; positions count the
        tokens of a document from 0, without padding. Several terms add up their tokens.
    gate : Gate, optional
        Decides for each example whether the edit acts at all.
    others : mapping of str to mapping of site to Tensor, optional
        What other runs brought, such as ``{"clean": tap.rows}`` of a ``Tap`` without a reducer, at
        the edited sites. The edit finds it in ``context.others``, an example for each of this run.
    cache : {"refuse", "keep"}, default="refuse"
        What to do with a key-value cache that was filled without the edit; ``keep`` leaves the
        tokens in it unedited.
    here : bool, default=False
        Edit the calls of the thread or task that opens the block alone.

    Raises
    ------
    StateError
        If an edited module is recomputed in the backward pass (``torch.utils.checkpoint``): the
        edit would be missing there.
    SiteError
        If the model is called with a key-value cache that was filled before, a site never runs, or
        ``where`` selects no token of any call.

    Examples
    --------
    >>> from sonde.core.edit import Scale
    >>> net = nn.Sequential(nn.Identity(), nn.Identity())
    >>> with editing(net, Scale(3.0), "0"):
    ...     net(torch.ones(1, 2)).tolist()
    [[3.0, 3.0]]
    >>> same = nn.Sequential(nn.Linear(2, 2, bias=False))
    >>> _ = nn.init.eye_(same[0].weight)
    >>> with editing(same, Scale(3.0), "0", where="last"):
    ...     same(torch.ones(1, 2, 2)).tolist()
    [[[1.0, 1.0], [3.0, 3.0]]]
    """
    if cache not in ("refuse", "keep"):
        raise InputError(f"editing: expected cache to be 'refuse' or 'keep', got {cache!r}.")
    module = model.module if isinstance(model, Model) else model
    check_readable(module, sharded=True)
    resolved = resolve(module, sites)
    editor = _Editor(module, edit, resolved, TermPlaces.of(where), gate, others or {}, here=here)
    editor.keeps_cache = cache == "keep"
    with editor.session:
        for session in open_sessions():
            if session.reading:
                session.move_to_end()
        yield
    editor.check_acted()


@dataclass(frozen=True, eq=False)
class OpenEdit:
    """An open edit, for an engine that runs the tokens elsewhere and applies the edit there.

    Parameters
    ----------
    edit : Edit
    sites : tuple of Site
    places : TermPlaces
        Tokens that are edited.
    depends_on_text : bool
        Whether a gate or states of other runs decide what is edited.
    """

    edit: Edit
    sites: tuple[Site, ...]
    places: TermPlaces
    depends_on_text: bool


@dataclass(eq=False)
class _Spot:
    """A site of the model, and its number of calls so far."""

    site: Site
    name: str
    module: nn.Module
    in_encoder: bool
    in_all: int = 0
    acted: bool = False


@dataclass(eq=False)
class _EditedForward:
    """A running call of the model, or of its encoder alone.

    Attributes
    ----------
    call : EditedCall or None
        None while an encoder runs alone.
    encoding : EditedCall or None
        The call of the encoder whose states are read.
    in_call : dict of str to int
        How often each site ran, by its name.
    """

    call: EditedCall | None
    encoding: EditedCall | None
    with_grad: bool
    in_call: dict[str, int] = field(default_factory=dict[str, int])


class _Editor:
    """Applies one edit to running calls."""

    def __init__(
        self,
        root: nn.Module,
        edit: Edit,
        sites: list[Site],
        places: TermPlaces,
        gate: Gate | None,
        others: Recorded,
        *,
        here: bool = False,
    ) -> None:
        if any(site.port == "grad" for site in sites):
            raise SiteError("editing: gradients cannot be edited. Use the port 'out' or 'in'.")
        self.edit, self.places, self.gate = edit, places, gate
        self.recorded, self.keeps_cache = others, False
        self.modules = ModuleNames(root).modules
        self.root = self.modules[""]
        self.encoder = encoder_of(self.root)
        self.spots = [self._spot(site) for site in sites]
        self.log, self.here, self._lock = TextLog(), here, threading.Lock()
        self.encodings: Latest[EditedCall] = Latest()
        self.outside = _EditedForward(None, None, with_grad=False)
        self.asked: list[_Spot] = []
        self.session = self._session(root)

    def _spot(self, site: Site) -> _Spot:
        module = self.modules[site.path]
        inside = () if self.encoder is None else self.encoder.modules()
        return _Spot(site, str(site), module, any(m is module for m in inside))

    def _session(self, root: nn.Module) -> Session:
        outputs: list[Any] = []
        inputs: list[Any] = []
        inside: list[Any] = []
        follows = [Followed(self.root, self._begin, self._finish)]
        if self.encoder is not None:
            follows.append(Followed(self.encoder, self._begin_encoder, self._finish))
        hooked = [(spot, self._after, self._before) for spot in self.spots]
        if self.gate is not None:
            asked = self.spots[0].site if self.gate.site is None else self.gate.site
            self.asked = [self._spot(site) for site in resolve(root, asked)]
            hooked = [(spot, self._take, self._take_input) for spot in self.asked] + hooked
        for spot, after, before in hooked:
            port = spot.site.port
            if port == "in":
                inputs.append((spot.module, partial(before, spot)))
            elif port == "out":
                outputs.append((spot.module, partial(after, spot)))
            else:
                inside.append((spot.module, port, partial(after, spot)))
        outputs.append((self.root, self._end))
        return Session(
            self.root,
            outputs,
            inputs,
            reading=False,
            follows=follows,
            inside=watch_attention(inside, edits=True, here=self.here),
            owner="editing",
            here=self.here,
            by_row=bool(self.recorded),
            change=OpenEdit(
                self.edit,
                tuple(spot.site for spot in self.spots),
                self.places,
                depends_on_text=self.gate is not None or bool(self.recorded),
            ),
        )

    @property
    def _asks_for_prompts(self) -> bool:
        """True if the edit depends on the end of the prompt."""
        return self.gate is not None or bool(self.places.words - {"all"})

    def check_acted(self) -> None:
        """Raise if the model ran but a site never did, or no token was selected."""
        n_calls = self.session.n_followed
        silent = [spot.name for spot in self.spots if n_calls and not spot.in_all]
        if silent:
            raise SiteError(
                f"editing: {', '.join(silent)} never ran, so the edit had no effect there. "
                f"Name {what_runs([spot.site for spot in self.spots])}."
            )
        idle = [spot.name for spot in self.spots if n_calls and not spot.acted]
        if idle:
            raise SiteError(
                f"editing: where={self.places} selected no token at {', '.join(idle)}, so the "
                "edit had no effect there. Select tokens that occur in the calls."
            )

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _EditedForward:
        call = CallArguments(self.root, args, kwargs)
        texts = self.log.begin(call, keep=self.keeps_cache)
        if texts is not None and not texts.step and self._asks_for_prompts:
            _require_prompt_alone(self.places, self.gate)
        if texts is None:
            raise SiteError(
                "editing: this key-value cache was filled without the edit, so earlier tokens "
                "would stay unedited. Start from an empty cache inside the with block, or pass "
                "cache='keep'."
            )
        encoding = self.encodings.get()
        self.outside = _EditedForward(None, None, with_grad=False)
        return _EditedForward(EditedCall(call, texts), encoding, torch.is_grad_enabled())

    def _begin_encoder(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> _EditedForward | None:
        assert self.encoder is not None  # it is followed
        call = CallArguments(self.encoder, args, kwargs, decoding=False)
        encoding = EditedCall(call, GrowingTexts.begun(call))
        around: _EditedForward | None = self.session.state
        if around is not None:
            around.encoding = encoding
            return None
        self.encodings.put(encoding)  # generate runs it alone, and then the decoder
        return _EditedForward(None, encoding, torch.is_grad_enabled())

    def _end(self, output: Any) -> None:
        forward: _EditedForward | None = self.session.state
        if forward is not None and forward.call is not None:
            self.log.end(output, forward.call.texts)

    def _finish(self, forward: _EditedForward) -> None:
        forward.call = forward.encoding = None

    def _forward(self) -> _EditedForward:
        """Return the call running in this context; the user may call parts by themselves."""
        running = self.session.state
        return self.outside if running is None else running

    def _is_turn(self, spot: _Spot) -> bool:
        """Return whether to edit this call of a module, and count the call."""
        in_call = self._forward().in_call
        call = in_call[spot.name] = in_call.get(spot.name, -1) + 1
        wanted = spot.site.call
        if wanted == "last":
            raise SiteError(
                "editing: @last cannot be edited, because a call is known to be the last only "
                "after it has ended. Write @0 or @1."
            )
        return not isinstance(wanted, int) or wanted == call

    def _take(self, spot: _Spot, output: Any) -> None:
        self._decide(spot, find(output, spot.site.key))

    def _take_input(self, spot: _Spot, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._decide(spot, find_input(spot.module, args, kwargs, spot.site.key)[1])

    def _decide(self, spot: _Spot, leaf: Tensor | None) -> None:
        """Let the gate decide on the prompts; generated tokens follow its decision."""
        now = self._now(spot)
        if leaf is None or now is None or self.gate is None or now.texts.step:
            return
        with without_autocast(leaf.device), torch.no_grad():
            rows = self.gate.rows(leaf, now.call, spot.site, spot.module, self.root)
            now.asked[spot.name] = rows
            if len(now.asked) == len(self.asked):
                states = [now.asked[each.name] for each in self.asked]
                now.texts.decided = self.gate.decide(states)

    def _after(self, spot: _Spot, output: Any) -> Any:
        if not self._is_turn(spot):
            return None
        leaf = find(output, spot.site.key)
        if leaf is None:
            raise SiteError(f"editing: {spot.name!r} returned no such floating-point tensor.")
        of_encoder = isinstance(output, PortView) and output.of_encoder
        new = self._changed(leaf, spot, of_encoder=of_encoder)
        return None if new is leaf else replaced(output, leaf, new)

    def _before(self, spot: _Spot, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._is_turn(spot):
            return None
        _, leaf = find_input(spot.module, args, kwargs, spot.site.key)
        new = self._changed(leaf, spot)
        return None if new is leaf else with_input(args, kwargs, leaf, new)

    def _now(self, spot: _Spot) -> EditedCall | None:
        """Return the call that contains a module's states."""
        forward = self._forward()
        return forward.encoding if spot.in_encoder else forward.call

    def _changed(self, leaf: Tensor, spot: _Spot, *, of_encoder: bool = False) -> Tensor:
        """Return the edited activation, or ``leaf`` itself if nothing changes."""
        now = self._forward().encoding if of_encoder else self._now(spot)
        axis = 2 if spot.site.port in ATTENTION_PORTS else None
        call = None if now is None else now.call
        where = spot.site.port, spot.site.key
        view = FeaturesLast.of(leaf, spot.module, self.root, call, axis, *where)
        new = self._edited(view.x, spot, now, view.has_tokens)
        return leaf if new is view.x else view.back(new)

    def _edited(self, x: Tensor, spot: _Spot, now: EditedCall | None, has_tokens: bool) -> Tensor:
        """Return the edited activation, features last, or ``x`` itself if nothing changes."""
        site = spot.site
        with self._lock:
            n_before, spot.in_all = spot.in_all, spot.in_all + 1
        selected = self._selected(x, site, now, has_tokens)
        if selected is False:
            return x
        spot.acted = True
        require_one_run(f"editing: {spot.name}", self._forward().with_grad)
        share = None if self.gate is None else self._through_gate(x, site, now)
        if share is not None:
            if not bool(share.any()):
                return x
            selected = (share > 0) & selected
        context = NO_CONTEXT if now is None else now.context(x, has_tokens, n_before)
        if self.recorded and now is not None:
            of, per = self.recorded, self.edit.others_per
            context = replace(context, others=now.others(of, spot.name, x, context, per))
        wide = x.float() if x.dtype in NARROW else x
        with without_autocast(x.device):
            new = self.edit.apply(wide, site, context)
        if new is wide:
            return x
        if new.shape != wide.shape or new.dtype != wide.dtype:
            raise ShapeError(
                f"{type(self.edit).__name__}.apply: expected shape {tuple(x.shape)} and "
                f"{wide.dtype}, got {tuple(new.shape)} and {new.dtype} at {site}. "
                "An edit keeps shape and type."
            )
        if share is not None:
            new = torch.lerp(wide, new, share.to(new))
        new = new.to(x.dtype)
        return new if selected is True else torch.where(selected, new, x)

    def _selected(
        self, x: Tensor, site: Site, now: EditedCall | None, has_tokens: bool
    ) -> Tensor | bool:
        """Return the entries that may change: all, none, or a mask that broadcasts to ``x``."""
        if has_tokens and now is None:
            raise SiteError(
                f"editing: {site} ran outside a call of {type(self.root).__name__}, so it is not "
                "known which of its tokens are padding. Open the edit on the module that you "
                "call."
            )
        if has_tokens and now is not None:
            return now.selected(self.places, x)
        padded = now is not None and now.call.mask is not None and not bool(now.call.mask.all())
        if padded and now is not None and now.is_gathered(x):
            raise SiteError(
                f"editing: {site} reads {len(x)} rows, which are neither one for each example "
                "nor one for each token, so it is not known which rows are padding. Run texts "
                "of the same length, or name a module that reads all tokens."
            )
        if not self.places.is_all:
            raise SiteError(
                f"editing: where={self.places} needs states of tokens, got shape "
                f"{tuple(x.shape)} at {site}. Use where='all'."
            )
        return True

    def _through_gate(self, x: Tensor, site: Site, now: EditedCall | None) -> Tensor:
        """Return the gate's opening for each example, in [0, 1], broadcastable to ``x``."""
        if now is None:
            raise SiteError(
                f"editing: {site} ran outside a call of {type(self.root).__name__}, so the "
                "gate does not know which example each state belongs to. Open the edit on "
                "the module that you call."
            )
        return now.gated(len(x), x.device).view(-1, *[1] * (x.ndim - 1))


def _require_prompt_alone(places: TermPlaces, gate: Gate | None) -> None:
    """Raise if the first call reads tokens of an assistant model after the prompt."""
    if in_assisted_decoding():
        asked = f"where={places}" if gate is None else "a gate"
        raise InputError(
            f"editing: {asked} needs only the prompt in the first call, but assisted decoding "
            "also reads proposed tokens after it. Leave out assistant_model and "
            "prompt_lookup_num_tokens, or use where='all' without a gate."
        )
