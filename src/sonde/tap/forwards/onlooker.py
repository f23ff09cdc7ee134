"""Rows of forward passes that the user's own code runs: hooks stay while a model is in use.

A stream owns its forwards and a tap keeps the rows of one; this hands the rows of each forward,
with their columns, to a function as soon as the forward is over. Padding and key-value caches are
taken from the arguments of the call.
"""

import contextlib
import contextvars
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from sonde.core.batch import Batch, SiteSchema
from sonde.core.errors import InputError, SiteError
from sonde.core.inputs import Model
from sonde.core.perturbation import Perturbation
from sonde.core.sinks import Sinks
from sonde.core.site import ATTENTION_PORTS
from sonde.core.token_masks import MaskMeaning
from sonde.tap.attention.opening import watch_attention
from sonde.tap.forwards.backward import Backward, require_gradients
from sonde.tap.forwards.ends import Ends
from sonde.tap.forwards.lone_encoder import EncoderRun, EncoderRuns
from sonde.tap.forwards.watched_call import WatchedCall, WatchedSite, WatchedText, slots_of
from sonde.tap.forwards.watched_forward import WatchedForward, Watching
from sonde.tap.hooks.cache import cache_in, cache_of
from sonde.tap.hooks.call import CallArguments
from sonde.tap.hooks.latest import Latest
from sonde.tap.hooks.names import ModuleNames
from sonde.tap.hooks.of_caches import OfCaches
from sonde.tap.hooks.outputs import copied, find, find_input, leaves
from sonde.tap.hooks.session import Followed, OutputHook, Session, check_readable
from sonde.tap.model.axes import Axes
from sonde.tap.model.perturb import perturbed_logits
from sonde.tap.rows.kind import Kind
from sonde.tap.rows.reduce import Reduction
from sonde.tap.rows.shared import SharedSelections

_PERTURBED = contextvars.ContextVar("sonde_perturbed_forward", default=False)


class Onlooker:
    """Passes the rows of each forward pass of a live model to a function; outputs are unchanged.

    Every forward of the model counts, whichever thread or task makes it; its rows are handed out in
    that thread. A forward that goes on from a filled key-value cache brings the rows of its new
    tokens alone, and none of a sequence that is over while ``generate`` goes on with others of its
    batch. An encoder that ``generate`` runs by itself brings its rows with the first step that
    follows. If the model makes the logits of its last tokens alone, as for the prompt of
    ``generate``, the other tokens have no rows at that site. ``predictions`` of a token need the
    logits of the token before it.

    Parameters
    ----------
    model : Model
        Model whose forward passes are read.
    schemas : sequence of SiteSchema
        What is read: site, reducer, and the axes and prefix that the probe forward found.
    seen : callable
        ``seen(batch, text, goes_on, cut)`` after each forward; an error in it ends the forward.
        ``text`` is the same for all forwards that go on from one key-value cache, and ``cut`` are
        the keys of sites that brought rows of a part of their text.
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
    sinks : Sinks, optional
        Roles of tokens that bring no rows.
    generation_config : object, optional
        Says the end and padding tokens; by default the model's own does.
    here : bool, default=False
        Only calls of the thread or task that opens it count.
    passed : callable, optional
        Runs for each forward that does not count because another thread or task made it.
    """

    def __init__(
        self,
        model: Model,
        schemas: Sequence[SiteSchema],
        seen: Callable[[Batch, WatchedText, bool, Collection[str]], None],
        *,
        objective: str | None = None,
        perturb: dict[str, Any] | None = None,
        logits: bool = False,
        logits_output: str | None = None,
        special: Collection[int] = (),
        sinks: Sinks = Sinks.NONE,
        generation_config: Any = None,
        here: bool = False,
        passed: Callable[[], None] | None = None,
    ) -> None:
        check_readable(model.module, sharded=True)
        names = ModuleNames(model.module)
        self.root = names.modules[""]
        self.kinds = tuple(_kind(schema) for schema in schemas)
        self._seen, self._logits = seen, logits
        self._objective = objective
        if objective is not None:
            Backward(self.root, objective)  # refuses what it does not know
        self._step = None if perturb is None else Perturbation.from_json(perturb)
        self._ends = Ends(self.root, generation_config, special)
        self._runs = EncoderRuns(self.root)
        self._texts: OfCaches[WatchedText] = OfCaches()
        self._latest: Latest[WatchedText] = Latest()
        ids = torch.tensor(sorted(special), dtype=torch.int64) if special else None
        shared = SharedSelections()
        self._watching = Watching(self.kinds, model.task, ids, shared, logits_output, sinks)
        self._meaning = MaskMeaning()
        self._slots = slots_of(self.kinds, names.modules)
        follows = [Followed(self.root, self._begin, self._finish)]
        outputs: list[tuple[nn.Module, OutputHook]] = [
            (s.module, partial(self._after, s)) for s in self._slots if s.port == "out"
        ]
        if self._runs.encoder is not None:
            follows.append(Followed(self._runs.encoder, self._begin_encoder, self._finish))
            outputs.append((self._runs.encoder, self._end_encoder))
        inside = [
            (s.module, s.port, partial(self._after, s))
            for s in self._slots
            if s.port in ATTENTION_PORTS
        ]
        self.session = Session(
            self.root,
            outputs=[*outputs, (self.root, self._end)],
            inputs=[(s.module, partial(self._before, s)) for s in self._slots if s.port == "in"],
            inside=watch_attention(inside, here=here),
            in_eval=False,
            follows=follows,
            owner="Guard",
            here=here,
            passed=passed,
            by_row=False,
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
        try:
            self.session.__exit__(kind, error, trace)
        finally:
            self._runs.clear()
            self._texts.clear()
            self._latest.clear()

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> WatchedCall | None:
        if in_perturbed_forward():
            return None
        outer: WatchedCall | None = self.session.state
        if outer is not None:
            outer.has_inner = True
        call = CallArguments(self.root, args, kwargs, meaning=self._meaning)
        text = self._text_of(call)
        now = WatchedCall(call, text, given=(args, kwargs))
        if self._step is not None:
            now.given = copied(now.given)
        text.over = self._ends.after(call.fed, call.past, text.over)
        text.carried.begin(call)
        now.forward = WatchedForward(self._watching, call, text.over, text.carried)
        self._take_encoder(now, *self._runs.before(call.named))
        if self._objective is not None:
            now.backward = Backward(self.root, self._objective)
            now.backward.begin(call.named)
        return now

    def _text_of(self, call: CallArguments) -> WatchedText:
        """Return the texts that a call continues, found by its cache or else the caller's last."""
        if not call.past:
            return WatchedText()
        text = self._texts.get(cache_in(call.named))
        text = self._latest.own() if text is None else text
        return WatchedText() if text is None else text

    def _begin_encoder(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> WatchedCall | None:
        if self.session.state is not None or in_perturbed_forward():
            return None
        assert self._runs.encoder is not None  # it is followed
        run = EncoderRun(self._runs.encoder, args, kwargs)
        return WatchedCall(
            CallArguments(self._runs.encoder, args, kwargs), WatchedText(), encoder=run
        )

    def _end_encoder(self, output: Any) -> None:
        now: WatchedCall | None = self.session.state
        if now is not None and now.encoder is not None and not in_perturbed_forward():
            self._runs.end(now.encoder, output)

    def _take_encoder(self, now: WatchedCall, run: EncoderRun | None, times: int) -> None:
        """Store the rows of an encoder that ran alone, at the first step only."""
        if run is None or now.forward is None:
            return
        if self._objective is not None and run.taken:
            raise InputError(
                f"Guard: no gradient reaches {run.taken[0][0].key} if the encoder runs alone, as "
                "in generate. Leave out the detector that needs this gradient (methods=[...])."
            )
        now.forward.ids_apart = run.repeated_ids(times)
        for kind, leaf, call in run.taken:
            row = kind.reduction.axes.words.index("row")
            leaf = leaf if times == 1 else leaf.repeat_interleave(times, dim=row)
            if now.call.past:
                now.forward.take_none(kind, leaf)
            else:
                now.forward.take(kind, leaf, call)

    def _now(self) -> WatchedCall | None:
        """Return the forward pass running in this context, if its rows are needed."""
        if in_perturbed_forward():
            return None
        now: WatchedCall | None = self.session.state
        if now is None:
            self.session.count_outside()
        elif now.forward is None and now.encoder is None:
            return None  # it has ended
        return now

    def _after(self, slot: WatchedSite, output: Any) -> Any:
        """Store rows of an output; return a replacement only if a gradient is needed."""
        now = self._now()
        if now is None:
            return None
        kinds, call = now.called(slot)
        for kind in kinds:
            leaf = find(output, kind.site.key)
            if leaf is None:
                raise SiteError(
                    f"Guard: {str(kind.site)!r} returned no tensor in this forward pass."
                )
            now.take(kind, leaf, call)
        if now.backward is None:
            return None
        changed = now.backward.watch(kinds, output)
        return None if changed is output else changed

    def _before(
        self, slot: WatchedSite, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Store rows of the inputs; return replacements only if a gradient is needed."""
        now = self._now()
        if now is None:
            return None
        kinds, call = now.called(slot)
        for kind in kinds:
            leaf = find_input(slot.module, args, kwargs, kind.site.key)[1]
            now.take(kind, leaf, call)
        if now.backward is None or not kinds:
            return None
        for kind in kinds:
            args, kwargs = now.backward.watch_input(kind, slot.module, args, kwargs)
        return args, kwargs

    def _end(self, output: Any) -> Any:
        now: WatchedCall | None = self.session.state
        if in_perturbed_forward() or now is None or now.forward is None:
            return None
        forward, now.forward = now.forward, None
        frame = forward.frame
        if forward.missing or frame is None:
            if now.has_inner:
                return None  # the model called itself, and that call was seen
            advice = "Fit at modules that run for every input"
            if now.call.named.get("encoder_outputs") is not None:
                advice = "Open the guard before the encoder runs"
            raise SiteError(
                f"Guard: {', '.join(forward.missing)} did not run in this forward pass, but "
                f"ran when the probe was fitted. {advice}."
            )
        wants = self._logits or now.backward is not None
        logits = forward.logits(output, frame) if wants else None
        kept = None if logits is None else logits.detach().clone()
        grad: dict[str, Tensor] = {}
        if now.backward is not None:
            grad = now.backward.gradients(self.kinds, output, logits, frame.batch, frame)
            output = now.backward.released(output)
        moved: dict[str, Tensor] = {}
        if self._step is not None:
            perturbed = moved_logits(
                self.root, *now.given, self._step, output, self._watching.output
            )
            moved["perturbed_logits"] = perturbed
        batch = forward.batch(frame, kept, grad, moved)
        self._keep_text(now, output)
        with torch.no_grad():
            self._seen(batch, now.text, now.call.past > 0, forward.cut)
        return None if now.backward is None else output

    def _keep_text(self, now: WatchedCall, output: Any) -> None:
        """Store the texts under the returned cache, and as the caller's last texts."""
        now.text.carried.end(now.call, output)
        given, left = cache_in(now.call.named), cache_of(output)
        self._texts.put(given, now.text)
        if left is not given:
            self._texts.put(left, now.text)
        self._latest.put(now.text)

    def _finish(self, now: WatchedCall) -> None:
        """Clear the data of a forward pass, also after an exception."""
        if now.backward is not None:
            now.backward.end()


def _kind(schema: SiteSchema) -> Kind:
    if schema.site.port == "grad":
        raise InputError(
            f"Guard: expected no site with port grad, got {str(schema.site)!r}. Fit at the "
            "output of the module."
        )
    axes = Axes(tuple(schema.axes.split()), schema.prefix, schema.suffix, schema.cls)
    return Kind(schema.key, schema.site, Reduction(schema.reducer, axes), schema)


def in_perturbed_forward() -> bool:
    """Return whether this thread is running a forward pass of ``moved_logits``."""
    return _PERTURBED.get()


def moved_logits(
    root: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    step: Perturbation,
    output: Any,
    key: str | None = None,
) -> Tensor:
    """Return a finished call's logits for slightly moved inputs; ``output`` stays valid."""
    require_gradients()
    token = _PERTURBED.set(True)
    try:
        with _unwritten(output):
            return perturbed_logits(root, args, kwargs, step, key)
    finally:
        _PERTURBED.reset(token)


@contextlib.contextmanager
def _unwritten(output: Any) -> Iterator[None]:
    """Restore an output if the model overwrites its memory with the next output."""
    kept = [(x, x._version, x.detach().clone()) for x in leaves(output).values()]
    try:
        yield
    finally:
        with torch.no_grad():
            for x, version, values in kept:
                if x._version != version:
                    x.copy_(values)
