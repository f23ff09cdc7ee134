"""A live model over inputs as a stream of rows."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor, nn

from sonde.core._shown import places
from sonde.core.batch import Batch, Head, SiteSchema
from sonde.core.errors import InputError, SiteError, SondeWarning
from sonde.core.inputs import InputBatch, Inputs, Model
from sonde.core.left_out import LeftOut
from sonde.core.perturbation import Perturbation
from sonde.core.sinks import AUTO, KEEP, Sinks
from sonde.core.site import ATTENTION_PORTS, Reducer, Site
from sonde.core.stream import Stream
from sonde.core.token_masks import NAMES
from sonde.tap.generating.generation import token_arguments
from sonde.tap.generating.growing import Marks
from sonde.tap.generating.recorder import RecordedOutput, StepRecorder, may_record
from sonde.tap.generating.replay import ReplayInputs, StandIns
from sonde.tap.hooks.sharding import require_one_kind
from sonde.tap.model.behaviour import ROWS, Behaviour, behaviour_of
from sonde.tap.model.fingerprint import config_hash, fingerprint
from sonde.tap.model.forward_code import forward_code
from sonde.tap.model.forward_errors import advising
from sonde.tap.model.heads import layer_of
from sonde.tap.model.logits import KNOWN, logits_key
from sonde.tap.model.objectives import Objective, check_objective, name_of
from sonde.tap.model.parts import parts
from sonde.tap.model.perturb import moved_inputs, perturbed_logits
from sonde.tap.model.placement import placement
from sonde.tap.model.probe import Probe, executed, probe
from sonde.tap.model.seeding import buffers_kept
from sonde.tap.model.sites import Pattern, port_of
from sonde.tap.model.structure import structure
from sonde.tap.model.vary import token_ids
from sonde.tap.rows.kind import Kind
from sonde.tap.rows.padding import left_padded, right_padded, seems_padded
from sonde.tap.streams.choose import Chosen, choose_kinds
from sonde.tap.streams.named_axes import NamedAxes, parse_axes
from sonde.tap.streams.padding_sides import padding_fault
from sonde.tap.streams.reader import ForwardReading, Reader, reading_of
from sonde.tap.streams.sinks import find_sinks
from sonde.tap.streams.soundness import fault_of

_log = logging.getLogger("sonde")
MOST_AHEAD, SMALL_BYTES = 32, 2**22
ONE_TOKEN = ("last", "cls")


def live_stream(
    model: Model | nn.Module,
    inputs: Inputs,
    sites: Pattern | Sequence[Pattern] = "auto",
    reducer: str | Reducer = "auto",
    *,
    further: Sequence[str | Reducer] = (),
    objective: Objective | None = None,
    keep_special: bool = False,
    logits: bool = True,
    seed: int = 0,
    entry: bool = False,
    perturb: Perturbation | None = None,
    axes: str | Sequence[str] = (),
    check: bool = False,
    logits_output: str | None = None,
    logits_asked: bool = False,
    sinks: str = AUTO,
) -> "LiveStream":
    """Return a live model's rows over inputs as a stream; nothing runs yet.

    Parameters
    ----------
    model : Model or nn.Module
        Model that is read.
    inputs : Inputs
        Inputs that the model runs on.
    sites : "auto", pattern, Site, or several, default="auto"
        ``auto`` reads the blocks, or the leaf modules of a small net. ``|reducer`` after a pattern
        reads its sites by another reducer.
    reducer : "auto", name or Reducer, default="auto"
        ``auto`` is ``last`` for causal models, ``cls`` where there is such a token, else ``mean``.
    further : sequence of name or Reducer, default=()
        Read beside ``reducer`` in the same forward, under ``site|reducer``, where they fit a site.
    objective : {"kl_uniform", "max_logit", "nll"}, callable or None, default=None
        Scalar ``(outputs, batch)`` whose gradient at each site is read too.
    keep_special : bool, default=False
        Keep tokens that the tokenizer declares special in ``tokens`` and ``mean``.
    logits : bool, default=True
        Bring the model's logits where it has any; without, a forward may end at the last site.
    seed : int, default=0
        Key of the hash of rows.
    entry : bool, default=False
        Read what the first site receives too, under ``site|entry``, where it has the shape of what
        leaves it.
    logits_output : str or None, default=None
        The output that holds the logits; by default it is found by its form.
    logits_asked : bool, default=False
        Whether a method needs logits: then an output may be taken by its form alone.
    perturb : Perturbation or None, default=None
        Bring the column ``perturbed_logits``: a classifier's logits after this step of its
        floating-point inputs. Costs two more forwards and a backward.
    axes : str or sequence of str, default=()
        A word for each axis of an output where the probe forwards cannot tell them, as
        ``"row patch dim"``, for all outputs with as many axes or ``"pattern=row patch dim"``.
    check : bool, default=False
        Warn of rows that depend on other examples or chance, by two tiny forwards before a run.
    sinks : str, default="auto"
        Tokens with massive states: ``first``, ``special``, both with a comma, or ``keep`` for
        none; ``auto`` finds them from the first examples.

    Examples
    --------
    >>> import torch
    >>> class Numbers(Inputs):
    ...     group_keys, grouped = (b"a", b"b"), False
    ...     def batches(self, start, stop):
    ...         keys, n = self.group_keys[start:stop], torch.arange(start, stop)
    ...         x = (torch.ones(len(n), 3),)
    ...         yield InputBatch(x, {}, ["a", "b"][start:stop], keys, n, n * 0, keys, n * 0 - 1)
    ...     def identity(self):
    ...         return {}
    >>> stream = live_stream(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), Numbers())
    >>> [(s.key, s.dim) for s in stream.schema]
    [('0:out', 4), ('1:out', 4)]
    """
    if isinstance(model, nn.Module):
        model = Model(model, config=model.__dict__.get("config"))
    require_one_kind("read", model.module)
    check_objective(objective)
    several = (sites,) if isinstance(sites, str | Site) else tuple(sites)
    if not several:
        raise SiteError("live_stream: expected at least one site, got none. Try sites='auto'.")
    more = tuple(Reducer.parse(r) if isinstance(r, str) else r for r in further)
    how = (reducer, more, objective, keep_special, logits, seed, entry, perturb)
    if sinks != AUTO:
        Sinks.parse(sinks)
    how = (*how, parse_axes(axes), check, logits_output, logits_asked, sinks)
    return LiveStream(model, inputs, several, *how)


@dataclass(frozen=True, eq=False)
class LiveStream(Stream):
    """Rows of a live model; made by ``live_stream``, whose parameters its fields are.

    Parameters
    ----------
    model : Model
        Model that is read.
    inputs : Inputs
        Inputs that the model runs on.
    sites : tuple[str | Site, ...]
        Sites that are read.
    reducer : str | Reducer
        Way in which outputs become rows.
    further : tuple[Reducer, ...]
        Further reducers of the same sites.
    objective : object
        Objective whose gradient is read as the column ``grad``; none if None.
    keep_special : bool
        Whether special tokens count in ``tokens`` and ``mean``.
    with_logits : bool
        Whether batches carry the logits.
    seed : int, default=0
        Key of the hash of rows.
    entry : bool, default=False
        Whether the input of the first site is read too, under ``site|entry``.
    perturb : Perturbation, optional
        Step of the inputs, whose logits become a column; none if None.
    axes : tuple[NamedAxes, ...], default=()
        Names of the axes of outputs that cannot be told.
    check : bool, default=False
        Whether the first examples are run twice and compared.
    logits_output : str, optional
        Name of the output that contains the logits; None looks for it.
    logits_asked : bool, default=False
        Whether the logits were asked for by name.
    sinks : str, default="auto"
        Tokens with massive states that are left out: ``first``, ``special``, both with a comma, or
        ``keep`` for none; ``auto`` finds them from the first examples.
    label_check : function, optional
        Says whether the stream's labels number the outputs of a model without names; None says no.
    """

    model: Model
    inputs: Inputs
    sites: tuple[Pattern, ...]
    reducer: str | Reducer
    further: tuple[Reducer, ...]
    objective: Objective | None
    keep_special: bool
    with_logits: bool
    seed: int = 0
    entry: bool = False
    perturb: Perturbation | None = None
    axes: tuple[NamedAxes, ...] = ()
    check: bool = False
    logits_output: str | None = None
    logits_asked: bool = False
    sinks: str = AUTO
    label_check: "Callable[[LiveStream], bool] | None" = None

    def __repr__(self) -> str:
        # Only a forward tells which sites there are.
        asked = "sites auto" if self.sites == ("auto",) else places([*map(str, self.sites)])
        is_known = "kinds" in vars(self)
        sites = places([f"{s.key} ({s.dim})" for s in self.schema]) if is_known else asked
        name = self.model.name or type(self.model.module).__name__
        return f"LiveStream({name} on {len(self):,} examples, {sites}, reducer {self.reducer})"

    def _repr_html_(self) -> str | None:
        return super()._repr_html_() if "kinds" in vars(self) else None

    @cached_property
    def probe(self) -> Probe:
        """Result of a probe forward pass on the first example."""
        _say_how(self.model.module)
        inside = {p for p in map(port_of, self.sites) if p in ATTENTION_PORTS}
        return probe(self.model, self._first, sorted(inside))

    @cached_property
    def _first(self) -> InputBatch:
        if not len(self.inputs):
            raise InputError("live_stream: expected at least one example, got none.")
        first = next(iter(self._shapes(0, 1)))
        if self.perturb is not None:
            moved_inputs(self.model.module, first.args, first.kwargs)
        return first

    def _shapes(self, start: int, stop: int) -> Iterator[InputBatch]:
        """Yield inputs of the expected shapes; nothing is generated for them."""
        of = StandIns(self.inputs) if isinstance(self.inputs, ReplayInputs) else self.inputs
        return of.batches(start, stop)

    @cached_property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of rows read, in order of execution."""
        return self._chosen.kinds

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """Sites not read by default, each with the reason."""
        return self._chosen.left_out

    @cached_property
    def _chosen(self) -> Chosen:
        return choose_kinds(self, self._first)

    @property
    def schema(self) -> tuple[SiteSchema, ...]:
        """The schemas of the kinds of rows, in order of execution."""
        return tuple(kind.schema for kind in self.kinds)

    @property
    def group_keys(self) -> Sequence[bytes]:
        """The group key of every example in the planned order."""
        return self.inputs.group_keys

    @property
    def grouped(self) -> bool:
        """True if groups were given or examples were cut into chunks."""
        return self.inputs.grouped

    @property
    def source_rows(self) -> np.ndarray | None:
        """Index of the data item of each example or chunk."""
        return self.inputs.source_rows

    @property
    def labels_number_outputs(self) -> bool:
        """True if the labels, in their order, name the outputs of a model without names."""
        return self._labels_number_outputs

    @cached_property
    def _labels_number_outputs(self) -> bool:
        return self.label_check is not None and self.label_check(self)

    @cached_property
    def head(self) -> Head | None:
        """Weight and bias of the final linear layer, if its output is the logits."""
        return None if self.logits_key is None else layer_of(self.probe, self.logits_key)

    @cached_property
    def checked(self) -> bool:
        """True if rows were checked to depend on their own example; a fault is warned of once."""
        if self.check and len(self):
            fault = fault_of(self) or padding_fault(self)
            if fault is not None:
                warnings.warn(str(fault), SondeWarning, stacklevel=3)
        return self.check

    def __iter__(self) -> Iterator[Batch]:
        _ = self.checked
        return super().__iter__()

    @cached_property
    def logits_key(self) -> str | None:
        """The key of the logits in the model's output, or None."""
        asked = self.logits_asked or self.perturb is not None or isinstance(self.objective, str)
        n_classes, columns = len(self.inputs.label_names), self.inputs.label_columns
        named = self.logits_output
        if named is not None and len(columns) > 1:
            named = named.split(",")[0].strip()  # that of the first column of labels
        column = columns[0] if columns else ""
        return logits_key(self.probe, self.model.task, named, asked, n_classes, column)

    @cached_property
    def found_sinks(self) -> Sinks:
        """The roles of tokens with massive states; none where no row is over tokens."""
        if self.sinks != AUTO:
            return Sinks.parse(self.sinks)
        over_tokens = any(
            kind.reduction.is_over_tokens and kind.reduction.reducer.name not in ONE_TOKEN
            for kind in self.kinds
        )
        if not over_tokens:
            return Sinks.NONE
        return find_sinks(self.model, self.inputs, self._of_all_tokens)

    def _of_all_tokens(
        self, sites: Sequence[str], batches: Sequence[InputBatch]
    ) -> list[Mapping[str, Tensor]]:
        """Return the rows of all tokens of some inputs at some sites."""
        every = replace(
            self, sites=tuple(sites), reducer=Reducer("tokens", keep_special=True), further=(),
            objective=None, with_logits=False, entry=False, perturb=None, check=False, sinks=KEEP,
        )  # fmt: skip
        reader = every.reader()
        return [every.read_batch(reader, batch).rows for batch in batches]

    def _marked(self, batch: InputBatch) -> InputBatch:
        """Return inputs with a mask of their sinks, if the model has any."""
        ids = token_ids(batch) if self.found_sinks else None
        if ids is None:
            return batch
        real = torch.ones(ids.shape, dtype=torch.bool) if batch.mask is None else batch.mask
        special = None if batch.special is None else batch.special.bool().cpu()
        return replace(batch, sink=self.found_sinks.mask(real.bool().cpu(), special))

    @property
    def gives_logits(self) -> bool:
        """True if the model's output holds logits of the examples."""
        return self.logits_key is not None

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield rows with their columns; the model is unchanged between batches.

        Small batches are read several at a time, so that the model is hooked once for all of them.
        """
        reader = self.reader()
        if isinstance(self.inputs, ReplayInputs):
            for prompts in self.inputs.prompt_batches(start, stop):
                yield self.read_generated(reader, prompts)
            return
        inputs, n_ahead = iter(self.inputs.batches(start, stop)), 1
        while several := list(islice(inputs, n_ahead)):
            _say_if_padded(self.model, self.kinds, several[0])
            joined = self._several(reader, several)
            n_ahead = 1 if self.perturb is not None else _n_ahead(several, joined)
            joined.reverse()
            while joined:
                yield joined.pop()

    def reader(self) -> Reader:
        """Return a reader, which runs the model and returns the rows of this stream."""
        return Reader(
            self.model.module,
            self.kinds,
            self.probe,
            objective=self.objective,
            causal=self.model.task == "causal",
            logits=self.with_logits and self.gives_logits,
            logits_key=self.logits_key,
        )

    def read_batch(self, reader: Reader, batch: InputBatch) -> Batch:
        """Return the rows of inputs that may be outside the stream."""
        return self._several(reader, [batch])[0]

    def first_batch(self) -> Batch:
        """Return the first two examples, or one; nothing is generated for them."""
        if isinstance(self.inputs, ReplayInputs):
            return replace(self, inputs=StandIns(self.inputs)).first_batch()
        return super().first_batch()

    def read_generated(
        self, reader: Reader, prompts: InputBatch, inputs: ReplayInputs | None = None
    ) -> Batch:
        """Return the rows of prompts and of the text that the model generates after them.

        They are taken while they arise if rows stay in place, else by one more forward pass.
        ``inputs`` generates by other settings than the stream's own.
        """
        inputs = self._replayed if inputs is None else inputs
        if not self.records(inputs, prompts):
            return self._several(reader, [right_padded(inputs.continued(prompts))])[0]
        batch, recorder = inputs.record(self._marked(prompts), self._tapped_sites)
        batch = self._marked(batch)  # the text is longer than the prompts
        recorded = self.recorded(reader, recorder, batch)
        return self._several(reader, [right_padded(batch)])[0] if recorded is None else recorded

    def prompt_recorder(self, prompts: InputBatch) -> StepRecorder:
        """Return a recorder of the next forward pass over prompts.

        Inside its session, ``recorded`` gives the rows of the prompts once they were read.
        """
        prompts = left_padded(self._marked(prompts))
        length = prompts.kwargs["input_ids"].shape[1]
        return StepRecorder(self.model.module, self._tapped_sites, Marks(prompts, [], []), length)

    def recorded(self, reader: Reader, recorder: StepRecorder, batch: InputBatch) -> Batch | None:
        """Return the rows that a recorder took of texts, or None if it did not see them whole."""
        batch = self._marked(batch)
        frame = reader.frame(batch)
        taken = recorder.rows(frame)
        return None if taken is None else self._made(batch, reading_of(taken, frame))

    @property
    def _replayed(self) -> ReplayInputs:
        if not isinstance(self.inputs, ReplayInputs):
            raise InputError("read_generated: expected a stream that was read with generate.")
        return self.inputs

    @cached_property
    def _tapped_sites(self) -> dict[str, RecordedOutput]:
        modules = self.probe.names.modules
        return {
            k.key: RecordedOutput(modules[k.site.path], k.site.key, k.reduction) for k in self.kinds
        }

    def records(self, inputs: ReplayInputs, prompts: InputBatch) -> bool:
        """Return whether all rows can be recorded during generation."""
        asks = self.objective is not None or self.perturb is not None
        if asks or (self.with_logits and self.gives_logits) or prompts.segment is not None:
            return False
        generation = inputs.generation
        in_place = generation.new_tokens is not None and generation.keeps_rows_in_place
        return in_place and may_record(self.kinds) and not token_arguments(prompts)

    def _several(self, reader: Reader, batches: Sequence[InputBatch]) -> list[Batch]:
        batches = [self._marked(batch) for batch in batches]
        with buffers_kept(self.model.module, self.probe.moved), reader.session:
            readings = reader.readings([reader.read(batch) for batch in batches])
        return list(map(self._made, batches, readings, map(self._perturbed, batches)))

    def _perturbed(self, batch: InputBatch) -> Tensor | None:
        if self.perturb is None:
            return None
        args, kwargs = self.probe.place.call(batch.args, batch.kwargs)
        with advising(batch):
            return perturbed_logits(self.model.module, args, kwargs, self.perturb, self.logits_key)

    def _made(
        self, batch: InputBatch, reading: ForwardReading, perturbed: Tensor | None = None
    ) -> Batch:
        columns, extra = reading.columns, _extra(batch, self.keep_special)
        if perturbed is not None:
            extra["perturbed_logits"] = perturbed
        return Batch(
            rows=reading.rows,
            ids=batch.ids,
            keys=batch.keys,
            order=batch.order,
            occurrence=batch.occurrence,
            example={key: c.example for key, c in columns.items()},
            position={key: c.position for key, c in columns.items()},
            group_keys=batch.group_keys,
            label=batch.label,
            logits=reading.logits,
            grad=reading.grad,
            grid={key: c.grid for key, c in columns.items() if c.grid is not None},
            special={key: c.special for key, c in columns.items() if c.special is not None},
            sink={key: c.sink for key, c in columns.items() if c.sink is not None},
            pair=batch.pair,
            side=batch.side,
            length=_length(batch),
            head=self.head,
            seed=self.seed,
            extra=extra,
        )

    @property
    def label_names(self) -> tuple[str, ...]:
        """The name of each class index."""
        return self.inputs.label_names

    @property
    def own_labels(self) -> bool:
        """True if class indices are the model's own."""
        return self.inputs.own_labels

    def identity(self) -> dict[str, Any]:
        """Return the identity of model, data and reading as JSON."""
        _, dtype = placement(self.model.module)
        config = self.model.config
        return {
            "model": fingerprint(self.model.module),
            "config": config_hash(config, self.model.module),
            "structure": structure(self.model.module),
            "parts": parts(self.model.module),
            "code": forward_code(self.model.module),
            "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
            "attn": getattr(config, "_attn_implementation", None),
            "sites": [str(kind.site) for kind in self.kinds],
            "reducers": [str(kind.reduction.reducer) for kind in self.kinds],
            "keys": [kind.key for kind in self.kinds],
            "objective": name_of(self.objective),
            "perturb": None if self.perturb is None else self.perturb.json(),
            "keep_special": self.keep_special,
            "logits": self.with_logits,
            "seed": self.seed,
            "data": self.inputs.identity(),
            **({} if self.named_output is None else {"logits_output": self.named_output}),
            **({"sinks": str(self.found_sinks)} if self.found_sinks else {}),
        }

    @property
    def behaviour(self) -> Behaviour | None:
        """States of a few drawn inputs, or None if the model gives no fixed states of them."""
        return self._behaviour

    @cached_property
    def _behaviour(self) -> Behaviour | None:
        if not len(self.inputs):
            return None
        paths = [path for path in executed(self.probe) if path]
        most = getattr(self.inputs, "batch_size", ROWS)
        return behaviour_of(self.model.module, self._first, self.probe.place, paths, most)

    @property
    def named_output(self) -> str | None:
        """The key of the logits output, or None if it has a standard name."""
        key = self.logits_key if self.with_logits or self.objective or self.perturb else None
        return None if key in KNOWN else key


_TOLD_PADDED: WeakSet[nn.Module] = WeakSet()
"""Modules for which a warning about padded inputs was printed."""


def _say_if_padded(model: Model, kinds: Sequence[Kind], batch: InputBatch) -> None:
    module, pad = model.module, getattr(model.config, "pad_token_id", None)
    over = any({"pos", "patch"} & set(kind.reduction.axes.words) for kind in kinds)
    if over and module not in _TOLD_PADDED and seems_padded(batch, pad):
        _TOLD_PADDED.add(module)
        _log.warning(
            "some examples end in padding (%s), but no mask marks the padding tokens: rows may "
            "contain padding. Add the model's padding mask to the inputs (%s)",
            f"the id {pad}" if pad else "zeros",
            ", ".join(NAMES),
        )


_TOLD: WeakSet[nn.Module] = WeakSet()
"""Modules of which has been said how they are read: once each, however many streams they have."""


def _say_how(module: nn.Module) -> None:
    if module in _TOLD:
        return
    if module.training:
        _TOLD.add(module)
        _log.warning(
            "the model is in training mode: it is read in eval mode, then set back to training mode"
        )
    if any(type(part).__name__ == "OptimizedModule" for part in module.modules()):
        _TOLD.add(module)
        _log.warning(
            "the model is compiled: it is read in eager mode, so states may differ in the last bits"
        )


def _n_ahead(inputs: Sequence[InputBatch], made: Sequence[Batch]) -> int:
    """Return how many batches like this one are small together, inputs and rows included."""
    most = 1
    for raw, batch in zip(inputs, made, strict=True):
        given = (x for x in (*raw.args, *raw.kwargs.values()) if isinstance(x, Tensor))
        most = max(most, sum(x.nbytes for x in (*given, *batch.rows.values())))
    return max(1, min(MOST_AHEAD, SMALL_BYTES // most))


def _length(batch: InputBatch) -> Tensor | None:
    if batch.length is not None or batch.mask is None:
        return batch.length
    return batch.mask.sum(dim=1).cpu()


def _extra(batch: InputBatch, keep_special: bool) -> dict[str, Tensor]:
    extra = {name: x for name, x in batch.columns.items() if isinstance(x, Tensor)}
    if batch.truncated is not None:
        extra["truncated"] = batch.truncated
    if batch.special is not None and not keep_special:
        mask = batch.special if batch.mask is None else batch.special & batch.mask
        extra["special_dropped"] = mask.sum(dim=1).cpu()
    return extra
