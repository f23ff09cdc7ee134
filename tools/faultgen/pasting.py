"""Run the line of code in a fix, as a user pastes it, and return what it makes of rows and net."""

import ast
import builtins
import copy
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import CodeType
from typing import Any

import numpy as np
import pandas as pd
import torch
from tools.faultgen.tasks import Rows, Spec
from tools.faultgen.worlds import World, answers
from torch import Tensor, nn

ENDS = re.compile(r":\s|\.\s|\.$|,\s|\s\(|;\s|\s--?\s|$")
ANSWERS = ("y", "logits", "answers", "outputs", "scores")
TARGETS = ("label", "labels", "target", "targets")


@dataclass(frozen=True)
class Pasted:
    """Rows, net and answers after a line of code."""

    rows: Rows
    net: nn.Module
    answers: Tensor
    on_answers: bool = False


def code_of(fix: str) -> str:
    """Return the longest part of a fix that is Python and assigns or calls something; or ""."""
    starts = [0, *(m.end() for m in re.finditer(r":\s|\.\s|;\s", fix))]
    ends = [m.start() for m in ENDS.finditer(fix)]
    spans = sorted(((b - a, a, b) for a in starts for b in ends if b > a), reverse=True)
    for _, a, b in spans:
        text = fix[a:b].strip()
        if _acts(text):
            return text
    return ""


def _acts(text: str) -> bool:
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return False
    acting = (ast.Assign, ast.AugAssign)
    return any(
        isinstance(n, acting) or (isinstance(n, ast.Expr) and isinstance(n.value, ast.Call))
        for n in tree.body
    )


def _names(code: str) -> set[str]:
    return {n.id for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Name)}


def pasted(fix: str, world: World, rows: Rows, modules: frozenset[str]) -> Pasted | None:
    """Return the world after the code of a fix; None if there is none, or if it raises.

    Parameters
    ----------
    fix : str
    world : World
        With the fault.
    rows : Rows
        Rows with the fault.
    modules : frozenset of str
        Paths that the fix names: ``y`` is the output of these modules then.
    """
    text = code_of(fix)
    if not text:
        return None
    try:
        code, names = compile(text, "fix", "exec"), _names(text)
        if names & set(ANSWERS):
            if modules and "logits" not in names:
                return _on_outputs(code, world, rows, modules)
            return _on_answers(code, world, rows)
        return _on_inputs(code, world, rows)
    except Exception:  # whatever a pasted line raises, it mends nothing
        return None


def _on_answers(code: CodeType, world: World, rows: Rows) -> Pasted:
    given = answers(world.net, rows)
    names: dict[str, Any] = dict.fromkeys(ANSWERS, given.clone())
    exec(code, _bound(names))
    changed = [names[n] for n in ANSWERS if not torch.equal(names[n], given)]
    return Pasted(rows, world.net, changed[0] if changed else given, True)


def _on_outputs(code: CodeType, world: World, rows: Rows, modules: frozenset[str]) -> Pasted:
    net = copy.deepcopy(world.net)

    def hook(_: nn.Module, __: Any, out: Any) -> Any:
        first = out[0] if isinstance(out, tuple) else out
        names: dict[str, Any] = {"y": first}
        exec(code, _bound(names))
        return (names["y"], *out[1:]) if isinstance(out, tuple) else names["y"]

    for path in modules:
        net.get_submodule(path).register_forward_hook(hook)
    return Pasted(rows, net, answers(net, rows))


def _bound(names: dict[str, Any]) -> dict[str, Any]:
    names |= {
        "torch": torch, "np": np, "numpy": np, "pd": pd, "nan": math.nan, "inf": math.inf,
        "nn": nn, "F": nn.functional, "__builtins__": builtins,
    }  # fmt: skip
    return names


def _on_inputs(code: CodeType, world: World, rows: Rows) -> Pasted:
    specs, net = world.task.specs, copy.deepcopy(world.net)
    names: dict[str, Any] = {n: t.clone() for n, t in rows.tensors.items()}
    single = [n for n, s in specs.items() if s.role == "numbers"]
    if len(single) == 1:
        x = world.train.tensors[single[0]]
        axis = specs[single[0]].feature_axis or 1
        rest = [i for i in range(x.ndim) if i != axis]
        names |= {"x": rows.tensors[single[0]].clone()}
        names |= {"mean": x.mean(rest, keepdim=True)[0], "std": x.std(rest, keepdim=True)[0]}
    for name in TARGETS:
        names[name] = rows.target.clone()
    frame = _frame(rows, specs)
    names |= {"frame": frame.copy(), "df": frame.copy(), "model": net, "net": net}
    names |= {n: m for n, m in net.named_children() if n not in names}
    exec(code, _bound(names))
    tensors = {n: _tensor(names[n], t) for n, t in rows.tensors.items()}
    if len(single) == 1:
        old = rows.tensors[single[0]]
        new = _tensor(names["x"], old)
        tensors[single[0]] = tensors[single[0]] if torch.equal(new, old) else new
    target = rows.target
    for name in TARGETS:
        new = _tensor(names[name], target)
        target = target if torch.equal(new, rows.target) else new
    made = Rows(tensors, target)
    for name in ("frame", "df"):
        if not names[name].equals(frame):
            made = _from_frame(names[name], frame, made, specs, world.train)
    return Pasted(made, net, answers(net, made))


def _tensor(value: Any, like: Tensor) -> Tensor:
    return torch.as_tensor(np.asarray(value) if not isinstance(value, Tensor) else value).to(like)


def _frame(rows: Rows, specs: Mapping[str, Spec]) -> pd.DataFrame:
    columns = {
        name: rows.tensors[tensor][:, i].numpy().astype(float)
        for tensor, spec in specs.items()
        for i, name in enumerate(spec.columns)
        if spec.axes == ("column",)
    }
    frame = pd.DataFrame(columns)
    if rows.target.ndim == 1 or rows.target.shape[1:] == (1,):
        frame["label"] = rows.target.flatten().numpy()
    return frame


def _from_frame(
    new: pd.DataFrame, old: pd.DataFrame, rows: Rows, specs: Mapping[str, Spec], train: Rows
) -> Rows:
    """Return rows with the columns of a changed frame, gaps filled as in training."""
    tensors = dict(rows.tensors)
    for tensor, spec in specs.items():
        for i, name in enumerate(spec.columns if spec.axes == ("column",) else ()):
            if new[name].equals(old[name]):
                continue
            values = torch.from_numpy(new[name].to_numpy(float).copy())
            filled = train.tensors[tensor][:, i].double().median()
            values = torch.where(values.isnan(), filled, values)
            tensors[tensor] = tensors[tensor].clone()
            tensors[tensor][:, i] = values.to(tensors[tensor])
    target = rows.target
    if "label" in new and not new["label"].equals(old["label"]):
        target = torch.from_numpy(new["label"].fillna(0).to_numpy().copy()).reshape(target.shape)
        target = target.to(rows.target)
    return Rows(tensors, target)
