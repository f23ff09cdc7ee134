"""File of input groups on which a model was found weak, and their members in new data.

The file names columns, values, cuts and centres; it holds no code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.batch import Batch
from sonde.core.errors import StateError
from sonde.core.state import State
from sonde.core.stream import Stream
from sonde.data.numbers import as_number
from sonde.engine.classes import with_classes
from sonde.files.state_file import read_header, read_state, write_state
from sonde.metrics._conditions import Beyond, Condition, Equals, Nearest
from sonde.run.fitting.header import make_header, require_same_model
from sonde.run.reading.notes import items_of
from sonde.run.scoring.opening import open_as

FORMAT = "sonde-weak-groups"


@dataclass(frozen=True)
class ClusterState(State):
    """Centres of clusters in principal components of a site's units."""

    mean: Float[Tensor, "dim"]
    project: Float[Tensor, "dim component"]
    centres: Float[Tensor, "cluster component"]


@dataclass(frozen=True)
class KnownGroup:
    """A confirmed group of inputs on which the model performs worse.

    Parameters
    ----------
    text : str
        What sets its inputs apart.
    conditions : tuple of Condition
        All hold for a member.
    figures : dict of str to float
        ``n accuracy low high elsewhere``, on the data in which the group was found.
    """

    text: str
    conditions: tuple[Condition, ...]
    figures: Mapping[str, float]


@dataclass(frozen=True)
class WeakGroups:
    """The weak groups of one model, and how its inputs were read.

    Parameters
    ----------
    header : dict
        Model, reading and sites, as in the header of a bundle.
    groups : tuple of KnownGroup
    """

    header: dict[str, Any]
    groups: tuple[KnownGroup, ...]

    @classmethod
    def of(cls, stream: Stream, groups: Sequence[KnownGroup]) -> "WeakGroups":
        """Return the groups found in a stream, with the sites that their conditions use."""
        header = make_header(stream, [], {})
        spoken = {c.source for g in groups for c in g.conditions if isinstance(c, Nearest)}
        pooled = [s for s in header["sites"] if "|" not in s["text"]]
        sites = [s for s in pooled if s["text"] in spoken] or pooled[:1]
        reading = {**header["reading"], "objective": None, "perturb": None}
        return cls({**header, "sites": sites, "reading": reading}, tuple(groups))

    def save(self, path: str | Path) -> str:
        """Write the groups and return the id of the file."""
        states: dict[str, State | None] = {}
        groups = [
            {
                "text": group.text,
                "conditions": [_written(c, states) for c in group.conditions],
                **group.figures,
            }
            for group in self.groups
        ]
        return write_state(path, {"format": FORMAT, "groups": groups, **self.header}, states)

    @classmethod
    def load(cls, path: str | Path) -> "WeakGroups":
        """Load groups written by ``save``.

        Raises
        ------
        StateError
            If the file is damaged, or is no file of weak groups.
        """
        header = read_header(path)
        if header.get("format") != FORMAT:
            raise StateError(
                f"WeakGroups.load: expected a file of `sonde scan --groups FILE`, got {path}."
            )
        header, states = read_state(path, lambda _: ClusterState)
        raw = header.pop("groups")
        return cls(
            {k: v for k, v in header.items() if k != "format"}, tuple(_read(g, states) for g in raw)
        )

    def open(self, model: Any, data: Any, **options: Any) -> Stream:
        """Return the stream needed to find members: the groups' sites, with the first options."""
        answers = any(c.kind == "answer" for g in self.groups for c in g.conditions)
        return open_as(self.header, answers, model, data, options)

    def members(self, stream: Stream) -> dict[tuple[str, int | None], list[bool | None]]:
        """Return for each input, by id and row, whether it belongs to each group.

        None if that is not known: a column or a label is missing, or the row is not finite. An
        input in several pieces belongs to a group if one of its pieces does.

        Raises
        ------
        StateError
            If the stream is of another model.
        """
        require_same_model(self.header, stream)
        stream = with_classes(stream, tuple(self.header["data"]["label_names"]))
        by_name: dict[tuple[str, int | None], list[bool | None]] = {}
        source, items = stream.source_rows, items_of(stream)
        for batch in stream:
            each = [_holds(group, batch, items) for group in self.groups]
            for i, order in enumerate(batch.order.tolist()):
                name = batch.ids[i], None if source is None else int(source[order])
                of_row = [holds[i] for holds in each]
                before = by_name.get(name, of_row)
                by_name[name] = [_either(a, b) for a, b in zip(before, of_row, strict=True)]
        return by_name


def with_groups(answers: pa.Table, weak: WeakGroups, stream: Stream) -> pa.Table:
    """Return a line for each input with the weak groups that contain it.

    Parameters
    ----------
    answers : pyarrow.Table
        As ``by_input`` makes it.
    weak : WeakGroups
    stream : Stream
        As ``weak.open`` returns it, of the same inputs.

    Returns
    -------
    pyarrow.Table
        With the columns ``groups``, numbers of groups from 1 (empty: in no group; null: in no known
        group, and not known for some group), and ``group_accuracy``, the lowest accuracy of these.
    """
    members = weak.members(stream)
    numbers, accuracy = [], []
    for line in answers.select(["id", "row"]).to_pylist():
        in_groups = members.get((line["id"], line["row"]), [None])
        here = [n for n, holds in enumerate(in_groups, 1) if holds]
        numbers.append(here if here or None not in in_groups else None)
        accuracy.append(min((weak.groups[n - 1].figures["accuracy"] for n in here), default=None))
    answers = answers.append_column("groups", pa.array(numbers, pa.list_(pa.int64())))
    return answers.append_column("group_accuracy", pa.array(accuracy, pa.float64()))


def _either(a: bool | None, b: bool | None) -> bool | None:
    return None if a is None and b is None else bool(a) or bool(b)


def _written(condition: Condition, states: dict[str, State | None]) -> dict[str, Any]:
    """Return a condition as JSON values; its tensors are stored in a state."""
    if isinstance(condition, Equals):
        return {"source": condition.source, "value": condition.value, "kind": condition.kind}
    if isinstance(condition, Beyond):
        return {"source": condition.source, "cut": condition.cut, "above": condition.above}
    name = f"clusters.{len(states)}"
    states[name] = ClusterState(condition.mean, condition.project, condition.centres)
    return {"source": condition.source, "index": condition.index, "state": name}


def _read(raw: dict[str, Any], states: Mapping[str, State | None]) -> KnownGroup:
    conditions = tuple(_condition(c, states) for c in raw["conditions"])
    figures = {k: v for k, v in raw.items() if k not in ("text", "conditions")}
    return KnownGroup(raw["text"], conditions, figures)


def _condition(raw: dict[str, Any], states: Mapping[str, State | None]) -> Condition:
    if "value" in raw:
        return Equals(raw["source"], raw["value"], raw["kind"])
    if "cut" in raw:
        return Beyond(raw["source"], raw["cut"], raw["above"])
    state = states[raw["state"]]
    assert isinstance(state, ClusterState)  # as the reader built it
    return Nearest(raw["source"], raw["index"], state.mean, state.project, state.centres)


def _holds(group: KnownGroup, batch: Batch, items: Any) -> list[bool | None]:
    """Return for each example whether all conditions hold, or None if that is unknown."""
    held: list[bool | None] = [True] * len(batch)
    for condition in group.conditions:
        for i, holds in enumerate(_known(condition, batch, items)):
            both = held[i], holds
            held[i] = False if False in both else None if None in both else True
    return held


def _known(condition: Condition, batch: Batch, items: Any) -> list[bool | None]:
    """Return for each example whether a condition holds, or None if that is unknown."""
    flags: list[bool | None] = [None] * len(batch)
    if isinstance(condition, Nearest):
        x = batch.rows[condition.source].detach().cpu()
        holds = condition.holds(x.nan_to_num(0, 0, 0)).tolist()
        finite = torch.isfinite(x).all(1).tolist()
        for i, is_finite, value in zip(
            batch.example[condition.source].tolist(), finite, holds, strict=True
        ):
            flags[i] = value if is_finite else None
        return flags
    values = _values(condition, batch, items)
    if values is None:
        return flags
    if isinstance(condition, Beyond):
        numbers = [float("nan") if v is None else float(v) for v in map(as_number, values)]
        return condition.holds(torch.tensor(numbers, dtype=torch.float64)).tolist()
    unlabelled = condition.kind == "label"
    pairs = zip(values, condition.holds(values).tolist(), strict=True)
    return [None if unlabelled and v < 0 else holds for v, holds in pairs]


def _values(condition: Equals | Beyond, batch: Batch, items: Any) -> list[Any] | None:
    """Return the label, the answer or a column of each example, or None if it is missing."""
    if condition.kind == "label":
        return batch.label.tolist()
    if condition.kind == "answer":
        return None if batch.logits is None else batch.logits.argmax(1).tolist()
    own = {} if items is None else items.own_columns(batch.order.tolist())
    if condition.source in own:
        return ["" if v is None else v for v in own[condition.source]]
    column = {"length": batch.length, **batch.extra}.get(condition.source)
    return None if column is None else column.reshape(len(batch), -1)[:, 0].tolist()
