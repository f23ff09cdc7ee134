"""Sites of a model, and of its teacher, that losses read or change while the model trains."""

import inspect
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from sonde.core.errors import InputError, SiteError, SondeError, StateError
from sonde.core.site import ATTENTION_PORTS, WEIGHT, Reducer, Site
from sonde.core.token_masks import MaskMeaning, find_mask
from sonde.tap.attention.opening import watch_attention
from sonde.tap.hooks.names import ModuleNames
from sonde.tap.hooks.outputs import arguments, decodes, find, find_input, replaced
from sonde.tap.hooks.port_view import PortView
from sonde.tap.hooks.session import Session, in_checkpoint
from sonde.tap.model.axes import Axes, guess_axes
from sonde.tap.model.sites import places_of, port_of, resolve
from sonde.tap.model.time_first import rows_first
from sonde.tap.rows.frame import Frame, unnamed
from sonde.tap.rows.reduce import NARROW, Reduction
from sonde.tap.training.ordinary_tokens import GivenInputs

TEACHER = "teacher:"
DECODER_MASK = "decoder_attention_mask"


@runtime_checkable
class Changing(Protocol):
    """A module that changes the states of a site while the model trains.

    Attributes
    ----------
    has_loss : bool
        Whether it is a loss too, of rows read at its other sites and of columns. With an attribute
        ``reads_changed`` that is True it takes the rows of the changed site too, as they were. With
        ``in_forward`` False it changes nothing, and is a loss alone.
    """

    has_loss: bool

    def change(self, x: Tensor) -> Tensor:
        """Return other states, examples first and units last.

        With an argument ``real`` it is told which positions (example, pos) are no padding.
        """
        ...


@dataclass(eq=False)
class Place:
    """A site, and what the forwards since the last loss brought there.

    Attributes
    ----------
    views : list of Tensor
        For each forward its rows; of ``probs`` the maps (example, head, query, key).
    masks : list of Tensor
        Of ``probs``, which keys each query may see; none for queries that are padding.
    now : list of (Tensor, Tensor or None)
        Rows and masks of the forward that runs, one for each call.
    change : Changing or None
    is_before : bool
        Whether it is read before anything changes the site.
    """

    name: str
    site: Site
    module: nn.Module
    root: nn.Module
    reducer: Reducer | None
    is_teachers: bool = False
    change: Changing | None = None
    is_before: bool = False
    views: list[Tensor] = field(default_factory=list[Tensor])
    masks: list[Tensor | None] = field(default_factory=list[Tensor | None])
    now: list[tuple[Tensor, Tensor | None]] = field(
        default_factory=list[tuple[Tensor, Tensor | None]]
    )

    @property
    def is_map(self) -> bool:
        """Whether it holds maps of attention: probabilities, not a figure of each head."""
        return self.site.port == "probs" and (self.site.key or "0").isdigit()

    @property
    def is_mean(self) -> bool:
        """Whether it holds a mean over tokens or places, along axes that nobody named."""
        how = self.reducer
        return self.change is None and how is not None and how.name == "mean" and how.axis is None

    @property
    def is_whole(self) -> bool:
        """Whether it holds states or maps as they are, not rows of one width."""
        return self.site.port != WEIGHT and (self.is_map or self.reducer is None)

    @property
    def brought(self) -> list[Tensor]:
        """What the forwards brought, or the parameter that it names, which no forward makes."""
        if self.site.port != WEIGHT:
            return self.views
        return [self.module.get_parameter(self.site.key or WEIGHT)]

    def take(self) -> bool:
        """Keep the chosen call of a forward as a view; return False if it did not run."""
        call = self.site.call
        if not self.now or (isinstance(call, int) and call >= len(self.now)):
            return False
        x, mask = self.now[call if isinstance(call, int) else -1]
        self.views.append(x)
        self.masks.append(mask)
        self.now = []
        return True


class Places:
    """Hooks at sites of a model and its teacher; rows keep their graph.

    Parameters
    ----------
    module : nn.Module
    teacher : nn.Module or None
        Runs after each forward of ``module`` with gradients, on the same arguments.
    special_ids : collection of int, default=()
        Ids of tokens that a mean leaves out.

    Attributes
    ----------
    n_forwards : int
        Forwards with gradients since what was read was dropped.
    outside : set of str
        Names of places that ran outside of a forward of ``module``.
    recomputed : set of str
        Names of places that ran without gradients, to be run anew in the backward pass.
    changes_in_eval : bool
        Whether changes act in forwards of a model in eval mode too.
    """

    def __init__(
        self, module: nn.Module, teacher: nn.Module | None, special_ids: Collection[int] = ()
    ) -> None:
        self.module, self._teacher, self._special_ids = module, teacher, special_ids
        self._places: dict[tuple[str, Reducer | None, bool, bool], Place] = {}
        self._masks: dict[str, Tensor | None] = {}
        self._given: GivenInputs | None = None
        self._frames: dict[tuple[Any, ...], Frame] = {}
        self._patches: dict[Place, Axes | None] = {}
        self._looks = False
        self._meaning, self._decodes = MaskMeaning(), False
        self._open: list[Session] = []
        self._active: list[Place] = []
        self.n_forwards, self._always = 0, False
        self.outside, self.recomputed = set[str](), set[str]()
        self.changes_in_eval = False

    @property
    def n_hooks(self) -> int:
        """Sites that are read or changed now."""
        return len(self._active) if self._open else 0

    def add(
        self,
        pattern: str,
        reducer: Reducer | None,
        change: Changing | None = None,
        *,
        before: bool = False,
    ) -> Place:
        """Return the place of a site, the same for losses that read it alike.

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
        found = places_of(path, names) if port_of(path) == WEIGHT else resolve(root, path)
        if len(found) != 1:
            some = ", ".join(map(str, found[:4]))
            raise SiteError(
                f"training: expected one site, got {len(found)} for {pattern!r}: {some}."
            )
        (site,) = found
        if site.port == "grad":
            raise SiteError(f"training: expected states or a weight, got the gradient {site}.")
        if change is not None and (site.port != "out" or of_teacher):
            raise SiteError(
                f"training: expected a site of the model with port out for what changes states, "
                f"got {pattern}."
            )
        name = (TEACHER if of_teacher else "") + str(site)
        key = name, reducer, change is not None, before
        if change is not None and key in self._places:
            raise InputError(f"training: expected one change at {name}, got two.")
        owner = names.modules[site.path]
        made = Place(name, site, owner, root, reducer, of_teacher, change, before)
        return self._places.setdefault(key, made)

    def open(self, places: Iterable[Place]) -> None:
        """Put hooks at these places and at no others: early reads, changes, reads."""
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
            inputs = [(p.module, partial(self._before, p)) for p in own if p.site.port == "in"]
            session = Session(
                root,
                outputs=[(p.module, partial(self._after, p)) for p in own if p.site.port == "out"],
                inputs=inputs if is_teacher else [(root, self._begin), *inputs],
                reading=is_teacher,
                finish=None if is_teacher else self._finish,
                inside=watch_attention(ports),
                owner="training",
            )
            session.__enter__()
            self._open.append(session)

    def close(self) -> None:
        """Take all hooks away."""
        while self._open:
            self._open.pop().__exit__(None, None, None)

    @contextmanager
    def reading(self, places: Iterable[Place]) -> Iterator[None]:
        """Read these places, without gradients too; on exit go back to the places before."""
        was_open, before = bool(self._open), self._active
        self._always = True
        try:
            self.open(places)
            yield
        finally:
            self._always = False
            self.close()
            if was_open:
                self.open(before)
            self.forget()

    @property
    def _reads(self) -> bool:
        return not self._looks and (self._always or torch.is_grad_enabled())

    def _hears(self, place: Place) -> bool:
        """Return whether rows count now; note why not, for the message of a loss without rows."""
        if self._looks:
            return False
        if not (self._reads or place.is_teachers):
            if in_checkpoint():
                if place.change is not None:
                    raise _changed_once(place)
                self.recomputed.add(place.name)
            return False
        if self._given is None and place.change is None:
            self.outside.add(place.name)
            return False
        return True

    def not_called(self, names: Iterable[str]) -> StateError:
        """Return the error of places that ran outside of a forward of the model."""
        return StateError(
            f"training: {', '.join(names)} ran, but the {type(self.module).__name__} that "
            "sonde.training was opened on was not called itself, so that inputs and padding are "
            "unknown. Call the model, or open sonde.training on the module that you call."
        )

    def forget(self) -> None:
        """Drop what was read."""
        self.n_forwards = 0
        self.outside.clear()
        self.recomputed.clear()
        for place in self._places.values():
            place.views, place.masks = [], []

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._looks:
            return
        named = arguments(self.module, args, kwargs)
        found, target = find_mask(named), named.get(DECODER_MASK)
        self._decodes = decodes(self.module, named)
        self._masks = {
            "pos": None if found is None else self._meaning.real_tokens(*found),
            "pos2": None if target is None else target != 0,
        }
        self._given = GivenInputs.of(args, kwargs, self._masks, self._special_ids)
        self._frames = {}
        for place in self._places.values():
            place.now = []
        if self._reads:
            self._look(self._given)

    def _look(self, given: GivenInputs) -> None:
        """Find out once, by forwards of a few rows, which tokens in a mean are no patches."""
        new = [p for p in self._active if p.is_mean and p not in self._patches]
        for root in dict.fromkeys(place.root for place in new):
            own = [place for place in new if place.root is root]
            self._looks = True
            try:
                found = given.patch_axes(root, (place.site for place in own))
            finally:
                self._looks = False
            self._patches |= {place: found.get(place.site) for place in own}

    def _after(self, place: Place, output: Any) -> Any:
        if not self._hears(place):
            return None
        if place.change is not None:
            return self._changed(place, output)
        if isinstance(output, PortView) and place.is_map:
            self._keep(place, *self._map(place, output))
        else:
            leaf = find(output, place.site.key)
            real = None if leaf is None or place.reducer is not None else self._real(place, leaf)
            self._keep(place, None if leaf is None else self._rows(place, leaf, output), real)
        return None

    def _before(self, place: Place, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._hears(place):
            leaf = find_input(place.module, args, kwargs, place.site.key)[1]
            self._keep(place, self._rows(place, leaf, leaf), None)

    def _changed(self, place: Place, output: Any) -> Any:
        """Return the output with changed states, if the model is in training mode."""
        leaf = find(output, place.site.key)
        acts = self.module.training or (self.changes_in_eval and not self._always)
        if not acts or leaf is None:
            return None
        if in_checkpoint():
            raise _changed_once(place)
        assert place.change is not None
        axes = guess_axes(leaf, place.module, place.root)
        dim = axes.words.index("dim") if "dim" in axes.words else leaf.ndim - 1
        takes = "real" in inspect.signature(place.change.change).parameters
        told = {"real": self._real(place, leaf)} if takes else {}
        new = place.change.change(leaf.movedim(dim, -1), **told).movedim(-1, dim)
        return replaced(output, leaf, new)

    def _real(self, place: Place, x: Tensor) -> Tensor | None:
        """Return which positions of states are no padding, if the forward was told a mask."""
        target = self._has_target(place, of_encoder=False)
        real = self._masks.get("pos2" if target else "pos")
        if real is None or x.is_nested or x.ndim < 3 or x.shape[:2] != real.shape:
            return None
        return real.to(x.device)

    def _keep(self, place: Place, x: Tensor | None, mask: Tensor | None) -> None:
        if x is None:
            raise SiteError(f"training: {place.name} returned no floating-point tensor.")
        if place.site.call is None and place.now:
            raise SiteError(
                f"training: {place.site.path} is called more than once in one forward. Write "
                f"{place.site.path}@0, @1, ..."
            )
        place.now.append((x, mask))

    def _finish(self) -> None:
        """Take the rows of a forward that gradients will run through, and forget its inputs."""
        if self._looks:
            return
        try:
            if self._reads:
                self._take()
        finally:
            self._given, self._masks = None, {"pos": None, "pos2": None}

    def _take(self) -> None:
        """Take the rows of a forward, and ask the teacher."""
        self.n_forwards += 1
        reading = [place for place in self._active if place.change is None]
        if self._teacher is not None and any(place.is_teachers for place in reading):
            assert self._given is not None
            given = self._given.batch
            try:
                with torch.no_grad():
                    self._teacher(*given.args, **given.kwargs)
            except SondeError:
                raise
            except Exception as error:
                raise InputError(
                    f"training: the teacher {type(self._teacher).__name__} does not take what the "
                    f"model is called with: {error}. Wrap it in a module that does."
                ) from error
        for place in reading:
            if not place.take():
                return  # the forward was ended early

    def _rows(self, place: Place, x: Tensor, output: Any) -> Tensor:
        """Return the rows of a state at once: a later module may write into it."""
        wide = x.float() if x.dtype in NARROW else x
        if place.reducer is None:
            return wide.clone()
        x, wide = (rows_first(y, place.module, place.root) for y in (x, wide))
        axis = 2 if place.site.port in ATTENTION_PORTS else place.reducer.axis
        axes = guess_axes(x, place.module, place.root, axis)
        of_encoder = isinstance(output, PortView) and output.of_encoder
        if self._has_target(place, of_encoder=of_encoder):
            axes = Axes(tuple("pos2" if word == "pos" else word for word in axes.words))
        told = self._patches.get(place)
        real = self._masks["pos"]
        if told is not None and (real is None or real.shape[1] != x.shape[1]):
            axes = told
        return Reduction(place.reducer, axes)(wide, self._frame(x))[0]

    def _frame(self, x: Tensor) -> Frame:
        """Return the examples of this forward, for all states of their length and device."""
        key = x.shape[0], 0 if x.is_nested or x.ndim < 2 else x.shape[1], x.device
        if key not in self._frames:
            assert self._given is not None
            batch = replace(unnamed(x.shape[0]), special=self._given.special_of(x))
            self._frames[key] = Frame(batch, x.device)
            self._frames[key].masks |= self._masks
        return self._frames[key]

    def _map(self, place: Place, view: PortView) -> tuple[Tensor, Tensor]:
        """Return probabilities, (example, head, query, key), and which keys a query may see."""
        heads = slice(None) if place.site.key is None else [int(place.site.key)]
        probs = view.x[:, :, heads].transpose(1, 2)
        probs = probs.float() if probs.dtype in NARROW else probs
        seen = torch.ones_like(probs[:, :1], dtype=torch.bool)
        if view.in_sight is not None:
            mask = view.in_sight
            seen = seen & (mask[:, heads] if mask.shape[1] > 1 else mask)
        real = self._masks["pos2" if self._has_target(place, of_encoder=False) else "pos"]
        if real is not None and real.shape[1] == probs.shape[2]:
            seen = seen & real[:, None, :, None].to(seen.device)
        return probs, seen

    def _has_target(self, place: Place, *, of_encoder: bool) -> bool:
        """Return whether the positions of a place are those of a decoder's own text."""
        return self._decodes and not (of_encoder or "encoder" in place.site.path.split("."))


def _changed_once(place: Place) -> StateError:
    return StateError(
        f"training: {place.name} is run anew in the backward pass (torch.utils.checkpoint), where "
        "nothing changes it, so the gradient would be wrong. Switch checkpointing off, as with "
        "model.gradient_checkpointing_disable()."
    )
