"""Cut a dense model into narrower experts, one for each domain of data, without any training.

For a model that serves several kinds of texts, each with hidden units of its own. Where domains use
the same units, experts are little better than one narrower model.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Int
from torch import Tensor, nn

from sonde.compress.unit_use import DenseBlock, UnitUse, by_length, dense_blocks, unit_use
from sonde.core.errors import InputError, ShapeError, StateError
from sonde.core.inputs import Model
from sonde.core.ranges import check_ranges
from sonde.core.renaming import renamed
from sonde.data import open_inputs
from sonde.tap import require_measured_on
from sonde.tap.hooks.held import Held
from sonde.weights import as_model, with_tensors

LINEAR = 1e-3
"""Largest departure of the sum of two halves from the whole block, in parts of its output."""


class Choice:
    """The expert of each row, or of each token of a row; None outside of ``routed``."""

    def __init__(self) -> None:
        self._held: Held[Tensor] = Held("SlicedModel.routed")

    @property
    def experts(self) -> Tensor | None:
        """Experts that are active in the running thread or task."""
        return self._held.get()

    def chosen(self, experts: Tensor) -> AbstractContextManager[None]:
        """Select experts inside a ``with`` block."""
        return self._held.held(experts)


@final
class SlicedBlock(nn.Module):
    """A dense block as several narrower copies; each token runs through a single copy.

    Parameters
    ----------
    block : DenseBlock
    units : sequence of Int[Tensor, "unit"]
        Hidden units of each expert.
    choice : Choice
    """

    def __init__(
        self, block: DenseBlock, units: Sequence[Int[Tensor, "unit"]], choice: Choice
    ) -> None:
        super().__init__()
        self.experts = nn.ModuleList(narrowed(block, one) for one in units)
        self.choice = choice

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of each token's expert."""
        chosen = self.choice.experts
        if chosen is None:
            raise StateError(
                "SlicedBlock: no expert was chosen. Call the model inside routed(experts)."
            )
        if len(chosen) != len(x) or (chosen.ndim > 1 and chosen.shape[1] < x.shape[1]):
            raise ShapeError(
                f"SlicedBlock: expected experts of {len(x)} rows, one for each or one for each "
                f"token, got {tuple(chosen.shape)} for states {tuple(x.shape)}."
            )
        if chosen.ndim > 1:
            chosen = chosen[:, -x.shape[1] :]
        used = chosen.unique().tolist()
        if len(used) == 1:
            return self.experts[used[0]](x)
        out = torch.empty_like(x)
        for e in used:
            out[chosen == e] = self.experts[e](x[chosen == e])
        return out


class SlicedModel(nn.Module):
    """A model whose dense blocks are cut into experts; made by ``ExtractExperts``.

    Parameters
    ----------
    choice : Choice
        Choice of the expert for each input.

    Attributes
    ----------
    model : nn.Module
        Inside ``routed`` it is called and generates as the original does.
    names : tuple of str
        The domain of each expert.
    units : dict of str to tuple of Tensor
        Hidden units of each expert, by the name of the block.
    """

    def __init__(
        self, model: nn.Module, names: tuple[str, ...], units: dict[str, Any], choice: Choice
    ) -> None:
        super().__init__()
        self.model, self.names, self.units, self.choice = model, names, units, choice

    @contextmanager
    def routed(self, experts: Int[Tensor, "row *token"]) -> Iterator[nn.Module]:
        """Route each row, or each token of a row, to an expert inside a ``with`` block.

        The choice holds for the thread or task that opens the block, and for threads without a
        block of their own while no other has one.

        Parameters
        ----------
        experts : Int[Tensor, "row *token"]
            Numbers of experts in the order of ``names``.
        """
        if not len(experts) or not 0 <= int(experts.min()) <= int(experts.max()) < len(self.names):
            raise InputError(
                f"SlicedModel.routed: expected experts from 0 to {len(self.names) - 1}, got "
                f"{sorted(set(experts.flatten().tolist()))}."
            )
        with self.choice.chosen(experts):
            yield self.model


@renamed(keep="share")
@final
@dataclass(frozen=True)
class ExtractExperts:
    """Give each domain an expert made of its most active hidden units.

    At each token the units with the largest ``|activation| x |output weights|`` count as active.
    The expert of a domain has the units that are active most often over its tokens, in every dense
    block; all other layers are shared. Units may belong to several experts.

    Range        if ``keep`` is 1, a model with the outputs of the original, bit for bit.
    Cost         one pass over each domain; then a forward with ``keep`` of the dense blocks.
                 Experts hold their units themselves: ``experts x keep`` of the blocks in memory.
    Assumes      a hidden layer in which each unit is computed alone: ReLU, GELU, gated.
    Differs      from the paper: experts are not trained further; gated nets are cut as they are,
                 though their units are less sparse than those behind a ReLU.

    Parameters
    ----------
    keep : float, default=0.5
        Fraction of the hidden units that an expert keeps, in (0, 1].
    top : float, default=0.25
        Share of units that count as active at a token.
    by : {"use", "length", "random"}, default="use"
        ``length`` and ``random`` are controls without data: the units with the largest weights,
        the same for all domains, and units by lot.
    seed : int, default=0
        Seed of the choice ``random``.

    References
    ----------
    cai2024readme
    """

    keep: float = 0.5
    top: float = 0.25
    by: Literal["use", "length", "random"] = "use"
    seed: int = 0
    paper: ClassVar[str] = "cai2024readme"

    def __post_init__(self) -> None:
        check_ranges(self, keep="(0, 1]", top="(0, 1]", by=("use", "length", "random"))

    def extract(self, model: Model | nn.Module, domains: Mapping[str, Any]) -> SlicedModel:
        """Return the model cut into experts. ``model`` is not changed.

        Parameters
        ----------
        model : Model or nn.Module
        domains : mapping of str to data or UnitUse
            The domain of each expert, by the expert's name.

        Raises
        ------
        InputError
            If there is no domain, or a block's units are not computed alone.
        StateError
            If units were read at other weights.
        """
        live = as_model(model)
        if not domains:
            raise InputError("ExtractExperts.extract: expected at least one domain, got none.")
        blocks = dense_blocks("ExtractExperts.extract", live.module)
        counts = {name: self._counts(live, data, blocks) for name, data in domains.items()}
        new, choice = with_tensors(live.module, {}), Choice()
        units: dict[str, tuple[Tensor, ...]] = {}
        for i, block in enumerate(dense_blocks("ExtractExperts.extract", new)):
            _check_alone(block)
            n = max(1, round(self.keep * block.width))
            units[block.name] = tuple(
                counted[i].argsort(descending=True, stable=True)[:n].sort().values
                for counted in counts.values()
            )
            above, _, own = block.name.rpartition(".")
            sliced = SlicedBlock(block, units[block.name], choice)
            setattr(new.get_submodule(above), own, sliced.train(block.module.training))
        return SlicedModel(new, tuple(domains), units, choice)

    def _counts(self, model: Model, data: Any, blocks: Sequence[DenseBlock]) -> list[Tensor]:
        if self.by == "length":
            return [by_length(block) for block in blocks]
        if self.by == "random":
            draw = torch.Generator().manual_seed(self.seed)
            return [torch.rand(block.width, generator=draw) for block in blocks]
        use = data
        if not isinstance(data, UnitUse):
            use = unit_use(model, open_inputs(model, data), self.top)
        require_measured_on(
            model.module, use.model, "ExtractExperts.extract: the units", "unit_use"
        )
        return list(use.counts)


def narrowed(block: DenseBlock, units: Int[Tensor, "unit"]) -> nn.Module:
    """Return a copy of a block with only some of its hidden units."""
    new = copy.copy(block.module)
    new._modules = dict(block.module._modules)
    for name in (*block.ups, block.down):
        old, axis = block.module.get_submodule(name), int(name == block.down)
        layer = copy.copy(old)
        layer._parameters = dict(old._parameters)
        index = units.to(old.weight.device)
        weight = old.weight.detach().index_select(axis, index)
        layer._parameters["weight"] = nn.Parameter(weight, old.weight.requires_grad)
        if old.bias is not None and name != block.down:
            layer._parameters["bias"] = nn.Parameter(old.bias.detach()[index])
        layer.out_features, layer.in_features = weight.shape
        new._modules[name] = layer
    return new


@torch.no_grad()
def _check_alone(block: DenseBlock) -> None:
    """Raise unless the block's output is the sum of its hidden units' outputs."""
    weight, draw = block.last.weight, torch.Generator().manual_seed(0)
    x = torch.randn(2, weight.shape[0], generator=draw).to(weight)
    order = torch.randperm(block.width, generator=draw).chunk(2)
    whole, *parts = (part(x) for part in (block.module, *(narrowed(block, o) for o in order)))
    twice = 0.0 if block.last.bias is None else block.last.bias
    gap = (sum(parts) - twice - whole).abs().max()
    if gap > LINEAR * whole.abs().max() + 1e-6:
        raise InputError(
            "ExtractExperts.extract: expected hidden units that are computed independently, got "
            f"the block {block.name} ({type(block.module).__name__}), which differs from the sum "
            "of its two halves."
        )
