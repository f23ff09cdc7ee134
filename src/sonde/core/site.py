"""Addresses of tensors in a model (``Site``) and their reduction to rows (``Reducer``)."""

import re
from dataclasses import dataclass, field
from functools import total_ordering
from typing import Any, ClassVar, Literal, get_args

from sonde.core.errors import SiteError, near

Port = Literal["out", "in", "grad", "queries", "keys", "values", "probs", "heads", "weight"]
PORTS: tuple[str, ...] = get_args(Port)
HEAD_INPUT = "logits:in"
"""The pattern of what the model's final linear layer takes in."""
POSITIONS = "positions"
"""In place of a reducer: a row for each token or patch where there are any, else as by default."""
ATTENTION_PORTS = PORTS[3:8]
"""Ports of an attention, in the order in which it makes them."""
WEIGHT = "weight"
"""The port of a parameter, which no forward makes."""
LATER_PORTS = ("scores",)

_GRAMMAR = re.compile(
    r"^(?P<path>[^@:]*)(?:@(?P<call>\d+|last|all))?(?::(?P<port>\w+)(?:\.(?P<key>\w+))?)?$"
)


@total_ordering
@dataclass(frozen=True, slots=True)
class Site:
    """Address of one tensor in a model: ``path[@call]:port[.key]``.

    Parameters
    ----------
    path : str
        Full module path without wrapper prefixes; empty for the model itself.
    call : int or "last" or "all" or None, default=None
        Which call of a module that runs several times in a forward; None if it runs once.
    port : str, default="out"
        What is read: ``out``, ``in``, or ``grad``, the gradient of a named objective at the output;
        of an attention also ``queries``, ``keys``, ``values``, ``probs`` and ``heads``; ``weight``
        is a parameter of the module, read without data.
    key : str or None, default=None
        Which leaf of an output with several tensors, by index or name; None is the first
        floating-point tensor. At a port of an attention: the number of a head, or at ``probs`` a
        statistic of each head (``entropy``); at ``weight`` the name of another parameter.
    order : int, default=0
        Rank in the order of execution. Sites sort by it; it is no part of the address.

    Examples
    --------
    >>> Site.parse("layers.12.mlp:out")
    Site('layers.12.mlp:out')
    >>> str(Site.parse("encoder.relu@1"))
    'encoder.relu@1:out'
    """

    path: str
    call: int | Literal["last", "all"] | None = None
    port: str = "out"
    key: str | None = None
    order: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        _check_port(self.port, str(self))

    @classmethod
    def parse(cls, text: str) -> "Site":
        """Return the site from its text.

        Raises
        ------
        SiteError
            If the text does not follow the grammar or names an unknown port.
        """
        match = _GRAMMAR.match(text)
        if match is None:
            raise SiteError(
                f"Site.parse: expected path[@call]:port[.key], got {text!r}. "
                "Example: layers.12.mlp:out"
            )
        _check_port(match["port"] or "out", text)
        call = match["call"]
        number: Any = int(call) if call is not None and call.isdigit() else call
        return cls(match["path"], number, match["port"] or "out", match["key"])

    def __str__(self) -> str:
        call = "" if self.call is None else f"@{self.call}"
        key = "" if self.key is None else f".{self.key}"
        return f"{self.path}{call}:{self.port}{key}"

    def __repr__(self) -> str:
        return f"Site({str(self)!r})"

    def __lt__(self, other: "Site") -> bool:
        return (self.order, str(self)) < (other.order, str(other))


def _check_port(port: str, site: str) -> None:
    if port in LATER_PORTS:
        raise SiteError(
            f"Site: port {port!r} is not supported yet, got {site!r}. Read one of the ports "
            f"{', '.join(PORTS)}."
        )
    if port not in PORTS:
        raise SiteError(
            f"Site: expected a port among {', '.join(PORTS)}, got {port!r}." + near(port, PORTS)
        )


ReducerName = Literal[
    "mean",
    "last",
    "cls",
    "tokens",
    "patches",
    "patches3",
    "flat",
    "predictions",
    "steps",
    "step_ends",
    "step_deltas",
    "step_sources",
]


@dataclass(frozen=True, slots=True)
class Reducer:
    """Rule that turns a raw module output into rows.

    Parameters
    ----------
    name : {"mean", "last", "cls", "tokens", "patches", "flat", "predictions", "steps", ...}
        ``mean`` over real tokens or over space; ``last`` real token; ``cls`` token; ``tokens``, a
        row for each real token; ``patches``, a row for each position of an image, ``patches3``,
        the mean over the 3 x 3 positions around it; ``flat``, all numbers of an example in one
        row; ``predictions``, at the logits of a language model, the
        metrics of each token that was predicted (``sonde.stats.TOKEN_METRICS``); ``steps``, the
        mean over the tokens of each step of a trajectory, ``step_ends``, the last of them,
        ``step_deltas``, the last less the token before the step, ``step_sources``, the mean over
        the tokens from which those of the step are predicted.
    axis : int or None, default=None
        The feature axis of the raw output, where the probe forward cannot tell it.
    keep_special : bool, default=False
        Keep tokens that the tokenizer declares special in ``tokens``, ``mean`` and
        ``predictions``.
    """

    name: str
    axis: int | None = None
    keep_special: bool = False

    POOLED: ClassVar[frozenset[str]] = frozenset({"mean", "last", "cls", "flat"})

    def __post_init__(self) -> None:
        names = get_args(ReducerName)
        if self.name not in names:
            raise SiteError(
                f"Reducer: expected one of {', '.join(names)}, got {self.name!r}."
                + near(self.name, names)
            )

    @classmethod
    def parse(cls, text: str) -> "Reducer":
        """Return the reducer from its text.

        Raises
        ------
        SiteError
            If ``text`` does not have this form.

        Examples
        --------
        >>> str(Reducer.parse("mean(axis=1)+special"))
        'mean(axis=1)+special'
        """
        match = re.match(r"^(\w+)(?:\(axis=(-?\d+)\))?(\+special)?$", text)
        if match is None:
            raise SiteError(f"Reducer.parse: expected name(axis=...)+special, got {text!r}.")
        name, axis, special = match.groups()
        return cls(name, None if axis is None else int(axis), special is not None)

    @property
    def one_row(self) -> bool:
        """True if every example gives exactly one row."""
        return self.name in self.POOLED

    def __str__(self) -> str:
        axis = "" if self.axis is None else f"(axis={self.axis})"
        special = "+special" if self.keep_special else ""
        return f"{self.name}{axis}{special}"


def row_key(site: Site | str, reducer: Reducer | str | None = None) -> str:
    """Return the key of a kind of rows: the site, or ``site|reducer`` for further reducers.

    Examples
    --------
    >>> row_key("layers.0:out", "tokens")
    'layers.0:out|tokens'
    """
    return str(site) if reducer is None else f"{site}|{reducer}"
