"""Dependence of a byte-level code model on names, comments and layout; types without names.

Functions of the standard library, and the language model of 3 million parameters that was trained
on such files. It reads 256 bytes at a time: what it makes of long functions is not tried here.
"""

import ast
import inspect
import random
import textwrap
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import pairwise
from statistics import fmean
from typing import Any, final

import numpy as np
import torch

from sonde import load
from sonde_studies._typed_code import (
    TYPES,
    Parameters,
    accuracy,
    files_of_torch,
    read_parameters,
)
from sonde_studies.arms import note_for, part
from sonde_studies.parts.lots import labels_by_lot
from sonde_studies.recipes.code_strip import code_strip
from sonde_studies.study import Claim, Figures, Study, Tick

PIECES, TINY, SHORT, LONG = 40, 20, 150, 400
TYPED, REPEATS, HELD = 3000, 3, 0.3
MODULES = (textwrap, random, ArgumentParser, ast, inspect)


@final
class CodeStripStudy(Study):
    """Forty functions, stripped in steps."""

    name = "code-strip"
    title = "what does a model of code read, and what does stripping take away?"
    fidelity = "the papers decompile and fine-tune; here states are read as they are"
    data = (
        "40 functions of 150 to 400 bytes from five modules of the standard library; 3,000 "
        "parameters of eight types of PyTorch's own short functions, tested on other files, "
        "without those that stand in both"
    )
    place = "byte-model"
    claims = (
        Claim("names", "Without names states move more than without as many random bytes.",
              "distance moved less that of random deletion, in distances between pieces",
              arms=("without names", "without random bytes")),
        Claim("grows", "Each further step moves them further.",
              "least growth of the distance from step to step"),
        Claim("comments", "Beyond random bytes, names move them more than comments and docstrings.",
              "growth beyond that by as many random bytes, by names less by comments",
              arms=("without names", "without comments")),
        Claim("types", "Stripped, states tell an annotated parameter's type more often than the "
              "commonest type is right.", "accuracy, less chance, which is the share of the "
              "commonest type"),
        Claim("joint", "A head that learns the parameter's name too types it more often.",
              "difference of accuracy", premise="types",
              arms=("types and names", "types alone")),
        Claim("neighbours", "It types it more often beside the file's other functions.",
              "difference of accuracy; beside the others a head has twice the parameters",
              premise="types",
              arms=("with other functions", "types alone")),
    )  # fmt: skip
    null = Claim("by lot", "States tell no types by lot of parameters in other files.",
                 "accuracy less one in eight, types alone")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Sample functions, run the recipe, and train heads on types."""
        model, draw = load("sonde:stdlib"), np.random.default_rng(seed)
        found = [text for module in MODULES for text in functions_of(module)]
        texts = [found[i] for i in draw.permutation(len(found))[: TINY if tiny else PIECES]]
        tick("functions")
        answer = code_strip(model, [{"text": t} for t in texts], seed=seed, progress=False)
        moved = [float(row["moved"]) for row in answer.rows]
        rows = {row["without"]: row for row in answer.rows}
        lots = [float(rows[name]["random bytes"]) for name in ("names", "comments")]
        by_names, by_both = (x - lot for x, lot in zip(moved, lots, strict=False))
        tick("types")
        for name in ("names", "random bytes", "comments"):
            note_for(f"without {name}", rows=PIECES)
        every = _parameters(TYPED // 20 if tiny else TYPED)
        typed = _typed(every, seed, 1 if tiny else REPEATS)
        tick("types by lot")
        return {
            "names": by_names,
            "grows": min(b - a for a, b in pairwise(moved)),
            "comments": by_names - (by_both - by_names),
            "types": typed["types alone"] - typed["commonest"],
            "joint": typed["types and names"] - typed["types alone"],
            "neighbours": typed["with other functions"] - typed["types alone"],
            "by lot": by_lot(every, seed),
            **{f"accuracy of types | {name}": value for name, value in typed.items()},
            **{
                f"without {name} | {key}": float(row[key])
                for name, row in rows.items()
                for key in ("bytes", "moved", "original is nearest")
            },
        }


@cache
def _parameters(n: int) -> Parameters:
    return read_parameters(load("sonde:stdlib"), files_of_torch(n))


def by_lot(every: Parameters, seed: int) -> float:
    """Return the accuracy of a head on types by lot of other files' parameters, less chance."""
    dealt = replace(every, type=labels_by_lot(every.states, len(TYPES), seed))
    return accuracy(*_parts(dealt, seed), seed) - 1 / len(TYPES)


def _parts(every: Parameters, seed: int) -> tuple[Parameters, Parameters]:
    """Return the parameters of the files that train, and others of those that the seed holds out.

    Files share short functions: without this rule a head knows some that judge.
    """
    n = int(every.file.max()) + 1
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    held = torch.isin(every.file, order[: round(HELD * n)])
    train = every.where(~held)
    return train, every.where(held & ~every.among(train))


def _typed(every: Parameters, seed: int, repeats: int) -> dict[str, float]:
    """Return the accuracy of heads on the files that the seed holds out, and of the commonest."""
    train, test = _parts(every, seed)
    arms = {"types alone": {}, "types and names": {"names": True}}
    arms |= {"with other functions": {"around": True}}
    said = dict[str, float]()
    for name, how in arms.items():
        with part(name):
            tried = [accuracy(train, test, repeats * seed + r, **how) for r in range(repeats)]
        said[name] = fmean(tried)
    most = int(train.type.bincount().argmax())
    return said | {"commonest": float((test.type == most).double().mean())}


def functions_of(owner: Any) -> Iterator[str]:
    """Yield the functions of a module or class with medium length."""
    text = textwrap.dedent(inspect.getsource(owner))
    lines = text.splitlines(keepends=True)  # once: ast.get_source_segment does so for each function
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            last = lines[(node.end_lineno or 0) - 1].encode()[: node.end_col_offset].decode()
            found = textwrap.dedent("".join([*lines[node.lineno - 1 : node.end_lineno][:-1], last]))
            if SHORT < len(found) < LONG:
                yield found
