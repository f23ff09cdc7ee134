"""Every edit against every law."""

import pytest
import torch

import sonde.core
from sonde.core import Add, Clamp, Edit, Project, Replace, Scale
from sonde.testing import check

DIRECTION = torch.tensor([0.3, -2.0, 0.0, 1.0], dtype=torch.float64)
EDITS = [
    edit
    for strength in (1.0, 0.5)
    for edit in (
        Add(DIRECTION, strength),
        Project(DIRECTION, strength),
        Scale(3.0, strength),
        Clamp(-0.5, 0.5, strength),
        Replace(DIRECTION, strength),
    )
]


def test_exported_set_is_tested_set():
    members = [getattr(sonde.core, name) for name in dir(sonde.core)]
    kinds = {m for m in members if isinstance(m, type) and issubclass(m, Edit) and m is not Edit}
    assert kinds == {type(edit) for edit in EDITS}


@pytest.mark.parametrize("edit", EDITS, ids=lambda e: f"{type(e).__name__}-{e.strength}")
def test_laws(edit):
    check(edit)
