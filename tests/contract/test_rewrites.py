"""Every rewrite and every merge rule against every law."""

import importlib
from typing import Any

import pytest
import torch
from torch import nn

from compress.mixture_case import inputs, mixture
from edit.fact_model import FACTS, tiny
from models import Residual, small_vit
from sonde.compress import AlternateSlim, DropBlocks, MergeExperts, SliceWidth
from sonde.core.inputs import Model
from sonde.edit import (
    BatchEdit,
    Dare,
    FisherMerge,
    RankOneEdit,
    RegMean,
    Slerp,
    TaskArithmetic,
    Ties,
)
from sonde.run.instruments.families import FAMILIES
from sonde.stats import Moments
from sonde.testing import RewriteCase, check
from sonde.weights import MergeRule, Rewrite

LAYERS = ("model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj")
SHIFTS = torch.linspace(-1, 1, 32).reshape(2, 16)


def members(kind: type) -> set[type[Any]]:
    packages = [importlib.import_module(f"sonde.{family}") for family in FAMILIES]
    named = [getattr(package, name) for package in packages for name in package.__all__]
    return {m for m in named if isinstance(m, type) and issubclass(m, kind) and m is not kind}


def moments(rewrite: Rewrite, model: Model) -> dict[str, torch.Tensor]:
    """Return rows for the input of each layer; the second has a free direction."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(100, 24, generator=draw)
    rows[:, 3] = 0.0
    free = getattr(rewrite, "how", "") == "null_space"
    return {f"{layer}:in": rows if free else rows + 0.1 * torch.eye(24)[3] for layer in LAYERS}


def in_blocks() -> nn.Module:
    """Return a net of four blocks that takes small images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Residual(64, 4).eval()


CASES = [
    *(RewriteCase(DropBlocks(**parameters), in_blocks) for parameters in DropBlocks.examples),
    *(
        RewriteCase(cls(**parameters), small_vit)
        for cls in (AlternateSlim, SliceWidth)
        for parameters in cls.examples
    ),
    RewriteCase(RankOneEdit(FACTS[0], LAYERS[0], shift=SHIFTS[0]), tiny, moments),
    RewriteCase(BatchEdit(FACTS[:2], LAYERS, shifts=SHIFTS), tiny, moments),
    RewriteCase(BatchEdit(FACTS[:2], LAYERS, how="null_space", shifts=SHIFTS), tiny, moments),
]
CASES += [
    RewriteCase(MergeExperts(**given), mixture, lambda _, model: {"calibration": inputs(model)})
    for given in MergeExperts.examples
]
ALONE = members(Rewrite) - {type(case.rewrite) for case in CASES}
CASES += [
    RewriteCase(cls(**parameters))
    for cls in sorted(ALONE, key=lambda cls: cls.__name__)
    for parameters in cls.examples
]
X = torch.randn(30, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
FISHERS = [{"layer.weight": X[:4].abs()}, {"layer.weight": X[4:8].abs()}]
INPUTS = [{"layer": Moments().observe(x)} for x in (X[:12], X[12:])]
RULES: list[MergeRule] = [
    TaskArithmetic(),
    Ties(),
    Dare(0.5),
    FisherMerge(FISHERS),
    RegMean(INPUTS),
    Slerp(0.3),
]


def test_exported_rules_are_tested_rules():
    assert members(MergeRule) == {type(rule) for rule in RULES}


@pytest.mark.essential
@pytest.mark.parametrize(
    "case", CASES, ids=lambda c: f"{type(c.rewrite).__name__}-{len(repr(c.rewrite))}"
)
def test_laws_of_rewrites(case):
    check(case)


@pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)
def test_laws_of_merge_rules(rule):
    check(rule)
