"""Find which axis of a raw output holds rows, positions, space and features."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sonde.core.errors import SiteError
from sonde.core.site import Site
from sonde.tap.model.features import by_classes, by_number, by_sizes
from sonde.tap.model.influence import Influence
from sonde.tap.model.probe import ROWS, Probe, TensorLayout

SPACE = ("h", "w")
TOKEN, FILLED = "token", "window"
FREE = frozenset({"h", "w", "t", "patch"})


@dataclass(frozen=True)
class Axes:
    """The axes of one raw output.

    Parameters
    ----------
    words : tuple of str
        One word an axis: ``row``, ``pos`` (tokens), ``pos2`` (the decoder's tokens), ``patch`` (one
        axis of space), ``h w``, ``t h w``, ``dim``. ``token`` holds the tokens of all rows, row
        after row; ``window`` holds the tokens, and behind them what the model fills up with.
    prefix, suffix : int, default=0
        Tokens before and behind the patches: class, distillation and register tokens.
    cls : int or None, default=None
        Which of these tokens is the class token.
    """

    words: tuple[str, ...]
    prefix: int = 0
    suffix: int = 0
    cls: int | None = None

    def __str__(self) -> str:
        return " ".join(self.words)

    @property
    def kind(self) -> str:
        """``vector``, ``pos``, ``pos2`` or ``space``."""
        for word in ("pos", "pos2"):
            if word in self.words:
                return word
        if TOKEN in self.words or FILLED in self.words:
            return "pos"
        return "space" if FREE & set(self.words) else "vector"

    def last_dim(self, x: Tensor) -> Tensor:
        """Return a view of ``x``: rows first, features last, the others between in order."""
        if "dim" not in self.words:
            x = x.unsqueeze(-1)
        words = self.words if "dim" in self.words else (*self.words, "dim")
        order = [words.index("row"), *(i for i, w in enumerate(words) if w not in ("row", "dim"))]
        order.append(words.index("dim"))
        return x if order == list(range(x.ndim)) else x.permute(order)


def find_axes(
    probe: Probe,
    path: str,
    call: int,
    port: str,
    key: str | None,
    axis: int | None,
    influence: Influence,
) -> Axes:
    """Return the axes of the tensor at a site.

    Axes that follow the inputs hold no features, unless the module's class says so. If several axes
    are left, the module that made the tensor tells (``FeatureAxes``), then the module's own
    weights, then what a change of the inputs reaches.

    Raises
    ------
    SiteError
        If no axis follows the number of examples, or several could be the features.
    """
    first, second = probe.leaf(path, call, port, key)
    where = f"{path}:{port}"
    _require_dense(first, where)
    if first.is_nested and len(first.shape) == 3 and probe.change.pos2 is None:
        return Axes(("row", "pos", "dim"))
    words = _varying(first, second, probe)
    may_hold = _may_hold_all_tokens(words, first, second, probe)
    if may_hold and influence.joins_rows(Site(path, call, port, key)):
        return Axes((TOKEN, "dim"))
    module = probe.names.modules[path]
    declared = by_number(module, first.shape, key or "") if port == "out" else None
    if declared is None and port in ("in", "out"):
        declared = _told_axis(module, len(first.shape))
    if declared is not None and words[declared] == "?":
        words[declared] = ""
    if "row" not in words:
        raise SiteError(
            f"Site: expected an axis of examples at {where}, got shape {first.shape} for "
            f"{ROWS[0]} examples{_routed(probe, path, first)}. Read the block around it."
        )
    fixed = [i for i, word in enumerate(words) if word == ""]
    chosen = _given_axis(axis, first, fixed, where)
    if chosen is None and declared in fixed:
        chosen = declared
    if fixed and chosen is None:
        chosen = fixed[0] if len(fixed) == 1 else first.features
    if fixed and chosen not in fixed:
        chosen = by_sizes(first.shape, fixed, module)
    if fixed and chosen is None:
        chosen = influence.features(Site(path, call, port, key), fixed)
    if fixed and chosen is None:
        raise SiteError(
            f"Site: expected one feature axis at {where}, got shape {first.shape} where "
            f"each of {fixed} could be the feature axis. Give the axis: "
            f"--axes {_choices(words, fixed)} (axes= in Python, or Reducer(name, axis=...))."
        )
    others = [i for i in fixed if i != chosen]
    if "pos" not in words and [first.shape[i] for i in others] == [_one_length(probe)]:
        words[others.pop()] = "pos"
    if chosen is not None:
        words[chosen] = "dim"
    elif words.count("row") != len(words):
        raise SiteError(
            f"Site: expected a feature axis at {where}, got shape {first.shape} for {ROWS[0]} "
            "examples, in which every other axis has a length of the inputs. Read the module "
            "before it."
        )
    if others and probe.change.kind == "tokens" and pads_itself(probe.names.modules[""]):
        if not influence.fills_up(Site(path, call, port, key), others, probe.change):
            raise _filled_up(where, first)
        words[others.pop()] = FILLED
    _name_space(words, others)
    return Axes(tuple(words))


def _may_hold_all_tokens(
    words: Sequence[str], first: TensorLayout, second: TensorLayout | None, probe: Probe
) -> bool:
    """Return whether one axis fits the tokens of all rows together, and the other the units."""
    pos = probe.change.pos
    if "row" in words or pos is None or second is None or len(first.shape) != 2:
        return False
    if first.shape[1] != second.shape[1]:
        return False
    return (first.shape[0], second.shape[0]) == (ROWS[0] * pos[0], ROWS[1] * pos[0])


def _filled_up(where: str, leaf: TensorLayout) -> SiteError:
    return SiteError(
        f"Site: expected outputs as long as the texts at {where}, got {leaf.shape}: the model "
        "pads texts itself there, to whole windows, and which states belong to the texts is "
        "not known. Read a module that removes the padding again, such as 'encoder', or the "
        "model itself ('')."
    )


def _told_axis(module: nn.Module, ndim: int) -> int | None:
    """Return the axis of input and output features that a module declares, or None."""
    axis = getattr(module, "features_axis", None)
    return axis % ndim if isinstance(axis, int) and -ndim <= axis < ndim else None


def _one_length(probe: Probe) -> int | None:
    """Return the length of the texts if no other length could be tried, else None."""
    pos = probe.change.pos
    return pos[0] if pos is not None and pos[0] == pos[1] else None


def _require_dense(leaf: TensorLayout, where: str) -> None:
    if leaf.layout is not torch.strided:
        layout = str(leaf.layout).removeprefix("torch.")
        raise SiteError(
            f"Site: expected a dense output, got an output of layout {layout} and shape "
            f"{leaf.shape} at "
            f"{where}. Read the module after it."
        )


def _choices(words: Sequence[str], fixed: Sequence[int]) -> str:
    """Return possible axis names: one choice for each axis that could hold the features."""
    choices = []
    for dim in fixed:
        named = ["dim" if i == dim else word for i, word in enumerate(words)]
        _name_space(named, [i for i in fixed if i != dim])
        choices.append(repr(" ".join(named)))
    return " or ".join(choices)


def pads_itself(root: nn.Module) -> bool:
    """Return whether a model pads texts to whole windows of attention."""
    config = root.__dict__.get("config")
    return any(hasattr(config, name) for name in ("attention_window", "local_attn_chunk_length"))


def _varying(first: TensorLayout, second: TensorLayout | None, probe: Probe) -> list[str]:
    """Return a name for each axis that follows the inputs, and "" for the others."""
    change, shape = probe.change, first.shape
    if second is None or len(second.shape) != len(shape):
        second_shape: Sequence[int] = shape
        is_row = [size == ROWS[0] for size in shape]
    else:
        second_shape = second.shape
        is_row = [pair == ROWS for pair in zip(shape, second_shape, strict=True)]
    if shape.count(_one_length(probe) or -1) > 1 and first.features is None:
        change = replace(change, pos=None)  # features may be as many as tokens: nothing tells here
    words = [""] * len(shape)
    if any(is_row):
        words[is_row.index(True)] = "row"
    for i, pair in enumerate(zip(shape, second_shape, strict=True)):
        if words[i] or (pair[0] == pair[1] and i == first.features):
            continue  # as long as the texts, but what made it says that these are features
        if pair == change.pos and "pos" not in words:
            words[i] = "pos"
        elif pair == change.pos2 and "pos2" not in words:
            words[i] = "pos2"
        elif pair[0] != pair[1]:
            words[i] = "?"
    if change.axes == (1,) and change.pos is None and words == ["row", "?"]:
        return ["row", ""]  # one number for each that an input line has is as good as features
    if change.kind == "tokens" and "?" in words:
        return ["?"] * len(words)
    return words


def _name_space(words: list[str], others: list[int]) -> None:
    for i in others:
        words[i] = "?"
    free = [i for i, word in enumerate(words) if word == "?"]
    names = {1: ("patch",), 2: SPACE, 3: ("t", *SPACE)}.get(len(free), ())
    if len(names) != len(free):
        raise SiteError(f"Site: expected at most three spatial axes, got axes {words}.")
    for i, name in zip(free, names, strict=True):
        words[i] = name


def _routed(probe: Probe, path: str, leaf: TensorLayout) -> str:
    pos = probe.change.pos
    if pos is not None and leaf.shape[:1] == (ROWS[0] * pos[0],):
        return " (the tokens of all examples lie on one axis here, in an unknown order)"
    around = [path.rsplit(".", k)[0] for k in range(path.count(".") + 1)]
    for name in around:
        kind = type(probe.names.modules[name]).__name__ if name in probe.names.modules else ""
        if "expert" in name.lower() or "expert" in kind.lower() or "moe" in kind.lower():
            return " (tokens are routed to experts here, so their order is lost)"
    return ""


def _given_axis(axis: int | None, leaf: TensorLayout, fixed: list[int], where: str) -> int | None:
    """Return the index of the axis that the user named."""
    if axis is None:
        return None
    chosen = axis % len(leaf.shape) if leaf.shape else 0
    if chosen not in fixed:
        raise SiteError(
            f"Reducer: the length of axis {axis} of {where} depends on the inputs (shape "
            f"{leaf.shape}), so it is not the feature axis. Possible feature axes: {fixed}."
        )
    return chosen


def guess_axes(x: Tensor, module: nn.Module, root: nn.Module, axis: int | None = None) -> Axes:
    """Return the axes of a tensor seen once, rows first; a probe pass would be more reliable.

    The classes of the module's parts tell, else the classes of the model's parts; if they do not
    agree, the sizes of the module's own weights tell.
    """
    if x.ndim <= 1:
        return Axes(("row",))
    candidates = list(range(1, x.ndim))
    chosen = candidates[0] if x.ndim == 2 else None
    if axis is not None:
        chosen = axis % x.ndim
    elif chosen is None:
        spoken = by_classes(module, x.ndim) or by_classes(root, x.ndim)
        chosen = spoken.pop() if len(spoken) == 1 else by_sizes(x.shape, candidates, module)
    if chosen is None:
        raise SiteError(
            f"Tap: expected one feature axis, got shape {tuple(x.shape)} from "
            f"{type(module).__name__}. Say which one: Reducer(name, axis=...)."
        )
    words = ["row"] + [""] * (x.ndim - 1)
    words[chosen] = "dim"
    if x.ndim == 3 and chosen == 2:
        return Axes(tuple(w or "pos" for w in words))
    _name_space(words, [i for i, word in enumerate(words) if not word])
    return Axes(tuple(words))


def config_grid(config: Any, pixels: Tensor | None) -> tuple[int, int] | None:
    """Return height and width in patches of an image batch (NCHW), from the configuration."""
    size = getattr(config, "patch_size", None)
    if size is None or pixels is None or pixels.ndim != 4:
        return None
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(s, int) and s > 0 for s in pair):
        return None
    return pixels.shape[2] // pair[0], pixels.shape[3] // pair[1]
