"""Parameters with annotated types, and heads that read types from states of stripped code.

The code is PyTorch's own: functions without their annotations, defaults and names. A parameter's
state is the mean of a code model's states where the body of the function mentions it.
"""

import ast
import copy
import io
import re
import tokenize
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sonde import Model
from sonde_studies.arms import note
from sonde_studies.parts.source import KEPT_NAMES, without_names

TYPES = ("str", "int", "Tensor", "list", "bool", "Callable", "dict", "float")
N_NAMES, LAYER, BATCH, HIDDEN, STEPS, RATE, DECAY = 40, 5, 64, 64, 200, 3e-3, 1e-2
SHORTEST, LONGEST = 40, 256


@dataclass(frozen=True)
class Parameters:
    """Parameters of functions: their states, those of the rest of the file, types and names.

    ``name`` is -1 for a name that is not among the commonest.
    """

    states: Float[Tensor, "parameter dim"]
    around: Float[Tensor, "parameter dim"]
    type: Int[Tensor, "parameter"]
    name: Int[Tensor, "parameter"]
    file: Int[Tensor, "parameter"]

    def where(self, kept: Tensor) -> "Parameters":
        """Return some of the parameters."""
        parts = {k: v[kept] for k, v in vars(self).items()}
        return replace(self, **parts)

    def among(self, others: "Parameters") -> Bool[Tensor, "parameter"]:
        """Return which parameters have the states of one of others, to four decimals."""
        own, known = (part.states.round(decimals=4).numpy() for part in (self, others))
        seen = {row.tobytes() for row in known}
        return torch.tensor([row.tobytes() in seen for row in own])


@dataclass(frozen=True)
class Typed:
    """A parameter of a stripped function: the bytes that mention it, its type and name."""

    text: str
    places: tuple[int, ...]
    type: int
    name: str


def typed_parameters(source: str) -> list[Typed]:
    """Return the parameters of one of ``TYPES`` of a module's short functions."""
    found: list[Typed] = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef) or len(node.body) > LONGEST // 8:
            continue
        bare = _bare(node)
        code = ast.unparse(bare)
        text = without_names(code)
        if not SHORTEST <= len(text) <= LONGEST or not text.isascii():
            continue
        body = text.index("\n") if "\n" in text else len(text)
        for argument in (*node.args.args, *node.args.kwonlyargs):
            kind = _kind(argument.annotation)
            if kind is None or argument.arg in KEPT_NAMES:
                continue
            mention = rf"\b{_stripped(code, argument.arg)}\b"
            places = tuple(m.end() - 1 for m in re.finditer(mention, text) if m.start() > body)
            if places:
                found.append(Typed(text, places, kind, argument.arg))
    return found


def _bare(node: ast.FunctionDef) -> ast.FunctionDef:
    """Return a function without docstring, decorators, annotations and defaults."""
    node = copy.deepcopy(node)
    node.decorator_list, node.returns = [], None
    node.body = node.body[ast.get_docstring(node) is not None :] or [ast.Pass()]
    node.args.defaults, node.args.kw_defaults = [], [None] * len(node.args.kwonlyargs)
    for argument in ast.walk(node.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    return node


def _kind(annotation: ast.expr | None) -> int | None:
    """Return the number of an annotated type; ``None`` beside it and its items are left out."""
    said = "" if annotation is None else ast.unparse(annotation).replace(" | None", "")
    said = said.removeprefix("Optional[").removeprefix("torch.").partition("[")[0].rstrip("]")
    said = {"List": "list", "Dict": "dict"}.get(said, said)
    return TYPES.index(said) if said in TYPES else None


def _stripped(code: str, name: str) -> str:
    """Return what ``without_names`` makes of a name."""
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    names = (t.string for t in tokens if t.type == tokenize.NAME and t.string not in KEPT_NAMES)
    return f"v{list(dict.fromkeys(names)).index(name)}"


@cache
def files_of_torch(n: int) -> list[list[Typed]]:
    """Return at least ``n`` parameters of PyTorch's modules, file by file in a random order."""
    paths = sorted(Path(torch.__file__).parent.rglob("*.py"))
    found: list[list[Typed]] = []
    for i in np.random.default_rng(0).permutation(len(paths)):
        if mine := typed_parameters(paths[i].read_text("utf-8")):
            found.append(mine)
        if sum(map(len, found)) >= n:
            break
    return found


def read_parameters(model: Model, files: list[list[Typed]]) -> Parameters:
    """Return the parameters of files with states of the model."""
    texts = list(dict.fromkeys(p.text for file in files for p in file))
    states = dict(zip(texts, _states(model, texts), strict=True))
    whole = {text: rows.mean(0) for text, rows in states.items()}
    flat, around = [(p, i) for i, each in enumerate(files) for p in each], list[Tensor]()
    own = torch.stack([states[p.text][list(p.places)].mean(0) for p, _ in flat])
    for parameter, file in flat:
        others = [whole[t] for t in {p.text for p in files[file]} - {parameter.text}]
        around.append(torch.stack(others).mean(0) if others else torch.zeros_like(own[0]))
    common = [name for name, _ in Counter(p.name for p, _ in flat).most_common(N_NAMES)]
    name = [common.index(p.name) if p.name in common else -1 for p, _ in flat]
    return Parameters(
        own, torch.stack(around), torch.tensor([p.type for p, _ in flat]), torch.tensor(name),
        torch.tensor([i for _, i in flat]),
    )  # fmt: skip


@torch.no_grad()
def _states(model: Model, texts: list[str]) -> list[Float[Tensor, "byte dim"]]:
    made: list[Tensor] = []
    for start in range(0, len(texts), BATCH):
        ids = [torch.tensor(list(t.encode())) for t in texts[start : start + BATCH]]
        padded = nn.utils.rnn.pad_sequence(ids, batch_first=True)
        found = model.module(padded, output_hidden_states=True).hidden_states[LAYER]
        made += [row[: len(i)] for row, i in zip(found, ids, strict=True)]
    return made


@torch.enable_grad()
def accuracy(
    train: Parameters, test: Parameters, seed: int, names: bool = False, around: bool = False
) -> float:
    """Return how often a head with a hidden layer gives the right type of other files' parameters.

    Parameters
    ----------
    train, test : Parameters
    seed : int
        Of the initial weights.
    names : bool, default=False
        Teach the head the parameters' names too.
    around : bool, default=False
        Let it read the states of the file's other functions too.
    """
    x, new = (torch.cat([p.states, p.around], 1) if around else p.states for p in (train, test))
    middle, width = x.mean(0), x.std(0) + 1e-6
    x, new = (x - middle) / width, (new - middle) / width
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inner = nn.Sequential(nn.Linear(x.shape[1], HIDDEN), nn.ReLU(), nn.Dropout(0.5))
        kinds, named = nn.Linear(HIDDEN, len(TYPES)), nn.Linear(HIDDEN, N_NAMES)
        every = [*inner.parameters(), *kinds.parameters(), *named.parameters()]
        note(rows=len(x))
        optimiser = torch.optim.AdamW(every, RATE, weight_decay=DECAY)
        for _ in range(STEPS):
            hidden = inner(x)
            loss = nn.functional.cross_entropy(kinds(hidden), train.type)
            if names:
                loss = loss + nn.functional.cross_entropy(
                    named(hidden), train.name, ignore_index=-1
                )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return float((kinds(inner.eval()(new)).argmax(1) == test.type).double().mean())
