"""Selection of trainable parameters: norms, biases, last blocks, a pattern, or groups in turn.

For small data and for keeping what a model knows. Frozen batch norms keep their statistics too,
which a frozen module in training mode would still move.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import ClassVar, Literal, final

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sonde.core.errors import InputError
from sonde.core.inputs import Model
from sonde.core.ranges import check_ranges
from sonde.tap.model.sites import resolve


@final
class Moving:
    """The trainable parameters inside a ``Scope``.

    Attributes
    ----------
    names : list of str
    share : float
        Share of the model's numbers that move.
    """

    def __init__(self, module: nn.Module, groups: list[list[str]]) -> None:
        self._module, self._groups = module, groups
        self.turn(0)

    def turn(self, epoch: int) -> None:
        """Make the group of an epoch trainable; call it at the start of each "alternate" epoch."""
        self.names = self._groups[epoch % len(self._groups)]
        n_moving = n_all = 0
        for name, p in self._module.named_parameters():
            moves = name in set(self.names)
            p.requires_grad_(moves)
            if not moves:
                p.grad = None  # a frozen weight without a gradient is left alone by optimisers
            n_all += p.numel()
            n_moving += p.numel() * moves
        self.n_parameters, self.share = n_moving, n_moving / max(n_all, 1)


@final
@dataclass(frozen=True)
class Scope:
    """Make only some parameters of a model trainable, inside a ``with`` block.

    ``norms``: weights and biases of normalisations. ``bias``: all biases. ``top``: the last ``k``
    blocks and the parameters registered after them. ``pattern``: names that fit ``patterns``.
    ``alternate``: the names of each pattern in turn, by epoch.

    Range        flags and modes are restored at the end of the block.
    Cost         none.
    Assumes      ``model.train()`` is called before the block: it wakes frozen batch norms.
    Differs      from the papers: low-rank adapters are peft's, by ``--scope low-rank:8``.

    Parameters
    ----------
    rule : {"all", "norms", "bias", "top", "pattern", "alternate"}, default="norms"
        Rule that chooses the trainable parameters.
    k : int, default=1
        Blocks of "top".
    patterns : sequence of str, default=()
        Patterns of parameter names as in a shell: ``"layers.*.weight"``.
    freeze_statistics : bool, default=True
        Keep the running statistics of batch norms that do not move.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    >>> with Scope("norms").on(net) as moving:
    ...     moving.names, round(moving.share, 3)
    (['1.weight', '1.bias'], 0.235)

    References
    ----------
    frankle2021batchnorm
    """

    rule: Literal["all", "norms", "bias", "top", "pattern", "alternate"] = "norms"
    k: int = 1
    patterns: tuple[str, ...] = ()
    freeze_statistics: bool = True
    paper: ClassVar[str] = "frankle2021batchnorm"

    def __post_init__(self) -> None:
        check_ranges(self, rule=("all", "norms", "bias", "top", "pattern", "alternate"), k=">= 1")
        if self.rule in ("pattern", "alternate") and not self.patterns:
            raise InputError(f"Scope: expected patterns with rule {self.rule!r}, got none.")

    @contextmanager
    def on(
        self, model: Model | nn.Module, optimiser: torch.optim.Optimizer | None = None
    ) -> Iterator[Moving]:
        """Freeze all other parameters inside the block.

        Parameters
        ----------
        model : Model or nn.Module
        optimiser : Optimizer, optional
            Checked: it must hold a parameter that moves.

        Raises
        ------
        InputError
            If nothing would move.
        """
        module = model.module if isinstance(model, Model) else model
        groups = self._groups(module)
        flags = [(p, p.requires_grad, p.grad) for p in module.parameters()]
        modes = [(m, m.training) for m in module.modules()]
        named = dict(module.named_parameters())
        if optimiser is not None:
            held = {id(p) for group in optimiser.param_groups for p in group["params"]}
            if any(not any(id(named[n]) in held for n in group) for group in groups):
                raise InputError(
                    "Scope.on: expected an optimiser with the parameters that the scope "
                    "trains, got one without them."
                )
        try:
            moving = Moving(module, groups)
            if self.freeze_statistics:
                trained = {id(named[name]) for group in groups for name in group}
                for part in (m for m in module.modules() if isinstance(m, _BatchNorm)):
                    if not any(id(p) in trained for p in part.parameters()):
                        part.eval()
            yield moving
        finally:
            for p, flag, _ in flags:
                p.requires_grad_(flag)
            for part, mode in modes:
                part.training = mode

    def _groups(self, module: nn.Module) -> list[list[str]]:
        names = [n for n, p in module.named_parameters() if p.is_floating_point()]
        groups = [names]
        if self.rule in ("pattern", "alternate"):
            groups = [[n for n in names if fnmatch(n, pattern)] for pattern in self.patterns]
            whole = [n for n in names if any(n in group for group in groups)]
            groups = [whole] if self.rule == "pattern" else groups
        elif self.rule == "bias":
            groups = [[n for n in names if n.rpartition(".")[2] == "bias"]]
        elif self.rule == "norms":
            norms = [n for n, m in module.named_modules() if "Norm" in type(m).__name__]
            groups = [[n for n in names if n.rpartition(".")[0] in norms]]
        elif self.rule == "top":
            groups = [self._top(module, names)]
        if any(not group for group in groups):
            raise InputError(
                f"Scope: expected parameters for rule {self.rule!r} {self.patterns or ''}, got "
                f"none. The model has {', '.join(names[:4])} ..."
            )
        return groups

    def _top(self, module: nn.Module, names: list[str]) -> list[str]:
        """Return the parameters of the last blocks, and those registered after the last block."""
        blocks = [site.path for site in resolve(module, "blocks")]
        if len(blocks) < self.k:
            raise InputError(f"Scope: expected {self.k} blocks or more, got {len(blocks)}.")
        inside = [any(n.startswith(f"{b}.") for b in blocks) for n in names]
        last = max((i for i, within in enumerate(inside) if within), default=-1)
        top = tuple(f"{b}." for b in blocks[-self.k :])
        return [n for i, n in enumerate(names) if i > last or n.startswith(top)]
