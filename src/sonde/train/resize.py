"""Make a model wider or narrower, deeper or shallower, and continue its training.

For a training that begins small, or that visits a small model on its way. To take away single units
or weights see ``sonde.compress``.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, cast, final

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers.pytorch_utils import Conv1D

from sonde.core.errors import InputError, SiteError
from sonde.core.inputs import Model
from sonde.core.ranges import check_ranges
from sonde.data._model_kind import config_of
from sonde.tap.decoding.layers import ModelBlocks
from sonde.tap.model.sites import BLOCKS, resolve
from sonde.weights.residual import example_inputs, residual_writers, run, sums_at

SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "ffn_dim",
    "n_inner",
    "word_embed_proj_dim",
)
DEPTH = "num_hidden_layers"
INPUT_AXIS = {nn.Linear: 1, nn.Conv1d: 1, nn.Conv2d: 1, nn.Conv3d: 1, Conv1D: 0}
OF_UNITS = (nn.LayerNorm, nn.Embedding, _BatchNorm)
CLOSE = 1e-4
WIDTHS, DEPTHS = ("coalesce", "decoalesce"), ("merge", "repeat", "stack")


@final
@dataclass(frozen=True)
class Resize:
    """A model of another width or depth, with weights computed from the old model's weights.

    A group is ``factor`` neighbouring units, or units of ``factor`` neighbouring attention heads.
    ``decoalesce`` copies each unit and divides the weights that read it by the number of copies:
    the function stays the same. ``coalesce`` takes the mean of each group and adds up the weights
    that read it: it undoes a ``decoalesce`` exactly. ``merge`` takes the mean of neighbouring
    blocks; ``repeat`` has each block ``factor`` times; ``stack`` adds one block whose outputs are
    0, so that the function stays the same. With the ``big`` model that the small one came from, new
    weights are ``(1 - interpolate) big + interpolate new``.

    Range        models; ``decoalesce`` and ``stack`` keep the function to rounding.
    Cost         one copy of the weights.
    Assumes      linear layers, convolutions, embeddings, layer and batch norms, for which copied
                 units make no difference; a configuration, or ``like``.
    Differs      from the papers: no optimiser states; tied embeddings are untied, since their
                 reading and writing sides divide differently. Copies stay equal in a training by
                 plain gradients until something breaks the tie: interpolation does.

    Parameters
    ----------
    width : {"coalesce", "decoalesce"}, optional
        Change of the width, if any.
    depth : {"merge", "repeat", "stack"}, optional
        Change of the depth, if any.
    factor : int, default=2
        Number of units in a group, or of copies of a block, at least 2.
    interpolate : float, default=0.25
        Weight of the resized model beside ``big``.
    groups : mapping of int to sequence of int, optional
        For each width of the larger model the group of each unit, as ``unit_clusters`` finds them.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> small = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> like = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 1))
    >>> wide = Resize("decoalesce").of(small, like=like)
    >>> bool(torch.isclose(wide(torch.ones(1, 2)), small(torch.ones(1, 2))))
    True

    References
    ----------
    zou2024multilevel
    """

    width: Literal["coalesce", "decoalesce"] | None = None
    depth: Literal["merge", "repeat", "stack"] | None = None
    factor: int = 2
    interpolate: float = 0.25
    groups: Mapping[int, Sequence[int]] | None = None
    paper: ClassVar[str] = "zou2024multilevel"
    variants: ClassVar[Mapping[str, str]] = {"depth='stack'": "growing2025"}

    def __post_init__(self) -> None:
        check_ranges(self, factor=">= 2", interpolate="[0, 1]")
        for name, words in (("width", WIDTHS), ("depth", DEPTHS)):
            if (given := getattr(self, name)) not in (None, *words):
                other = "depth" if given in DEPTHS else "width" if given in WIDTHS else None
                more = f" Write {other}={given!r}." if other else ""
                raise InputError(
                    f"Resize: expected {name} as one of {', '.join(words)}, got {given!r}.{more}"
                )
        if self.width is None and self.depth is None:
            raise InputError("Resize: expected width or depth, got neither.")

    @torch.no_grad()
    def of(
        self,
        model: Model | nn.Module,
        big: Model | nn.Module | None = None,
        *,
        like: nn.Module | None = None,
        inputs: Any = None,
    ) -> Any:
        """Return the resized model. The old model is not changed.

        Parameters
        ----------
        model : Model or nn.Module
        big : Model or nn.Module, optional
            Model of the new size, mixed into the new weights.
        like : nn.Module, optional
            A module of the new size, for models without a configuration; it stays as it is.
        inputs : tensor, tuple or dict, optional
            Inputs of the model, to check that the function is kept and to follow the residual
            stream of "stack"; by default made from its configuration. Without inputs and
            configuration nothing is checked, and "stack" is refused.

        Raises
        ------
        InputError
            If the new size is not known, or ``big`` has another size.
        SiteError
            If the model holds layers whose units cannot be copied.
        """
        old = model.module if isinstance(model, Model) else model
        new = self._empty(old, like)
        paths = [] if self.depth is None else _blocks(old, new)
        state = dict(old.state_dict()) if self.width is None else self._widened(old, new, paths)
        state = self._deepened(state, paths) if paths else state
        _put(new, state)
        if self.depth == "stack":
            self._silence(new, inputs)
        self._check(old, new, inputs)
        if big is not None:
            self._mix(new, big.module if isinstance(big, Model) else big)
        new.train(old.training)
        return replace(model, module=new, config=new.config) if isinstance(model, Model) else new

    def _empty(self, old: nn.Module, like: nn.Module | None) -> nn.Module:
        """Return a randomly initialised module of the new size."""
        config = config_of(old)
        if like is not None:
            return copy.deepcopy(like)
        if config is None:
            raise InputError(
                f"Resize: {type(old).__name__} has no configuration from which a model of "
                "another size can be built. Pass like=, a module of the new size."
            )
        config = copy.deepcopy(config)
        if self.width is not None:
            for name in SIZES:
                n = getattr(config, name, None)
                if isinstance(n, int):
                    setattr(config, name, self._size(name, n))
            config.tie_word_embeddings = False
        if self.depth is not None:
            setattr(config, DEPTH, len(self._sources(getattr(config, DEPTH))))
        with torch.random.fork_rng(devices=[]):
            new = cast(nn.Module, cast(Any, type(old))(config))
        first = next(old.parameters())
        return new.to(first.device, first.dtype)

    def _size(self, name: str, n: int) -> int:
        if self.width == "decoalesce":
            return n * self.factor
        if n % self.factor:
            raise InputError(f"Resize: expected {name} to be a multiple of {self.factor}, got {n}.")
        return n // self.factor

    def _sources(self, n: int) -> list[int]:
        """Return the old block that each new block comes from; for a merge, the first block.

        Examples
        --------
        >>> [Resize(depth=how)._sources(4) for how in ("merge", "repeat", "stack")]
        [[0, 2], [0, 0, 1, 1, 2, 2, 3, 3], [0, 1, 2, 3, 3]]
        """
        if self.depth == "merge":
            if n % self.factor:
                raise InputError(
                    "Resize: expected a number of blocks that is a multiple of "
                    f"{self.factor}, got {n}."
                )
            return list(range(0, n, self.factor))
        if self.depth == "repeat":
            return [i for i in range(n) for _ in range(self.factor)]
        return [*range(n), n - 1]

    def _widened(self, old: nn.Module, new: nn.Module, paths: Sequence[str]) -> dict[str, Tensor]:
        """Return the old model's state, with each axis at its new size."""
        shapes = {name: x.shape for name, x in new.state_dict().items()}
        if paths:
            first, *others = paths
            ours = {n.removeprefix(first): s for n, s in shapes.items() if _in(n, first)}
            shapes |= {path + n: s for path in others for n, s in ours.items()}
        block = self._block(old)
        return {
            name: self._tensor(old, name, x, shapes[name], block)
            for name, x in old.state_dict().items()
            if name in shapes
        }

    def _block(self, old: nn.Module) -> int:
        """Return the number of neighbouring units to keep together: a head's width, or 1."""
        config = config_of(old)
        heads = getattr(config, "num_attention_heads", None)
        if not isinstance(heads, int):
            return 1
        return int(getattr(config, "head_dim", None) or config.hidden_size // heads)

    def _tensor(
        self, old: nn.Module, name: str, x: Tensor, shape: Sequence[int], block: int
    ) -> Tensor:
        path, _, leaf = name.rpartition(".")
        owner = old.get_submodule(path)
        is_known = type(owner) in INPUT_AXIS or isinstance(owner, OF_UNITS)
        adds = "norm" in type(owner).__name__.lower() or any(True for _ in owner.children())
        if len(shape) != x.ndim or not (is_known or adds):
            raise SiteError(
                f"Resize: {name} belongs to {type(owner).__name__}, whose units cannot be copied. "
                "Resize a model of linear layers, convolutions, embeddings and norms."
            )
        reading = INPUT_AXIS.get(type(owner), -1) if leaf == "weight" and x.ndim > 1 else -1
        for axis, (a, b) in enumerate(zip(x.shape, shape, strict=True)):
            if a != b:
                x = self._axis(x, axis, b, block, reads=axis == reading)
        return x

    def _axis(self, x: Tensor, axis: int, n: int, block: int, *, reads: bool) -> Tensor:
        """Return a tensor with one axis at another size."""
        least, most = sorted((x.shape[axis], n))
        if most != least * self.factor and not (self.groups and most in self.groups):
            raise InputError(
                f"Resize: expected {self.factor} times as many units, got {least} and {most}."
            )
        group = self._group(most, block).to(x.device)
        count = torch.bincount(group, minlength=least).to(x)
        if n == most:
            resized = x.index_select(axis, group)
            return resized / _along(count[group], x.ndim, axis) if reads else resized
        shape = list(x.shape)
        shape[axis] = least
        resized = x.new_zeros(shape).index_add_(axis, group, x)
        return resized if reads else resized / _along(count, x.ndim, axis)

    def _group(self, most: int, block: int) -> Int[Tensor, "unit"]:
        """Return the group of each unit of the wider model."""
        if self.groups is not None and most in self.groups:
            return torch.as_tensor(self.groups[most]).long()
        unit = torch.arange(most)
        size = block if most % (block * self.factor) == 0 else 1
        return unit // (size * self.factor) * size + unit % size

    def _deepened(self, state: dict[str, Tensor], paths: Sequence[str]) -> dict[str, Tensor]:
        """Return the state with blocks added or removed."""
        sources = self._sources(len(paths))
        above = paths[0].rpartition(".")[0]
        wanted = [f"{above}.{i}" for i in range(len(sources))]
        kept_state = {name: x for name, x in state.items() if not any(_in(name, p) for p in paths)}
        for path, source in zip(wanted, sources, strict=True):
            merged = paths[source : source + (self.factor if self.depth == "merge" else 1)]
            for name in [n for n in state if _in(n, merged[0])]:
                leaf = name.removeprefix(merged[0])
                parts = [state[one + leaf] for one in merged]
                is_mean = len(parts) > 1 and parts[0].is_floating_point()
                kept_state[path + leaf] = (
                    torch.stack(parts).mean(0) if is_mean else parts[0].clone()
                )
        return kept_state

    def _silence(self, new: nn.Module, inputs: Any) -> None:
        """Set the weights to 0 with which the last block writes to the residual stream.

        What the stream was before the block, such as the input itself, does not matter: whether
        the function is kept is checked afterwards.
        """
        last = ModelBlocks(new).paths[-1]
        terms = sums_at(new, resolve(new, BLOCKS)[-1:], inputs)[0].terms
        names = [term if isinstance(term, str) else term.name for term in terms]
        own = [name for name in names if _in(name, last)]
        for name in own:
            for parameter in new.get_submodule(name).parameters():
                parameter.zero_()
        if not own:
            residual_writers(new, inputs)  # says what stands in between
            raise SiteError(f"Resize: {last} adds nothing to a residual stream. Use 'repeat'.")

    def _check(self, old: nn.Module, new: nn.Module, inputs: Any) -> None:
        """Raise if the function changed although it should be equal."""
        is_same = self.width != "coalesce" and self.depth not in ("merge", "repeat")
        if not is_same or (inputs is None and config_of(old) is None):
            return
        inputs = example_inputs(old) if inputs is None else inputs
        before, after = run(old, inputs), run(new, inputs)
        scale = before.abs().max()
        if before.shape == after.shape and not bool((before - after).abs().max() <= CLOSE * scale):
            raise SiteError(
                f"Resize: {type(old).__name__} does not compute the same function with copied "
                "units: a layer in it depends on the number of units or heads. Grow its "
                "depth instead, or resize only a part of it."
            )

    def _mix(self, new: nn.Module, big: nn.Module) -> None:
        theirs = big.state_dict()
        for name, x in new.state_dict().items():
            if name not in theirs or theirs[name].shape != x.shape:
                raise InputError(
                    "Resize: expected the big model to have the new size, got a tensor "
                    f"{name} that is missing or of another shape in it."
                )
            if x.is_floating_point():
                x.lerp_(theirs[name].to(x), 1 - self.interpolate)


def _blocks(old: nn.Module, new: nn.Module) -> list[str]:
    """Return the paths of the old blocks; a single block takes its path from the new model."""
    paths = ModelBlocks(old).paths or ModelBlocks(new).paths[:1]
    if not paths:
        raise InputError(f"Resize: expected a model with blocks, got none in {type(old).__name__}.")
    return paths


def _put(new: nn.Module, state: Mapping[str, Tensor]) -> None:
    own = new.state_dict()
    for name, x in own.items():
        if name not in state or state[name].shape != x.shape:
            got = tuple(state[name].shape) if name in state else "nothing"
            raise InputError(f"Resize: expected {name} of shape {tuple(x.shape)}, got {got}.")
        x.copy_(state[name])


def _in(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}.")


def _along(x: Tensor, ndim: int, axis: int) -> Tensor:
    return x.reshape([-1 if i == axis else 1 for i in range(ndim)])
