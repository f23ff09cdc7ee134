"""Sites of a model and its teacher that losses read or change during training."""

import inspect
import threading
import weakref
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sonde.core.errors import InputError, SiteError, SondeError, StateError
from sonde.core.site import ATTENTION_PORTS, WEIGHT, Reducer
from sonde.core.token_masks import MaskMeaning
from sonde.tap.attention.opening import watch_attention
from sonde.tap.hooks.latest import caller
from sonde.tap.hooks.names import ModuleNames
from sonde.tap.hooks.outputs import (
    arguments,
    decodes,
    find,
    find_input,
    known_names,
    replaced,
)
from sonde.tap.hooks.port_view import PortView
from sonde.tap.hooks.session import Followed, Session
from sonde.tap.hooks.stack import in_checkpoint
from sonde.tap.model.axes import Axes
from sonde.tap.model.shown_axes import axes_here
from sonde.tap.model.sites import places_of, port_of, resolve
from sonde.tap.model.time_first import rows_first
from sonde.tap.rows.reduce import NARROW, Reduction
from sonde.tap.training.ordinary_tokens import GivenInputs
from sonde.tap.training.place import Changing, Place, TrainedForward

TEACHER = "teacher:"
DECODER_MASK = "decoder_attention_mask"
_LOOKS: ContextVar[bool] = ContextVar("sonde_training_looks", default=False)
"""Set while forwards of a few rows find out which tokens are patches."""


class Places:
    """Hooks at sites of a model and its teacher; rows keep their autograd graph.

    Parameters
    ----------
    module : nn.Module
    teacher : nn.Module or None
        Runs after each forward of ``module`` with gradients, on the same arguments.
    special_ids : collection of int, default=()
        Ids of tokens that a mean leaves out.
    here : bool, default=False
        Read the forwards of the thread or task that opens the places alone.

    Attributes
    ----------
    outside : set of str
        Names of places that ran outside of a forward of ``module``.
    recomputed : set of str
        Names of places that ran without gradients, to be run anew in the backward pass.
    changes_in_eval : bool
        Whether changes act in forwards of a model in eval mode too.
    """

    def __init__(
        self,
        module: nn.Module,
        teacher: nn.Module | None,
        special_ids: Collection[int] = (),
        *,
        here: bool = False,
    ) -> None:
        self.module, self._teacher, self._special_ids = module, teacher, special_ids
        self._places: dict[tuple[str, Reducer | None, bool, bool], Place] = {}
        self._patches: dict[Place, Axes | None] = {}
        self._meaning, self._here = MaskMeaning(), here
        self._lock, self._looking = threading.Lock(), threading.Lock()
        self._open: list[Session] = []
        self._own: Session | None = None
        self._active: list[Place] = []
        self._waiting: list[tuple[weakref.ref[object], TrainedForward]] = []
        self._collected: list[tuple[weakref.ref[object], TrainedForward]] = []
        self._evaluator: object = None
        self.outside, self.recomputed = set[str](), set[str]()
        self.changes_in_eval = False

    @property
    def n_hooks(self) -> int:
        """Number of sites read or changed at present."""
        return len(self._active) if self._open else 0

    def add(
        self,
        pattern: str,
        reducer: Reducer | None,
        change: Changing | None = None,
        *,
        before: bool = False,
    ) -> Place:
        """Return the place of a site, shared by losses that read it with equal options.

        Raises
        ------
        InputError
            If it is a teacher's and there is none.
        SiteError
            If the pattern names no site or several, or a port that cannot be read or changed.
        """
        of_teacher = pattern.startswith(TEACHER)
        root = self._teacher if of_teacher else self.module
        if root is None:
            raise InputError(f"training: {pattern!r} needs teacher=, the model to read it from.")
        path, names = pattern.removeprefix(TEACHER), ModuleNames(root)
        sites = places_of(path, names) if port_of(path) == WEIGHT else resolve(root, path)
        if len(sites) != 1:
            some = ", ".join(map(str, sites[:4]))
            raise SiteError(
                f"training: expected one site, got {len(sites)} for {pattern!r}: {some}."
            )
        (site,) = sites
        if site.port == "grad":
            raise SiteError(f"training: expected states or a weight, got the gradient {site}.")
        if change is not None and (site.port != "out" or of_teacher):
            raise SiteError(
                "training: expected a site of the model with port out for a loss that "
                f"changes states, got {pattern}."
            )
        name = (TEACHER if of_teacher else "") + str(site)
        key = name, reducer, change is not None, before
        if change is not None and key in self._places:
            raise InputError(
                f"training: expected at most one loss that changes the states of {name}, got two."
            )
        owner = names.modules[site.path]
        place = Place(name, site, owner, root, reducer, of_teacher, change, before)
        return self._places.setdefault(key, place)

    def open(self, places: Iterable[Place]) -> None:
        """Register hooks at these positions only: early reads, changes, reads."""
        self.close()
        in_forward = (place for place in places if place.site.port != WEIGHT)
        self._active = sorted(in_forward, key=lambda p: (not p.is_before, p.change is None))
        for root in (self._teacher, self.module):
            own = [place for place in self._active if place.root is root]
            is_teacher = root is self._teacher
            if root is None or (is_teacher and not own) or not self._active:
                continue
            ports = [
                (place.module, place.site.port, partial(self._after, place))
                for place in own
                if place.site.port in ATTENTION_PORTS
            ]
            session = Session(
                root,
                outputs=[(p.module, partial(self._after, p)) for p in own if p.site.port == "out"],
                inputs=[(p.module, partial(self._before, p)) for p in own if p.site.port == "in"],
                reading=is_teacher,
                follows=[] if is_teacher else [Followed(root, self._begin, self._finish)],
                inside=watch_attention(ports, here=self._here),
                owner="training",
                here=self._here,
                restores=False,  # a teacher's buffers may follow the student's
            )
            session.__enter__()
            self._open.append(session)
            self._own = self._own if is_teacher else session

    def close(self) -> None:
        """Remove all hooks."""
        self._own = None
        while self._open:
            self._open.pop().__exit__(None, None, None)

    @contextmanager
    def reading(self, places: Iterable[Place]) -> Iterator[None]:
        """Read these positions, also without gradients; on exit restore the previous positions."""
        was_open, before = bool(self._open), self._active
        self._evaluator = caller()
        try:
            self.open(places)
            yield
        finally:
            self._evaluator = None
            self.close()
            if was_open:
                self.open(before)
            self.forget()

    @property
    def n_waiting(self) -> int:
        """Forward passes of the running thread or task that wait for their loss."""
        me = caller()
        with self._lock:
            return sum(who() is me for who, _ in self._waiting)

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Collect waiting forward passes for a block; if it raises, they wait again."""
        self.collect()
        try:
            yield
        except BaseException:
            with self._lock:
                self._waiting = [*self._collected, *self._waiting]
            self._clear()
            raise

    def collect(self) -> None:
        """Add the rows of waiting forward passes to the views of their positions.

        These are the forwards of the running thread or task; if it made none, those of all others.
        """
        me = caller()
        with self._lock:
            chosen = self._chosen()
            own = any(who() is me for who, _ in chosen)
            left = [one for one in self._waiting if all(one is not other for other in chosen)]
            # What callers left behind that are gone would never be asked for.
            self._waiting = [one for one in left if not own or one[0]() is not None]
        self._collected += chosen
        for _, forward in chosen:
            for place in self._active:
                if place.change is None and not forward.give(place):
                    break  # the forward was ended early

    @property
    def n_collected(self) -> int:
        """Forwards with gradients whose rows are in the views of the positions."""
        return len(self._collected)

    def forget(self) -> None:
        """Drop the rows that the running thread or task read."""
        me = caller()
        with self._lock:
            self._waiting = [one for one in self._waiting if one[0]() is not me]
        self.outside.clear()
        self.recomputed.clear()
        self._clear()

    def _clear(self) -> None:
        self._collected = []
        for place in self._places.values():
            place.views, place.masks = [], []

    def _chosen(self) -> list[tuple[weakref.ref[object], TrainedForward]]:
        me = caller()
        return [one for one in self._waiting if one[0]() is me] or list(self._waiting)

    @property
    def _evaluates(self) -> bool:
        return self._evaluator is not None and self._evaluator is caller()

    @property
    def _reads(self) -> bool:
        return not _LOOKS.get() and (torch.is_grad_enabled() or self._evaluates)

    @property
    def _state(self) -> TrainedForward | None:
        """The forward pass of the model that runs in this context."""
        return None if self._own is None else self._own.state

    def _hears(self, place: Place) -> bool:
        """Return whether rows are collected now; record why not, for an error without rows."""
        if _LOOKS.get():
            return False
        if not (self._reads or place.is_teachers):
            if in_checkpoint():
                if place.change is not None:
                    raise _changed_once(place)
                self.recomputed.add(place.name)
            return False
        if self._state is None and place.change is None:
            self.outside.add(place.name)
            return False
        return True

    def not_called(self, names: Iterable[str]) -> StateError:
        """Return the error for positions that ran outside a forward pass of the model."""
        return StateError(
            f"training: {', '.join(names)} ran, but the {type(self.module).__name__} that "
            "sonde.training was opened on was not called itself, so that inputs and padding are "
            "unknown. Call the model, or open sonde.training on the module that you call."
        )

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TrainedForward | None:
        if _LOOKS.get():
            return None
        if (outer := self._state) is not None:
            outer.has_inner = True
        named = arguments(self.module, args, kwargs)
        target = named.get(DECODER_MASK)
        masks = {
            "pos": self._meaning.real_in(named, known_names(self.module)),
            "pos2": None if target is None else target != 0,
        }
        given = GivenInputs.of(args, kwargs, masks, self._special_ids)
        if self._reads:
            self._look(given)
        return TrainedForward(given, masks, decodes(self.module, named), named)

    def _look(self, given: GivenInputs) -> None:
        """Find the non-patch tokens of a mean once, by forward passes of a few rows."""
        if all(p in self._patches for p in self._active if p.is_mean):
            return
        with self._looking:
            new = [p for p in self._active if p.is_mean and p not in self._patches]
            for root in dict.fromkeys(place.root for place in new):
                own = [place for place in new if place.root is root]
                token = _LOOKS.set(True)
                try:
                    axes = given.patch_axes(root, (place.site for place in own))
                finally:
                    _LOOKS.reset(token)
                self._patches |= {place: axes.get(place.site) for place in own}

    def _after(self, place: Place, output: Any) -> Any:
        if not self._hears(place):
            return None
        now = self._state
        if place.change is not None:
            return self._changed(now, place, output)
        assert now is not None  # it is heard
        if isinstance(output, PortView) and place.is_map:
            now.keep(place, *self._map(now, place, output))
        else:
            leaf = find(output, place.site.key)
            real = None if leaf is None or place.reducer is not None else now.real(place, leaf)
            now.keep(place, None if leaf is None else self._rows(now, place, leaf, output), real)
        return None

    def _before(self, place: Place, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._hears(place):
            now = self._state
            assert now is not None  # it is heard
            leaf = find_input(place.module, args, kwargs, place.site.key)[1]
            now.keep(place, self._rows(now, place, leaf, leaf), None)

    def _changed(self, now: TrainedForward | None, place: Place, output: Any) -> Any:
        """Return the output with changed states, if the model is in training mode."""
        leaf = find(output, place.site.key)
        acts = self.module.training or (self.changes_in_eval and not self._evaluates)
        if not acts or leaf is None:
            return None
        if in_checkpoint():
            raise _changed_once(place)
        assert place.change is not None
        x = rows_first(leaf, place.module, place.root, {} if now is None else now.named)
        given = None if now is None else ((), now.named)
        axes = axes_here(x, place.module, place.root, given)
        dim = axes.words.index("dim") if "dim" in axes.words else x.ndim - 1
        takes = "real" in inspect.signature(place.change.change).parameters
        marks = {"real": None if now is None else now.real(place, x)} if takes else {}
        new = place.change.change(x.movedim(dim, -1), **marks).movedim(-1, dim)
        return replaced(output, leaf, new if x is leaf else new.transpose(0, 1))

    def _finish(self, forward: TrainedForward) -> None:
        """Store the rows of a forward pass that has gradients, and run the teacher."""
        if not self._reads or (forward.has_inner and not forward.brought):
            return  # the model called itself, and that call was read
        reading = [place for place in self._active if place.change is None]
        if self._teacher is not None and any(place.is_teachers for place in reading):
            given = forward.given.batch
            try:
                with torch.no_grad():
                    self._teacher(*given.args, **given.kwargs)
            except SondeError:
                raise
            except Exception as error:
                raise InputError(
                    f"training: the teacher {type(self._teacher).__name__} does not accept "
                    f"the arguments of the model's call: {error}. Wrap the teacher in a "
                    "module that accepts them."
                ) from error
        with self._lock:
            self._waiting.append((weakref.ref(caller()), forward))

    def _rows(self, now: TrainedForward, place: Place, x: Tensor, output: Any) -> Tensor:
        """Return the rows of a state now, since a later module may overwrite it."""
        wide = x.float() if x.dtype in NARROW else x
        if place.reducer is None:
            return wide.clone()
        key = place.site.key
        x, wide = (rows_first(y, place.module, place.root, now.named, key) for y in (x, wide))
        axis = 2 if place.site.port in ATTENTION_PORTS else place.reducer.axis
        site = place.site
        axes = axes_here(x, place.module, place.root, ((), now.named), axis, site.port, site.key)
        of_encoder = isinstance(output, PortView) and output.of_encoder
        if now.has_target(place, of_encoder=of_encoder):
            axes = Axes(tuple("pos2" if word == "pos" else word for word in axes.words))
        of_patches = self._patches.get(place)
        real = now.masks["pos"]
        if of_patches is not None and (real is None or real.shape[1] != x.shape[1]):
            axes = of_patches
        return Reduction(place.reducer, axes)(wide, now.frame(x))[0]

    def _map(self, now: TrainedForward, place: Place, view: PortView) -> tuple[Tensor, Tensor]:
        """Return probabilities, (example, head, query, key), and the keys visible to each query."""
        heads = slice(None) if place.site.key is None else [int(place.site.key)]
        probs = view.x[:, :, heads].transpose(1, 2)
        probs = probs.float() if probs.dtype in NARROW else probs
        seen = torch.ones_like(probs[:, :1], dtype=torch.bool)
        if view.in_sight is not None:
            mask = view.in_sight
            seen = seen & (mask[:, heads] if mask.shape[1] > 1 else mask)
        real = now.masks["pos2" if now.has_target(place, of_encoder=False) else "pos"]
        if real is not None and real.shape[1] == probs.shape[2]:
            seen = seen & real[:, None, :, None].to(seen.device)
        return probs, seen


def _changed_once(place: Place) -> StateError:
    return StateError(
        f"training: {place.name} is recomputed in the backward pass (torch.utils.checkpoint), "
        "where the states are not changed, so the gradient would be wrong. Switch "
        "checkpointing off, as with model.gradient_checkpointing_disable()."
    )
