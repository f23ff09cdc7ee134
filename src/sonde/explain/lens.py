"""Answers that a language model would give after each block, if that block were the last.

``LogitLens`` reads states as they are; ``AffineLens`` maps them to the last block's states first,
by least squares; ``TunedLens`` trains such maps on the model's own answers.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any, ClassVar, final

import pyarrow as pa  # pyright: ignore[reportMissingTypeStubs]
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sonde.core.chart import Chart, ChartAxis, curves
from sonde.core.edit import AffineMap
from sonde.core.errors import InputError
from sonde.core.explainer import Explainer
from sonde.core.inputs import Model
from sonde.core.ranges import check_ranges
from sonde.core.result import Result
from sonde.engine.steps import Descent
from sonde.explain._batches import batch_of, batches_of
from sonde.stats.divergence import entropy, kl_divergence
from sonde.tap.decoding.layers import ModelBlocks
from sonde.tap.model.probe import find_logits
from sonde.tap.model.watch import watch

Maps = Mapping[str, AffineMap]
"""A map to the last block's states for each block, by its path; others are read as they are."""


@final
@dataclass(frozen=True, kw_only=True)
class LensResult(Result):
    """``value`` is the mean KL divergence of the model's answer from each block's answer, in nats.

    All are means over tokens: ``cross_entropy`` of the next token and ``entropy`` of each block's
    answer, in nats; ``agreement`` the share with the model's own top token. ``depth`` counts for
    each block the tokens whose top token is the model's own from exactly that block on.
    """

    title: ClassVar[str] = "Divergence of each block's prediction from the model's answer"
    layers: tuple[str, ...]
    cross_entropy: Float[Tensor, "layer"]
    entropy: Float[Tensor, "layer"]
    agreement: Float[Tensor, "layer"]
    depth: Int[Tensor, "layer"]

    def table(self) -> pa.Table:  # pyright: ignore[reportUnknownMemberType, reportUnknownParameterType]
        """Return a table with one row for each block."""
        columns: dict[str, Any] = {"layer": list(self.layers)}
        for name in ("value", "cross_entropy", "entropy", "agreement", "depth"):
            columns["kl" if name == "value" else name] = torch.as_tensor(
                getattr(self, name)
            ).tolist()
        return pa.table(columns)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]

    def chart(self) -> Chart:
        """Return the divergence from the model's answer, by block."""
        values = torch.as_tensor(self.value).tolist()
        rows = [{"block": i, "kl": v} for i, v in enumerate(values)]
        return curves(self.title, rows, "block", ChartAxis("kl", title="nats"))


@final
@dataclass(frozen=True, eq=False)
class LogitLens(Explainer):
    """States after each block, decoded by the model's own final norm and head.

    Range        divergence [0, inf) nats, 0 after the last block; lower = the answer is there.
    Cost         a forward, and a product with the vocabulary for each block and token.
    Assumes      a causal model whose final norm and head alone give the logits.

    Parameters
    ----------
    maps : mapping of str to AffineMap, optional
        Maps that a block's states pass first, such as ``AffineLens`` or ``TunedLens`` give.

    References
    ----------
    nostalgebraist2020lens
    """

    maps: Maps = field(default_factory=dict[str, AffineMap])
    paper: ClassVar[str] = "nostalgebraist2020lens"

    def explain(self, model: Model | nn.Module, inputs: Any) -> LensResult:
        """Return each block's answer at every real token of some texts.

        Parameters
        ----------
        model : Model or nn.Module
        inputs : Inputs, Tensor, tuple, dict, InputBatch, or an iterable of the latter
            Texts, such as ``sonde.data.open_inputs(model, data)`` gives.

        Raises
        ------
        SiteError
            If the final norm and head alone do not give the logits.
        InputError
            If there is no token, or a map names no block.
        """
        module = model.module if isinstance(model, Model) else model
        layers = ModelBlocks(module)
        if unknown := set(self.maps) - set(layers.paths):
            raise InputError(
                f"LogitLens: expected maps of blocks ({', '.join(layers.paths[:3])}, ..), got "
                f"{', '.join(sorted(unknown)[:3])}."
            )
        sums, n, n_next = torch.zeros(5, len(layers.paths), dtype=torch.float64), 0, 0
        for states, answer, following in states_and_answers(module, layers, inputs):
            is_known = following >= 0
            n, n_next = n + len(answer), n_next + int(is_known.sum())
            sums += self._sums(layers, states, answer, following, is_known)
        if n == 0:
            raise InputError("LogitLens: expected texts, got no token.")
        kl, agreement, entropy, depth = (sums[i] / n for i in (0, 1, 2, 4))
        return LensResult(
            value=kl,
            n=n,
            unit="nats",
            direction="lower",
            range=(0.0, float("inf")),
            conventions={"divergence": "of the model's answer from the block's", "se": "none"},
            layers=tuple(layers.paths),
            cross_entropy=sums[3] / max(n_next, 1),
            entropy=entropy,
            agreement=agreement,
            depth=(depth * n).round().long(),
        )

    def _sums(
        self,
        layers: ModelBlocks,
        states: list[Tensor],
        final: Tensor,
        following: Tensor,
        known: Tensor,
    ) -> Float[Tensor, "figure layer"]:
        target = final.log_softmax(-1)
        sums = torch.zeros(5, len(states), dtype=torch.float64)
        settled = torch.full((len(final),), len(states))
        for layer in reversed(range(len(states))):
            mapped = self.maps.get(layers.paths[layer])
            state = states[layer] if mapped is None else mapped(states[layer])
            answer = layers.logits(state).double().log_softmax(-1).to(target.device)
            same = answer.argmax(-1) == target.argmax(-1)
            sums[0, layer] = kl_divergence(target, answer).sum()
            sums[1, layer] = same.sum()
            sums[2, layer] = entropy(answer).sum()
            sums[3, layer] = -answer[known].gather(1, following[known][:, None]).sum()
            settled[same.cpu() & (settled == layer + 1)] = layer
        sums[4] = torch.bincount(settled, minlength=len(states) + 1)[:-1]
        return sums


def states_and_answers(
    module: nn.Module, layers: ModelBlocks, inputs: Any
) -> Iterator[tuple[list[Tensor], Tensor, Tensor]]:
    """Yield, for each text, the states after every block, the model's logits and the next tokens.

    The last token gets -1, because no token follows; so do tokens before one that the model is not
    asked to predict, such as a token of a prompt that has a completion.
    """
    sites = [layers.site(i) for i in range(len(layers.paths))]
    for batch in batches_of(inputs):
        placed = batch_of(module, batch)
        with torch.no_grad():
            seen = watch(module, placed, sites)
        logits = find_logits(seen.output)
        tokens = placed.kwargs.get("input_ids", placed.args[0] if placed.args else None)
        if logits is None or logits.ndim != 3:
            got = "none" if logits is None else f"logits of shape {tuple(logits.shape)}"
            raise InputError(
                f"LogitLens: expected a model that returns logits for every token, got {got}."
            )
        if not isinstance(tokens, Tensor):
            raise InputError(
                "LogitLens: expected the tokens of each text, as input_ids or as the first "
                f"argument, got {type(tokens).__name__}."
            )
        asked = placed.asked
        for i in range(len(logits)):
            mask = torch.ones_like(tokens[i]) if placed.mask is None else placed.mask[i]
            real, own = (torch.nonzero(mask).flatten().to(x.device) for x in (logits, tokens))
            following = tokens[i][own]
            if asked is not None:
                following = following.masked_fill(~asked[i].to(own.device)[own], -1)
            following = torch.cat([following[1:], following.new_full((1,), -1)]).to(logits.device)
            states = [seen.tensors[str(s)][i][real] for s in sites]
            yield states, logits[i][real].double(), following


@final
@dataclass(frozen=True)
class TunedLens:
    """Trained maps from every block's states to states that give the model's own answer.

    ``h + A h + b`` with A and b from 0 (or from given maps), by Adam on ``KL(model || block)``.

    Range        as ``LogitLens``.
    Cost         ``steps`` forwards, with a product with the vocabulary for each block.
    Assumes      texts like those that it is used on.
    Differs      from the paper: Adam in place of SGD with momentum; a text is a step.

    Parameters
    ----------
    steps : int, default=250
        Steps of training, one text each, in their order; after the last text comes the first again.
    rate : float, default=1e-3
        Learning rate of Adam.

    References
    ----------
    belrose2023tuned
    """

    steps: int = 250
    rate: float = 1e-3
    paper: ClassVar[str] = "belrose2023tuned"

    def __post_init__(self) -> None:
        check_ranges(self, steps=">= 1", rate="> 0")

    def fit(
        self,
        model: Model | nn.Module,
        inputs: Any,
        start: Maps | None = None,
    ) -> LogitLens:
        """Return a lens with trained maps.

        Parameters
        ----------
        model : Model or nn.Module
        inputs : Inputs, Tensor, tuple, dict, InputBatch, or an iterable of the latter
            Texts, walked over again until all steps are done.
        start : mapping of str to AffineMap, optional
            Maps to begin with, as those of ``AffineLens``.

        Raises
        ------
        InputError
            If there is no text, or the loss stops being a number.
        """
        module = model.module if isinstance(model, Model) else model
        layers = ModelBlocks(module)
        texts = list(states_and_answers(module, layers, inputs))
        if not texts:
            raise InputError("TunedLens: expected texts, got none.")
        maps = {path: (start or {}).get(path, AffineMap()) for path in layers.paths[:-1]}
        dim = texts[0][0][0].shape[1]
        trained = {path: _dense(one, dim).requires_grad_(True) for path, one in maps.items()}

        def loss(text: tuple[list[Tensor], Tensor, Tensor]) -> Tensor:
            states, answers, _ = text
            target = answers.log_softmax(-1)
            total = torch.zeros((), dtype=torch.float64, device=answers.device)
            for i, weight in enumerate(trained.values()):
                one = torch.cat([states[i], states[i].new_ones(len(states[i]), 1)], 1)
                answer = layers.decode(one @ weight.to(one).T).double().log_softmax(-1)
                total = total + kl_divergence(target, answer).sum() / len(answers)
            return total

        descent = Descent("TunedLens", trained.values(), self.rate)
        descent.run(loss, islice(cycle(texts), self.steps))
        return LogitLens({path: _affine(weight.detach()) for path, weight in trained.items()})


def _dense(affine: AffineMap, dim: int) -> Float[Tensor, "dim column"]:
    """Return a map as one matrix whose last column is the bias."""
    shift = affine(torch.zeros(1, dim))
    return torch.cat([affine(torch.eye(dim)) - shift, shift]).T.contiguous()


def _affine(matrix: Float[Tensor, "dim column"]) -> AffineMap:
    return AffineMap(
        left=matrix[:, :-1],
        right=torch.eye(len(matrix)).to(matrix),
        shift=matrix[:, -1],
        scale=0.0,
    )
