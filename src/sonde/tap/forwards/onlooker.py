"""Rows from forwards that somebody else makes: hooks that stay on while a model is in use.

A stream owns its forwards and a tap keeps the rows of one; this hands the rows of each forward,
with their columns, to a function as soon as the forward is over. Padding and key-value caches are
taken from the arguments of the call.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from sonde.core.batch import Batch, SiteSchema
from sonde.core.errors import InputError, SiteError, near
from sonde.core.inputs import Model
from sonde.core.perturbation import Perturbation
from sonde.core.site import ATTENTION_PORTS
from sonde.core.token_masks import MaskMeaning
from sonde.tap.attention.opening import watch_attention
from sonde.tap.forwards.backward import Backward
from sonde.tap.forwards.carried_logits import CarriedLogits
from sonde.tap.forwards.ends import Ends
from sonde.tap.forwards.lone_encoder import EncoderRun
from sonde.tap.forwards.perturbed_forward import in_perturbed_forward, moved_logits
from sonde.tap.forwards.watched_forward import WatchedForward, Watching
from sonde.tap.hooks.call import CallArguments
from sonde.tap.hooks.names import ModuleNames
from sonde.tap.hooks.outputs import copied, find, find_input
from sonde.tap.hooks.session import Session, check_readable
from sonde.tap.model.axes import Axes
from sonde.tap.rows.kind import Kind
from sonde.tap.rows.reduce import Reduction
from sonde.tap.rows.shared import SharedSelections


class WatchedSite:
    """One module and port: what is read there, and how often it was called in this forward."""

    def __init__(self, module: nn.Module, port: str, kinds: Sequence[Kind]) -> None:
        self.module, self.port, self.kinds = module, port, tuple(kinds)
        self.calls = 0

    def called(self) -> tuple[list[Kind], int]:
        """Count a call; return the kinds of rows that are read from it, and its number."""
        call, self.calls = self.calls, self.calls + 1
        return [
            k for k in self.kinds if not isinstance(k.site.call, int) or k.site.call == call
        ], call


def slots_of(kinds: Sequence[Kind], modules: Mapping[str, nn.Module]) -> list[WatchedSite]:
    """Return a slot for each module and port at which something is read."""
    grouped: dict[tuple[str, str], list[Kind]] = {}
    for kind in kinds:
        if kind.site.path not in modules:
            advice = near(kind.site.path, modules)
            raise SiteError(f"Site: expected a module {kind.site.path!r}, got none.{advice}")
        grouped.setdefault((kind.site.path, kind.site.port), []).append(kind)
    return [WatchedSite(modules[path], port, mine) for (path, port), mine in grouped.items()]


class Onlooker:
    """Hands the rows of each forward of a live model to a function; changes no output.

    Only calls made by the thread that opened it count. A forward that goes on from a filled
    key-value cache brings the rows of its new tokens alone, and none of a sequence that is over
    while ``generate`` goes on with others of its batch. An encoder that ``generate`` runs by itself
    brings its rows with the first step that follows. If the model makes the logits of its last
    tokens alone, as for the prompt of ``generate``, the other tokens have no rows at that site.
    ``predictions`` of a token need the logits of the token before it.

    Parameters
    ----------
    model : Model
    schemas : sequence of SiteSchema
        What is read: site, reducer, and the axes and prefix that the probe forward found.
    seen : callable
        ``seen(batch, goes_on, cut)`` after each forward; an error in it ends the forward.
        ``cut`` are the keys of sites that brought rows of a part of their text.
    objective : str or None, default=None
        Named objective whose gradient at the sites is read too.
    perturb : dict or None, default=None
        Parameters of a ``Perturbation``: the logits after this step of the inputs are read too, by
        two forwards and a backward after each forward.
    logits : bool, default=False
        Bring the model's logits.
    logits_output : str or None, default=None
        The output that holds them; None for the one called ``logits``, or a lone tensor.
    special : collection of int, default=()
        Ids of tokens that are left out of ``mean`` and ``tokens``.
    generation_config : object, optional
        Says the end and padding tokens; by default the model's own does.
    """

    def __init__(
        self,
        model: Model,
        schemas: Sequence[SiteSchema],
        seen: Callable[[Batch, bool, Collection[str]], None],
        *,
        objective: str | None = None,
        perturb: dict[str, Any] | None = None,
        logits: bool = False,
        logits_output: str | None = None,
        special: Collection[int] = (),
        generation_config: Any = None,
    ) -> None:
        check_readable(model.module)
        names = ModuleNames(model.module)
        self.root = names.modules[""]
        self.kinds = tuple(_kind(schema) for schema in schemas)
        self._seen, self._logits = seen, logits
        self._backward = None if objective is None else Backward(self.root, objective)
        self._step = None if perturb is None else Perturbation.from_json(perturb)
        self._ends = Ends(self.root, generation_config, special)
        self._apart = EncoderRun(self.root)
        self._foretold = CarriedLogits()
        ids = torch.tensor(sorted(special), dtype=torch.int64) if special else None
        found = self._foretold, SharedSelections(), logits_output
        self._watching = Watching(self.kinds, model.task, ids, *found)
        self._forward: WatchedForward | None = None
        self._meaning = MaskMeaning()
        self._call = self._no_call = CallArguments(self.root, (), {})
        self._given: tuple[tuple[Any, ...], dict[str, Any]] = (), {}
        self._slots = slots_of(self.kinds, names.modules)
        self.session = Session(
            self.root,
            outputs=[
                *((s.module, partial(self._after, s)) for s in self._slots if s.port == "out"),
                *((encoder, self._end_apart) for encoder in self._apart.encoder),
                (self.root, self._end),
            ],
            inputs=[
                (self.root, self._begin),
                *((encoder, self._begin_apart) for encoder in self._apart.encoder),
                *((s.module, partial(self._before, s)) for s in self._slots if s.port == "in"),
            ],
            inside=watch_attention(
                [
                    (s.module, s.port, partial(self._after, s))
                    for s in self._slots
                    if s.port in ATTENTION_PORTS
                ]
            ),
            in_eval=False,
            finish=self._finish,
            owner="Guard",
        )

    def __enter__(self) -> "Onlooker":
        self.session.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.session.__exit__(kind, error, trace)
        self._finish()
        self._apart.clear()
        self._foretold.clear()

    @property
    def is_open(self) -> bool:
        """Whether a forward of the whole model, or of its encoder alone, is under way."""
        return (self._forward is not None or self._apart.is_running) and not in_perturbed_forward()

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if in_perturbed_forward():
            return
        self._call = call = CallArguments(self.root, args, kwargs, meaning=self._meaning)
        self._given = (args, kwargs) if self._step is None else copied((args, kwargs))
        over = self._ends.after(call.fed, call.past)
        self._foretold.begin(call)
        for slot in self._slots:
            slot.calls = 0
        if self._backward is not None:
            self._backward.begin(call.named)
        self._forward = forward = WatchedForward(self._watching, call, over)
        self._take_apart(forward, self._apart.times(call.named))

    def _begin_apart(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._forward is not None or in_perturbed_forward():
            return
        self._apart.begin(args, kwargs)
        for slot in self._slots:
            slot.calls = 0

    def _end_apart(self, output: Any) -> None:
        if self._apart.is_running and not in_perturbed_forward():
            self._apart.end(output)

    def _take_apart(self, forward: WatchedForward, times: int) -> None:
        """Take the rows of an encoder that ran alone, at the first step only."""
        if times and self._backward is not None and self._apart.taken:
            raise InputError(
                f"Guard: no gradient reaches {self._apart.taken[0][0].key} where the encoder runs "
                "alone, as in generate. Leave the detector that needs it out (methods=[...])."
            )
        forward.ids_apart = self._apart.repeated_ids(times)
        for kind, leaf, call in self._apart.taken if times else ():
            row = kind.reduction.axes.words.index("row")
            leaf = leaf if times == 1 else leaf.repeat_interleave(times, dim=row)
            if self._call.past:
                forward.take_none(kind, leaf)
            else:
                forward.take(kind, leaf, call)

    def _take(self, kind: Kind, leaf: Tensor, call: int) -> None:
        """Keep the rows of one call of a site."""
        if self._apart.is_running:
            self._apart.taken.append((kind, leaf.detach().clone(), call))
        elif self._forward is not None:
            self._forward.take(kind, leaf, call)

    def _after(self, slot: WatchedSite, output: Any) -> Any:
        """Take rows from an output; return a replacement only if a gradient is wanted."""
        if not self.is_open:
            return None
        kinds, call = slot.called()
        for kind in kinds:
            leaf = find(output, kind.site.key)
            if leaf is None:
                raise SiteError(f"Guard: {str(kind.site)!r} returned no such tensor this time.")
            self._take(kind, leaf, call)
        if self._backward is None or self._apart.is_running:
            return None
        changed = self._backward.watch(kinds, output)
        return None if changed is output else changed

    def _before(
        self, slot: WatchedSite, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Take from the inputs; return some in their place only where a gradient is wanted."""
        if not self.is_open:
            return None
        kinds, call = slot.called()
        for kind in kinds:
            leaf = find_input(slot.module, args, kwargs, kind.site.key)[1]
            self._take(kind, leaf, call)
        if self._backward is None or self._apart.is_running or not kinds:
            return None
        for kind in kinds:
            args, kwargs = self._backward.watch_input(kind, slot.module, args, kwargs)
        return args, kwargs

    def _end(self, output: Any) -> Any:
        if in_perturbed_forward() or self._forward is None:
            return None
        forward, self._forward = self._forward, None
        frame = forward.frame
        if forward.missing or frame is None:
            advice = "Fit at modules that run for every input"
            if self._call.named.get("encoder_outputs") is not None:
                advice = "Open the guard before the encoder runs"
            raise SiteError(
                f"Guard: {', '.join(forward.missing)} did not run in this forward, though it did "
                f"when the probe was fitted. {advice}."
            )
        wants = self._logits or self._backward is not None
        logits = forward.logits(output, frame) if wants else None
        kept = None if logits is None else logits.detach().clone()
        grad: dict[str, Tensor] = {}
        if self._backward is not None:
            grad = self._backward.gradients(self.kinds, output, logits, frame.batch, frame)
            output = self._backward.released(output)
        moved: dict[str, Tensor] = {}
        if self._step is not None:
            found = moved_logits(self.root, *self._given, self._step, output, self._watching.output)
            moved["perturbed_logits"] = found
        batch = forward.batch(frame, kept, grad, moved)
        self._foretold.end(self._call, output)
        with torch.no_grad():
            self._seen(batch, self._call.past > 0, forward.cut)
        return None if self._backward is None else output

    def _finish(self) -> None:
        """Leave nothing of a forward behind, also of one that raised."""
        if in_perturbed_forward():
            return
        self._forward, self._call, self._given = None, self._no_call, ((), {})
        if self._backward is not None:
            self._backward.end()


def _kind(schema: SiteSchema) -> Kind:
    if schema.site.port == "grad":
        raise InputError(
            f"Guard: expected no site with port grad, got {str(schema.site)!r}. Fit at its output."
        )
    axes = Axes(tuple(schema.axes.split()), schema.prefix, schema.suffix, schema.cls)
    return Kind(schema.key, schema.site, Reduction(schema.reducer, axes), schema)
