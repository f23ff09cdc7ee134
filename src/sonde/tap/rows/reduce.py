"""Reduce raw outputs to rows inside a hook; every function returns a new tensor."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from sonde.core.errors import ShapeError, SiteError
from sonde.core.site import Reducer
from sonde.stats import token_metrics
from sonde.tap.model.axes import FILLED, FREE, TOKEN, Axes
from sonde.tap.rows.frame import FROM_BEFORE, POOLED, Frame
from sonde.tap.rows.mean_writer import MeanWriter
from sonde.tap.rows.nested import padded, require_dense

NARROW = (torch.float16, torch.bfloat16)
STEPPED = ("steps", "step_ends", *FROM_BEFORE)


class ReducerError(SiteError):
    """A reducer that does not fit the output of a site."""


@dataclass(frozen=True)
class Reduction:
    """One reducer at one site, ready for use in a hook.

    Parameters
    ----------
    reducer : Reducer
    axes : Axes
    """

    reducer: Reducer
    axes: Axes

    def __post_init__(self) -> None:
        reason = self._impossible()
        if reason:
            raise ReducerError(
                f"Reducer {str(self.reducer)!r}: {reason}, got axes {str(self.axes)!r}. "
                f"Possible here: {', '.join(possible(self.axes))}."
            )

    def _impossible(self) -> str:
        if self.reducer.name not in possible(self.axes):
            return "does not fit this output"
        return ""

    @cached_property
    def _space(self) -> tuple[int, ...]:
        return tuple(i for i, word in enumerate(self.axes.words) if word in FREE)

    @cached_property
    def _kind(self) -> str:
        return self.axes.kind

    @property
    def is_over_tokens(self) -> bool:
        """True if the output has a token axis."""
        return self._kind in ("pos", "pos2")

    @cached_property
    def _in_order(self) -> bool:
        return self.axes.words in (("row", "pos", "dim"), ("row", "pos2", "dim"))

    def __call__(self, x: Tensor, frame: Frame) -> tuple[Float[Tensor, "_row _dim"], Hashable]:
        """Return new rows of a raw output, and their layout."""
        require_dense(x)
        if x.is_nested:
            return self._over_nested(x, frame)
        if frame.n == 1 and x.ndim == len(self.axes.words) - 1:
            raise ShapeError(
                f"expected an output with the axes ({self.axes}), got shape {tuple(x.shape)} from "
                "a batch of one example: the model drops the axis of a single example, as "
                "squeeze() does. Choose another batch size (--batch-size), or name the axis that "
                "squeeze() drops."
            )
        if x.ndim != len(self.axes.words):
            raise ShapeError(
                f"expected an output with the axes ({self.axes}), as the first inputs gave, got "
                f"shape {tuple(x.shape)}. Give inputs of the same kind; pack sequences with "
                "enforce_sorted=False, which keeps the order of the texts."
            )
        if self._kind == "vector":
            return self._vector(x, frame)
        if self._kind == "space":
            return self._over_space(x, frame)
        return self._over_tokens(x, frame)

    def _over_nested(self, x: Tensor, frame: Frame) -> tuple[Tensor, Hashable]:
        """Return the rows of a nested tensor; without a mask its own lengths mark real tokens."""
        mask = frame.masks["pos"]
        if frame.is_padded("pos") or frame.batch.special is not None or self._kind != "pos":
            return self._over_tokens(padded(x, mask), frame)
        counts = tuple(len(part) for part in x.unbind())
        frame.check(len(counts))
        own = frame.of_lengths(counts)
        rows, layout = self._over_tokens(padded(x, own.masks["pos"]), own)
        return rows, frame.adopt(own, counts, layout)

    def _over_tokens(self, x: Tensor, frame: Frame) -> tuple[Tensor, Hashable]:
        if not self._in_order and x.ndim == len(self.axes.words):
            x = self._in_rows(x, frame)
        n, length, _ = x.shape
        frame.check(n)
        name, keep = self.reducer.name, self.reducer.keep_special
        if name == "mean":
            return self.token_mean(x, frame), POOLED
        if name == "tokens":
            flat = frame.on_device(frame.flat(self._kind, length, keep), x)
            return x.flatten(0, 1).index_select(0, flat), ("tokens", self._kind, length, keep)
        if name == "predictions":
            source, ids = (frame.on_device(s, x) for s in frame.predicted(self._kind, length, keep))
            rows = token_metrics(x.flatten(0, 1), ids, source).to(torch.float32)
            return rows, (name, self._kind, length, keep)
        if name in STEPPED:
            return self._over_steps(x, frame)
        if frame.is_whole(self._kind, length, True):
            return x[:, 0 if name == "cls" else length - 1].clone(), POOLED
        example, position = frame.one(self._kind, length, name)
        return x[frame.on_device(example, x), frame.on_device(position, x)], POOLED

    def _in_rows(self, x: Tensor, frame: Frame) -> Float[Tensor, "row pos dim"]:
        """Return states as (row, token, dim), without the padding of windows."""
        if TOKEN in self.axes.words:
            if len(x) % frame.n:
                raise ShapeError(
                    f"expected a state for each token of {frame.n} examples, got {len(x)} "
                    "states. Give texts of one length, or read the block around this module."
                )
            return x.unflatten(0, (frame.n, -1))
        x = self.axes.last_dim(x)
        if FILLED in self.axes.words:
            length = frame.length
            if length is None:
                raise ShapeError(
                    "expected inputs of tokens at this site, got inputs without tokens."
                )
            if length > x.shape[1]:
                raise ShapeError(
                    f"expected at least as many states as tokens, {length}, got {x.shape[1]}."
                )
            x = x[:, :length]
        return x.flatten(2) if x.ndim != 3 else x

    @cached_property
    def is_token_mean(self) -> bool:
        """True if ``token_mean`` accepts an output without changes."""
        return self._in_order and self.reducer.name == "mean"

    def token_mean(
        self, x: Float[Tensor, "row pos dim"], frame: Frame, writer: MeanWriter | None = None
    ) -> Float[Tensor, "row dim"]:
        """Return the mean over the included tokens; half-precision types are averaged in float32.

        A writer, if given, takes the small means of the CPU.
        """
        key = self.stack_key, x.shape, x.dtype
        rows = None if writer is None else writer.again(key, x)
        if rows is not None:
            return rows
        n, length, _ = x.shape
        frame.check(n)
        dtype = torch.float32 if x.dtype in NARROW else x.dtype
        mean = frame.mean(self._kind, length, self.reducer.keep_special, dtype, x.device)
        if x.dtype is not dtype:
            return mean(x.to(dtype)).to(x.dtype)
        rows = None if writer is None else writer.first(key, x, mean)
        return mean(x) if rows is None else rows

    def _over_steps(self, x: Tensor, frame: Frame) -> tuple[Tensor, Hashable]:
        length, name = x.shape[1], self.reducer.name
        if name in FROM_BEFORE:
            layout = ("steps", self._kind, length, True)
            flat, row = frame.steps_after(self._kind, length)
            take = delta_of_each if name == "step_deltas" else mean_before_each
        else:
            layout = ("steps", self._kind, length, self.reducer.keep_special)
            flat, row = frame.steps(*layout[1:])
            take = last_of_each if name == "step_ends" else mean_of_each
        return take(x.flatten(0, 1), frame.on_device(flat, x), frame.on_device(row, x)), layout

    def of_copies(
        self, copies: Sequence[Float[Tensor, "row pos dim"]], frame: Frame
    ) -> tuple[list[Tensor] | Float[Tensor, "_site _row _dim"], Hashable]:
        """Return the rows of several copied outputs of one shape, and their layout.

        Rows of all tokens are the copies themselves, a list; else one new tensor.
        """
        keep, length = self.reducer.keep_special, copies[0].shape[1]
        if self.reducer.name == "tokens" and frame.is_whole(self._kind, length, keep):
            frame.check(copies[0].shape[0])
            return [copy.flatten(0, 1) for copy in copies], ("tokens", self._kind, length, keep)
        return self.stacked(copies, frame)

    @cached_property
    def can_wait(self) -> bool:
        """True if copies of small outputs may wait for ``stacked`` until the pass is over."""
        return self._in_order and self.reducer.name not in ("mean", "predictions", *STEPPED)

    @cached_property
    def stack_key(self) -> Hashable:
        """Key that two reductions must share to run in one call of ``stacked``."""
        return self._kind, self.reducer.name, self.reducer.keep_special

    def stacked(
        self, copies: Sequence[Tensor], frame: Frame
    ) -> tuple[Float[Tensor, "_site _row _dim"], Hashable]:
        """Return the rows of several outputs of one shape, and their common layout."""
        x = torch.stack(list(copies))
        _, n, length, _ = x.shape
        frame.check(n)
        name, keep = self.reducer.name, self.reducer.keep_special
        if name == "mean":
            return self._means_of_sites(x, frame), POOLED
        if name != "tokens":
            example, position = (frame.on_device(s, x) for s in frame.one(self._kind, length, name))
            return x[:, example, position], POOLED
        flat, rows = frame.on_device(frame.flat(self._kind, length, keep), x), x.flatten(1, 2)
        rows = rows if len(flat) == n * length else rows.index_select(1, flat)
        return rows, ("tokens", self._kind, length, keep)

    def _means_of_sites(self, x: Float[Tensor, "site row pos dim"], frame: Frame) -> Tensor:
        n_sites, n, length, _ = x.shape
        if not frame.is_whole(self._kind, length, self.reducer.keep_special):
            return torch.stack([self.token_mean(one, frame) for one in x])
        wide = x.float() if x.dtype in NARROW else x
        mean = frame.shared.mean(n_sites * n, length, wide.dtype, x.device)
        return mean(wide.flatten(0, 1)).view(n_sites, n, -1).to(x.dtype)

    def _vector(self, x: Tensor, frame: Frame) -> tuple[Tensor, Hashable]:
        x = self.axes.last_dim(x)
        frame.check(x.shape[0])
        return x.clone(memory_format=torch.contiguous_format), POOLED

    def _over_space(self, x: Tensor, frame: Frame) -> tuple[Tensor, Hashable]:
        name, axes = self.reducer.name, self.axes
        has_more = bool(axes.prefix or axes.suffix)
        if name == "mean" and not has_more:
            rows = x.mean(dim=self._space)
            if rows.ndim == 2 and axes.words.index("dim") < axes.words.index("row"):
                rows = rows.T.contiguous()
            return (rows if rows.ndim == 2 else rows[:, None]), POOLED
        x = axes.last_dim(x)
        if name == "cls":
            return x[:, axes.cls].clone(), POOLED
        if name == "flat":
            return x.clone(memory_format=torch.contiguous_format).flatten(1), POOLED
        x = x[:, axes.prefix : x.shape[1] - axes.suffix] if has_more else x
        if name == "mean":
            return x.mean(dim=1), POOLED
        sizes = tuple(x.shape[1:-1])
        if name == "patches3":
            x = averaged(x.reshape(len(x), *frame.grid_of(sizes), x.shape[-1]))
        rows = x.clone(memory_format=torch.contiguous_format).flatten(0, -2)
        return rows, ("space", sizes)


def possible(axes: Axes) -> tuple[str, ...]:
    """Return the names of the reducers that fit an output with these axes."""
    kind = axes.kind
    if kind == "vector":
        return ("mean", "last", "cls", "flat")
    if kind in ("pos", "pos2"):
        return ("mean", "last", "cls", "tokens", "predictions", *STEPPED)
    patches = ("patches",) if "t" in axes.words else ("patches", "patches3")
    return ("mean", *patches, "flat") if axes.cls is None else ("mean", "cls", *patches, "flat")


WINDOW = 3


def averaged(x: Float[Tensor, "row h w dim"]) -> Float[Tensor, "row h w dim"]:
    """Return the mean over the existing patches of each 3 x 3 neighbourhood, in x's type."""
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    pooled = functional.avg_pool2d(
        wide.movedim(-1, 1), WINDOW, stride=1, padding=WINDOW // 2, count_include_pad=False
    )
    return pooled.movedim(1, -1).to(x.dtype)


_NARROW = (torch.float16, torch.bfloat16)


def mean_of_each(x: Tensor, flat: Tensor, row: Tensor) -> Tensor:
    """Return the mean over the tokens of each step, summed in float64 if the device has it."""
    dtype = torch.float32 if x.device.type == "mps" else torch.float64
    count = torch.bincount(row).to(dtype)
    out = x.new_zeros(len(count), x.shape[1], dtype=dtype)
    out.index_add_(0, row, x.index_select(0, flat).to(dtype))
    return (out / count[:, None]).to(x.dtype)


def last_of_each(x: Tensor, flat: Tensor, row: Tensor) -> Tensor:
    """Return the last token of each step."""
    last = torch.zeros(int(row.max()) + 1 if len(row) else 0, dtype=flat.dtype, device=flat.device)
    return x.index_select(0, last.scatter_reduce_(0, row, flat, "amax"))


def mean_before_each(x: Tensor, flat: Tensor, row: Tensor) -> Tensor:
    """Return the mean over the tokens before those of each step."""
    return mean_of_each(x, flat - 1, row)


def delta_of_each(x: Tensor, flat: Tensor, row: Tensor) -> Tensor:
    """Return the last token of each step minus the token before the step."""
    wide = torch.float32 if x.dtype in _NARROW else x.dtype
    first = torch.full((int(row.max()) + 1 if len(row) else 0,), len(x), device=flat.device)
    first = first.scatter_reduce_(0, row, flat, "amin") - 1
    delta = last_of_each(x, flat, row).to(wide) - x.index_select(0, first).to(wide)
    return delta.to(x.dtype)
