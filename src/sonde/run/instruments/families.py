"""Families of methods, and the listed facts of a method; no method is imported here.

A new family of methods needs its word in ``FAMILIES``, and nothing else.
"""

import re
from dataclasses import asdict, dataclass, field
from inspect import cleandoc
from typing import Any

FAMILIES = ("measure", "detect", "edit", "explain", "compress", "layers", "train")
"""Rooms of methods: one method is one file, and a name in the room's ``__all__``."""
PLUG_IN = "plug-in"
PLUG_INS = "sonde.methods"
"""Group of entry points by which other distributions announce methods: ``word = package:Class``."""
FITTED = ("measure", "detector", "shift")
"""Kinds whose words ``sonde fit`` knows."""


@dataclass(frozen=True)
class Listed:
    """Name, kind and summary of one exported method.

    Parameters
    ----------
    name : str
        Its word if ``sonde fit`` knows it, else its name in Python.
    family : str
    kind : str
        A name in ``catalogue.KINDS``; ``"function"``, or ``"method"`` for a class without a base.
    export : str
        Its name in the family's ``__all__``.
    description : str
        Its docstring up to the examples.
    paper : str
        Key in ``docs/papers.bib``, or nothing.
    parameters : dict of str to str
        Defaults by name, as Python writes them.
    variants : dict of str to str
        Keys of further papers, by the name of the variant that each describes.
    span : str
        Sites of one result of a fitted method: ``one``, ``pair`` or ``all``; empty for other kinds.
    distribution : str
    """

    name: str
    family: str
    kind: str
    export: str
    description: str
    paper: str = ""
    parameters: dict[str, str] = field(default_factory=dict)
    variants: dict[str, str] = field(default_factory=dict)
    span: str = ""
    distribution: str = "sonde"

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return self.description.partition("\n")[0]

    @property
    def is_fitted(self) -> bool:
        """True if ``sonde fit`` accepts it."""
        return self.kind in FITTED

    def json(self) -> dict[str, Any]:
        """Return the entry of ``sonde methods --json``."""
        entry = {key: value for key, value in asdict(self).items() if key != "description"}
        entry |= {"word": entry.pop("name"), "class": entry.pop("export"), "summary": self.summary}
        return entry if self.kind != "function" else {**entry, "class": ""}


def snake_case(name: str) -> str:
    """Return a class's name in snake_case, with acronyms in one piece.

    Examples
    --------
    >>> [snake_case(n) for n in ("RelativeMahalanobis", "KNN", "LayerCKA", "TwoNN", "NAC")]
    ['relative_mahalanobis', 'knn', 'layer_cka', 'two_nn', 'nac']
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def described(docstring: str | None) -> str:
    """Return the text of a docstring before its examples."""
    return cleandoc(docstring or "").partition("\n\nExamples\n")[0]
