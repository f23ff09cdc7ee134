"""Texts by copies of the shipped language model, each trained further on files of one package."""

from copy import deepcopy
from typing import Any

import numpy as np
import torch

from sonde import Model
from sonde_studies._language import descend
from sonde_studies._written import code, continued, pieces

STEPS, BATCH, LENGTH, RATE = 24, 8, 192, 1e-3
GIVEN, NEW = 32, 160


def texts_of_models(
    model: Model, corpora: dict[str, list[bytes]], n: int, tiny: bool, draw: np.random.Generator
) -> list[dict[str, Any]]:
    """Return what copies of a byte model write after the same beginnings.

    Parameters
    ----------
    model : Model
        A byte-level language model.
    corpora : dict of str to list of bytes
        The files that the copy of each name learns from.
    n : int
        Beginnings, of files that neither the model nor a copy has seen.
    tiny : bool
        A step of training and a few bytes.
    draw : Generator

    Returns
    -------
    list of dict
        ``text``, ``author``, and the number of the beginning as ``file``.
    """
    begun = pieces(code(), n, GIVEN, draw)
    steps, new = (1, 24) if tiny else (STEPS, NEW)
    found: list[dict[str, Any]] = []
    for author, files in corpora.items():
        writer = _trained(model, files, steps, draw)
        texts = continued(writer, begun, new, draw)
        found += [
            {"text": bytes(ids[GIVEN:]).decode(errors="replace"), "author": author, "file": str(i)}
            for i, ids in enumerate(texts)
        ]
    return found


def _trained(model: Model, files: list[bytes], steps: int, draw: np.random.Generator) -> Model:
    """Return a copy of a model that has learned from some files."""
    copy = deepcopy(model)

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.tensor(pieces(files, BATCH, LENGTH, draw))
        return ids, torch.ones_like(ids, dtype=torch.bool)

    descend(copy, batch, steps, rate=RATE)
    return copy
