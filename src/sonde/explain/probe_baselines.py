"""A probe's accuracy beside the accuracies of probes on the input and on random weights.

A linear map reads many labels off any wide enough rows. What a model learned is what the probe
finds beyond the input, beyond random weights, and beyond what it learns by heart.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, final

import pyarrow as pa  # pyright: ignore[reportMissingTypeStubs]
import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.instrument import Instrument
from sonde.core.result import Result
from sonde.core.stream import Stream
from sonde.engine.folding import observe_stream
from sonde.engine.passes import states_of
from sonde.engine.requests import Task, requests
from sonde.explain.control_task import ControlTask
from sonde.explain.probe import Probe
from sonde.explain.sanity import given_back, redraw
from sonde.tap import LiveStream
from sonde.tap.model.float_inputs import float_inputs
from sonde.tap.model.token_table import find_token_table
from sonde.tap.streams.site_function import arguments_of

AUTO = "auto"
WIDEST = 4096
"""Widest input that is probed: the probe solves equations of so many unknowns."""


@final
@dataclass(frozen=True, kw_only=True)
class ProbeBaselinesResult(Result):
    """``value`` is the probe's accuracy at each site, on held-out groups.

    ``null`` is the accuracy of the most frequent class. ``at_input`` is the accuracy of the same
    probe on the input, or the embedding of its tokens; NaN if that is too wide, or if the model has
    several floating-point inputs (``conventions["input"]`` says so). ``redrawn`` is the
    accuracy at the site of the model with weights drawn anew, ``control`` the accuracy on classes
    drawn by type, and ``selectivity`` the accuracy less ``control``.
    """

    title: ClassVar[str] = "Probes compared with baselines"
    sites: tuple[str, ...]
    at_input: float
    redrawn: Float[Tensor, "site"]
    control: Float[Tensor, "site"]
    selectivity: Float[Tensor, "site"]

    @property
    def gain(self) -> Float[Tensor, "site"]:
        """Accuracy above the best baseline: input, random weights or most frequent class."""
        rest = torch.tensor([self.at_input]).nan_to_num(-torch.inf).to(self.redrawn)
        usual = torch.as_tensor(self.null).to(self.redrawn)
        return torch.as_tensor(self.value) - torch.maximum(torch.maximum(self.redrawn, usual), rest)

    def table(self) -> pa.Table:  # pyright: ignore[reportUnknownMemberType, reportUnknownParameterType]
        """Return a table with one row for each site."""
        columns: dict[str, Any] = {
            "site": list(self.sites),
            "accuracy": torch.as_tensor(self.value).tolist(),
            "se": torch.as_tensor(self.se).tolist(),
            "input": [self.at_input] * len(self.sites),
            "redrawn": self.redrawn.tolist(),
            "commonest": torch.as_tensor(self.null).tolist(),
            "gain": self.gain.tolist(),
            "control": self.control.tolist(),
            "selectivity": self.selectivity.tolist(),
        }
        return pa.table(columns)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]

    def __str__(self) -> str:
        rows = self.table().to_pylist()  # pyright: ignore[reportUnknownMemberType]
        wide = max(len(site) for site in self.sites)
        names = [name for name in rows[0] if name != "site"]
        lines = [" " * wide + "".join(f"{name:>13}" for name in names)]
        for row in rows:
            lines.append(f"{row['site']:{wide}}" + "".join(f"{row[name]:13.3f}" for name in names))
        return "\n".join(lines)


@final
@dataclass(frozen=True)
class ProbeBaselines:
    """A probe at every site, beside probes that do not use the trained model.

    The same probe reads the labels off the input (of tokens: off their embedding), and off the same
    sites of the model with all weights drawn anew; and at every site it learns classes that were
    drawn for each type (``ControlTask``). The model is given back bit for bit, also after an error.

    Range        accuracy [0, 1]; higher ``gain`` and ``selectivity`` = more was learned.
    Cost         two passes over the data; a copy of the weights.
    Assumes      a live model; labels. An input of more than 4,096 numbers is not probed.
    Differs      from the papers: weights are drawn once, by each layer's own initialiser.

    Parameters
    ----------
    probe : Probe, optional
        The probe that reads the labels.
    types : str, default="auto"
        Column that tells the types of the control task; "auto" is the position where examples have
        several rows, else the group, which makes the control a coin.
    seed : int, default=0
        Seed of the weights and the classes drawn.

    References
    ----------
    hewitt2019control, alain2016probes
    """

    probe: Probe = field(default_factory=Probe)
    types: str = AUTO
    seed: int = 0
    paper: ClassVar[str] = "hewitt2019control"

    def fit(self, stream: Stream) -> ProbeBaselinesResult:
        """Return the accuracies at all sites of a stream.

        Parameters
        ----------
        stream : Stream
            Of a live model with labels, as ``sonde.read`` returns it.

        Raises
        ------
        InputError
            If the stream is not one of a live model, or its rows cannot be probed.
        """
        if not isinstance(stream, LiveStream):
            raise InputError(
                "ProbeBaselines: expected the stream of a live model, whose weights can "
                f"be reinitialised, got {type(stream).__name__}. Read the model: "
                "sonde.read(model, data)."
            )
        sites = tuple(site.key for site in stream.schema)
        source, model = _input_stream(stream), stream.model.module
        many = any(bool((x > 0).any()) for x in stream.first_batch().position.values())
        types = ("position" if many else "group") if self.types == AUTO else self.types
        control = ControlTask(types, self.probe.folds, self.probe.m, self.seed)
        own = _results(stream, sites, {"probe": self.probe, "control": control})
        key, is_narrow, at_input = "none: several inputs", False, {}
        if source is not None:
            (key,) = (site.key for site in source.schema)
            is_narrow = source.schema[0].dim <= WIDEST
            at_input = _results(source, (key,), {"probe": self.probe}) if is_narrow else {}
        with given_back(model), torch.random.fork_rng():
            torch.manual_seed(self.seed)
            redraw([m for m in model.modules() if m._parameters])
            anew = _results(replace(stream, check=False), sites, {"probe": self.probe})

        def column(found: Mapping[tuple[str, str], Any], name: str, what: str) -> Tensor:
            return torch.tensor([getattr(found[name, s], what) for s in sites]).double()

        return ProbeBaselinesResult(
            value=column(own, "probe", "value"),
            se=column(own, "probe", "se"),
            null=column(own, "probe", "null"),
            n=own["probe", sites[0]].n,
            range=(0.0, 1.0),
            direction="higher",
            flags=tuple(dict.fromkeys(f for s in sites for f in own["probe", s].flags)),
            conventions={"types": types, "input": key, "seed": self.seed},
            sites=sites,
            at_input=float(at_input["probe", key]) if is_narrow else float("nan"),
            redrawn=column(anew, "probe", "value"),
            control=column(own, "control", "control"),
            selectivity=column(own, "control", "value"),
        )


def _results(
    stream: Stream, sites: tuple[str, ...], instruments: Mapping[str, Instrument]
) -> dict[tuple[str, str], Result]:
    """Return the result of every instrument at every site, from one pass."""
    tasks = {(name, s): Task(one, (s,)) for name, one in instruments.items() for s in sites}
    states = observe_stream(stream, requests([*tasks.values()]))
    return {at: task.instrument.result(**states_of(task, states)) for at, task in tasks.items()}


def _input_stream(stream: LiveStream) -> LiveStream | None:
    """Return the rows of the first layer's input; for tokens, the rows of the embedding table.

    None if the model has several floating-point inputs: no layer reads them all.
    """
    module, modules = stream.model.module, stream.probe.names.modules
    given = arguments_of(module, next(iter(stream.inputs.batches(0, 1))))
    floats = float_inputs(modules[""], *given, "ProbeBaselines").varied
    if len(floats) > 1:
        return None
    table = None if floats else find_token_table(module, *given)
    first = next(path for path in stream.probe.trace if not any(modules[path].children()))
    site = f"{first}:in|flat" if table is None else str(table.site)
    return replace(stream, sites=(site,), further=(), entry=False, axes=(), check=False)
