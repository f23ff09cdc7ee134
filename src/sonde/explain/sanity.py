"""Test whether an attribution depends on the weights: randomise them and compare.

A map that stays as it was shows the input and the architecture. It may still be right, where the
architecture alone decides which places count.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.core.chart import Chart, curves
from sonde.core.errors import InputError
from sonde.core.explainer import Judge
from sonde.core.inputs import Model
from sonde.core.ranges import check_ranges
from sonde.core.repacking import packed_weights
from sonde.core.result import Result
from sonde.explain._correlation import spearman, ssim
from sonde.explain._judging import require_method, standard_error
from sonde.explain.attribution import Attribution, Attributor, sites_named
from sonde.explain.objective import FixedObjective, Objective
from sonde.tap.hooks.names import ModuleNames
from sonde.tap.hooks.session import Session
from sonde.tap.model.sites import Pattern
from sonde.tap.streams.site_function import INPUT, SiteFunction, arguments_of

SAME = 0.5
"""Above this correlation a map counts as unchanged."""


@final
@dataclass(frozen=True, kw_only=True)
class SanityResult(Result):
    """Similarity of an attribution to the attributions of randomised models, stage by stage.

    ``absolute`` and ``signed`` are mean rank correlations over examples, of sizes and of values;
    ``ssim`` the structural similarity of maps that are pictures, else NaN. ``value`` is
    ``absolute`` at the last stage, where a cascade has redrawn everything.
    """

    title: ClassVar[str] = "Similarity to the maps of models with randomised weights"
    stages: tuple[str, ...]
    absolute: Float[Tensor, "stage"]
    signed: Float[Tensor, "stage"]
    ssim: Float[Tensor, "stage"]

    @property
    def is_passed(self) -> bool:
        """True if the attribution changed with the weights."""
        return float(self.value) < SAME

    def chart(self) -> Chart:
        """Return the similarity by stage."""
        rows = [
            {"stage": f"{i}: {stage}", "correlation": value, "of": of}
            for of, values in (("sizes", self.absolute), ("values", self.signed))
            for i, (stage, value) in enumerate(zip(self.stages, values.tolist(), strict=True))
        ]
        return curves(self.title, rows, "stage", "correlation", by="of")


@final
@dataclass(frozen=True)
class SanityChecks(Judge):
    """Rank correlation of an attribution with that of the same model with randomised weights.

    Layers are redrawn from the answer down, by their own initialiser where they have one, else
    normally with the mean and deviation of the weights that they had. The target stays. The model
    is given back bit for bit, also after an error.

    Range        [-1, 1]; lower = the attribution depends on what was learned; above .5 it fails.
    Cost         an attribution for each stage, and one more; a copy of the weights.
    Assumes      that the architecture alone does not decide which places count. Weights that layers
                 share are redrawn with the first of these layers.

    Parameters
    ----------
    how : {"cascade", "independent"}, default="cascade"
        Keep what was redrawn before, or redraw each stage alone.
    stages : int, optional
        Number of stages that the layers are grouped into; by default every layer is a stage.
    seed : int, default=0
        Seed of the redrawn weights.

    Examples
    --------
    >>> from sonde.explain import Saliency
    >>> _ = torch.manual_seed(0)
    >>> net = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 2))
    >>> found = SanityChecks().judge(net, torch.randn(3, 4), Saliency())
    >>> found.stages
    ('2', '0')

    References
    ----------
    adebayo2018sanity
    """

    how: Literal["cascade", "independent"] = "cascade"
    stages: int | None = None
    seed: int = 0
    paper: ClassVar[str] = "adebayo2018sanity"

    def __post_init__(self) -> None:
        check_ranges(self, how=("cascade", "independent"), stages=">= 1")

    def judge(
        self,
        model: Model | nn.Module,
        inputs: Any,
        explanation: Attributor,
        *,
        site: Pattern = INPUT,
        objective: Objective | None = None,
        others: Mapping[str, nn.Module] | None = None,
    ) -> SanityResult:
        """Return the similarity of an attribution when weights are randomised.

        Parameters
        ----------
        model, inputs, site, objective : as for the attribution
        explanation : Attributor
            The method itself, which is asked again for each redrawn model.
        others : mapping of str to nn.Module, optional
            Other models of the same architecture, such as one trained on shuffled labels: further
            stages, at the end.
        """
        require_method("SanityChecks", explanation)
        module = model.module if isinstance(model, Model) else model
        objective = objective or Objective()
        function = SiteFunction(module, inputs, site)
        kept = _kept(objective, objective.at(function))
        method, first = explanation, explanation.at(function, kept)
        groups = self._groups(_layers(module, inputs))
        attributions: dict[str, Attribution] = {}
        with given_back(module), torch.random.fork_rng():
            torch.manual_seed(self.seed)
            for names, layers in groups:
                if self.how == "cascade":
                    redraw(layers)
                    attributions[names] = method.explain(module, inputs, objective=kept, site=site)
                else:
                    with given_back(module):
                        redraw(layers)
                        attributions[names] = method.explain(
                            module, inputs, objective=kept, site=site
                        )
        for name, other in (others or {}).items():
            attributions[name] = method.explain(other, inputs, objective=kept, site=site)
        return self._result(first, attributions, function)

    def _groups(self, layers: list[tuple[str, nn.Module]]) -> list[tuple[str, list[nn.Module]]]:
        n = min(self.stages or len(layers), len(layers))
        if not n:
            raise InputError(
                "SanityChecks: expected a model with weights that can be randomised, got none."
            )
        parts = [[layers[i] for i in part] for part in np.array_split(range(len(layers)), n)]
        named = ((part[0][0], part[-1][0], [module for _, module in part]) for part in parts)
        return [(a if a == b else f"{a} to {b}", modules) for a, b, modules in named]

    def _result(
        self, first: Attribution, found: Mapping[str, Attribution], function: SiteFunction
    ) -> SanityResult:
        own, every = _map(first), [_map(one) for one in found.values()]
        flat = own.flatten(1)
        sizes = torch.stack([spearman(flat.abs(), one.flatten(1).abs()) for one in every])
        signed = torch.stack([spearman(flat, one.flatten(1)) for one in every])
        is_picture = own.ndim == 3 and min(own.shape[1:]) > 2
        alike = [ssim(own, one).mean() if is_picture else torch.tensor(np.nan) for one in every]
        return SanityResult(
            value=float(sizes[-1].mean()),
            se=standard_error(sizes[-1]),
            n=len(own),
            direction="lower",
            range=(-1.0, 1.0),
            conventions={
                "method": repr(self),
                "attribution": first.conventions["method"],
                "objective": first.conventions["objective"],
                **sites_named(function),
                "correlation": "Spearman over places, of sizes",
            },
            stages=tuple(found),
            absolute=sizes.mean(1),
            signed=signed.mean(1),
            ssim=torch.stack(alike),
        )


def _kept(objective: Objective, fixed: FixedObjective) -> Objective:
    """Return the objective with the targets of the unchanged model."""
    if objective.kind == "answer":
        return objective  # its targets are the text's
    return replace(objective, target=fixed.target, other=fixed.other)


def _map(found: Attribution) -> Tensor:
    """Return one number for each position, on the CPU."""
    return found.per_place.detach().double().cpu()


def _layers(module: nn.Module, inputs: Any) -> list[tuple[str, nn.Module]]:
    """Return the modules with their own weights, the last executed first.

    A module that is not called itself counts as run with the module around it.
    """
    names, ended = ModuleNames(module), dict[str, int]()

    def note(path: str, output: Any) -> None:
        ended[path] = len(ended)

    hooks = [(m, partial(note, path)) for path, m in names.primary()]
    with Session(module, hooks) as session:
        session.run(*arguments_of(module, inputs))
    owners = [(path, m) for path, m in names.modules.items() if _own(m)]
    owners = [(path, m) for path, m in owners if names.canonical[id(m)] == path]

    def when(path: str) -> int:
        while path and path not in ended:
            path = path.rpartition(".")[0]
        return ended.get(path, -1)

    return sorted(owners, key=lambda one: when(one[0]), reverse=True)


def _own(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module._parameters.values() if p is not None]


def redraw(layers: list[nn.Module]) -> None:
    """Randomise weights in place."""
    with torch.no_grad():
        for module in layers:
            draw = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
            if callable(draw):
                draw()
                continue
            for p in _own(module):
                spread = float(p.std(correction=0)) if p.numel() > 1 else 1.0
                p.copy_(torch.randn(p.shape).to(p) * spread + p.mean())


@contextmanager
def given_back(module: nn.Module) -> Iterator[None]:
    """Restore the weights and buffers of a model, bit for bit, at the end of the block."""
    held = [*module.parameters(), *module.buffers()]
    if packed_weights(module):
        raise InputError(
            "expected weights that can be randomised, got packed weights. Use "
            "sonde.weights.unpacked(model), the same weights in plain layers."
        )
    if not all(x.is_floating_point() for x in module.parameters()):
        raise InputError(
            "expected floating-point weights, got quantised weights, which cannot be "
            "randomised. Load the model without quantisation."
        )
    copies = [x.detach().clone() for x in held]
    try:
        yield
    finally:
        with torch.no_grad():
            for x, copy in zip(held, copies, strict=True):
                x.copy_(copy)
