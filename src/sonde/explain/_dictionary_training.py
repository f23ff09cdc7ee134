"""Training of dictionaries, in which a few active features reconstruct each row."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.statistic import Span
from sonde.explain._codes import (
    FEW,
    OF_BATCH,
    Act,
    FeatureCodes,
    codes_of,
    few_codes,
    gated,
    jump,
    prefix_error,
    ungated,
)
from sonde.explain._dictionary_state import DictionaryState, counted, least_squares, lengths, unit
from sonde.explain._held_out import added
from sonde.stats import Moments
from sonde.stats.training import REVIEW, SURVEY, Examples, Trainer, generator
from sonde.stats.training_weights import LiveWeights, Weights

AUX, AUX_SHARE = 1 / 32, 0.5
WARM_UP, LAST = 1000, 0.2
PENALTY_WARM_UP = 0.05
KERNEL, FIRST_THRESHOLD = 0.05, 0.01
MEMORY = 0.99
RECENT = 1e7


@dataclass(frozen=True, kw_only=True)
class DictionaryTraining(Trainer[DictionaryState]):
    """Training of a dictionary. The parameters are those of ``SparseAutoencoder``.

    Weights are the encoder, its bias, the decoder (a unit row for each feature) and its bias; then
    the thresholds of ``jumprelu``, or the logarithms of gains and the biases of sizes of ``gated``;
    last the direct map of a skip transcoder. Buffers are the number of rows since each feature was
    last active, and the threshold of ``batchtopk`` and ``matryoshka``.
    """

    features: int | None
    k: int
    act: Act
    passes: int
    batch: int
    top_rate: float | None
    penalty: float
    dead_after: int | None
    patience: int
    buffer: int
    seed: int
    skip: bool = False
    reviews: ClassVar[bool] = True

    def start(self, dim: int) -> DictionaryState:
        """Return the initial state. The weights are initialised after the first pass."""
        return DictionaryState(weights=Weights.of())

    @property
    def is_own(self) -> bool:
        """True if the dictionary reconstructs the sites that it reads."""
        return True

    @abstractmethod
    def sides(self, *columns: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return the input tensors and the target tensors, one for each site."""

    def width(self, dim: int) -> int:
        """Return the number of features."""
        return 8 * dim if self.features is None else self.features

    def size_bytes(self, *dims: int) -> int:
        """Return the bytes of the weights, of Adam's moments and of buffered rows."""
        n_weights = self.width(dims[0]) * (dims[0] + dims[-1])
        best = 12 * n_weights if self.patience else 0
        moments = 16 * sum(dims) ** 2 if self.is_own else 0
        return 12 * n_weights + best + moments + 4 * self.buffer * sum(dims)

    def survey(self, state: DictionaryState, *columns: Tensor, **_: Any) -> DictionaryState:
        """Estimate the scale and the mean of the inputs and of the targets."""
        read, rebuilt = self.sides(*columns)
        cross = state.cross
        if self.skip:
            x, y = read[0].double().cpu(), rebuilt[0].double().cpu()
            x = torch.cat([x, x.new_ones(len(x), 1)], 1)
            seen = x.T @ torch.cat([x, y], 1)
            cross = seen if cross is None else cross + seen
        return replace(
            state,
            groups=state.groups.counted(columns[-1]),
            read=counted(state.read, read),
            rebuilt=counted(state.rebuilt, rebuilt),
            cross=cross,
        )

    def prepared(self, state: DictionaryState, *columns: Tensor) -> Examples:
        """Return inputs and targets, concatenated over sites, centred and scaled."""
        read, rebuilt = self.sides(*columns)
        u = torch.cat(read, 1).float()
        u = (u - state.mean.to(u)) * state.scale.to(u)
        if self.is_own:
            return Examples((u,))
        v = torch.cat(rebuilt, 1).to(u)
        return Examples((u, (v - state.mean_out.to(u)) * state.scale_out.to(u)))

    def parted(
        self, state: DictionaryState, columns: Sequence[Tensor]
    ) -> tuple[DictionaryState, Examples]:
        """Return the rows prepared for training, with the mask of the rows that are held out."""
        prepared, held = self.prepared(state, *columns).columns, state.groups.mask(columns[-1])
        held = held.to(prepared[0].device)
        if self.is_own and state.walks == 1:
            rows = prepared[0][~held] / state.site_scale(state.rebuilt).to(prepared[0])
            state = replace(state, components=added(state.components, rows, Moments()))
        return state, Examples(prepared, held)

    def loss(
        self, state: DictionaryState, live: LiveWeights, *batch: Tensor, **_: Any
    ) -> tuple[Tensor, tuple[Tensor]]:
        """Return the loss (error, penalties, revival of dead features) and each row's error."""
        u, v = batch[0], batch[-1]
        encoder, bias, decoder, bias_out, *more = live.values
        centre = bias_out if len(batch) == 1 else torch.zeros_like(u[0])
        codes, penalty, gates = self._codes(state, live, u, centre)
        written = codes.decoded(decoder)
        out = written + bias_out
        if self.skip:
            out = out + u @ more[-1].T
        error = (v - out).square().sum(1)
        with torch.no_grad():
            since = live.buffers[0]
            since += len(u)
            since[codes.fired(len(since)) > 0] = 0
            dead = torch.nonzero(since > self._dead_after(state)).flatten()
        loss = error.mean() + penalty
        if self.act == "matryoshka":
            loss = prefix_error(codes, decoder, v - out + written)
        if gates is not None:
            own = (v - out + written).detach()
            loss = loss + (own - gates @ decoder.detach()).square().sum(1).mean()
        if len(dead) and self.act != "relu":
            rest = (v - out).detach()
            few = few_codes(
                u,
                centre.detach(),
                encoder[dead],
                bias[dead],
                "abstopk" if self.act == "abstopk" else "topk",
                max(1, int(AUX_SHARE * u.shape[1])),
            )
            whole = (rest - rest.mean(0)).square().sum().clamp(min=1e-12)
            loss = loss + AUX * (rest - few.decoded(decoder[dead])).square().sum() / whole
        return loss, (error,)

    def _codes(
        self, state: DictionaryState, live: LiveWeights, u: Tensor, centre: Tensor
    ) -> tuple[FeatureCodes, Tensor, Tensor | None]:
        """Return the features of a minibatch, their penalty, and their gates if there are gates."""
        encoder, bias, decoder, _, *more = live.values
        none = u.new_zeros(())
        if self.act in FEW:
            return few_codes(u, centre, encoder, bias, self.act, self.k), none, None
        products = (u - centre) @ encoder.T
        pre = products + bias
        if self.act in ("relu", "gated"):
            warm = min(1.0, live.steps / max(1.0, PENALTY_WARM_UP * self._n_steps(state)))
            size = lengths(decoder, [len(m.mean) for m in state.rebuilt])
            if self.act == "relu":
                z = pre.relu()
                return FeatureCodes(z), warm * self.penalty * (z @ size).mean(), None
            z, gates = gated(products, bias, more[0], more[1])
            return FeatureCodes(z), warm * self.penalty * (gates @ size.detach()).mean(), gates
        if self.act == "jumprelu":
            z, active = jump(pre, more[0].relu(), KERNEL)
            return FeatureCodes(z), self.penalty * active.sum(1).mean(), None
        z = pre.relu()
        n = min(self.k * len(z), z.numel())
        least = z.detach().flatten().topk(n, sorted=False).values.min()
        z = z * (z >= least)
        with torch.no_grad():
            kept = live.buffers[1]
            kept.copy_(least if live.steps == 0 else torch.lerp(least, kept, MEMORY))
        return FeatureCodes(z), none, None

    def step(self, state: DictionaryState, live: LiveWeights, gradients: Sequence[Tensor]) -> None:
        """Update the weights by Adam, and keep the length of the decoder's rows."""
        gradients = list(gradients)
        decoder = live.values[2]
        with torch.no_grad():
            along = (gradients[2] * decoder).sum(1, keepdim=True)
            gradients[2] = gradients[2] - along * decoder
            live.adam(gradients, self._rate(state, live.steps))
            decoder /= decoder.norm(dim=1, keepdim=True).clamp(min=1e-12)

    def _rate(self, state: DictionaryState, step: int) -> float:
        """Return the learning rate, which rises at first and falls over the last fifth."""
        n = self._n_steps(state)
        rate = self.top_rate
        if rate is None:
            rate = 2e-4 / math.sqrt(max(1, len(state.weights.values[1])) / 2**14)
        up = min(1.0, (step + 1) / min(WARM_UP, max(1.0, PENALTY_WARM_UP * n)))
        return rate * up * min(1.0, max(n - step, 1.0) / max(1.0, LAST * n))

    def _n_steps(self, state: DictionaryState) -> float:
        return max(1.0, self.passes * state.groups.n_used / self.batch)

    def _dead_after(self, state: DictionaryState) -> float:
        if self.dead_after is not None:
            return self.dead_after
        return min(RECENT, 0.1 * self.passes * state.groups.n_used)

    def close_pass(self, state: DictionaryState) -> DictionaryState:
        """Initialise the weights after the pass that estimates the scales."""
        if state.stage == SURVEY:
            self._check_rows(state)
            state = replace(state, weights=self._weights(state))
        state = super().close_pass(state)
        if state.stage == REVIEW and state.best is not None:
            state = replace(state, weights=state.best, best=None)
        return state

    def _check_rows(self, state: DictionaryState) -> None:
        n, width = state.read[0].n, self.width(sum(len(m.mean) for m in state.read))
        if 0 < width < self.k:
            raise InputError(
                f"expected k of at most the {width} features of the dictionary, got {self.k}. "
                "If all features are active in a row, the dictionary is not sparse."
            )
        if n < width:
            raise InputError(
                f"expected at least a row for each of {width} features of the dictionary, got {n} "
                "rows. Give more rows, or fewer features (features=)."
            )

    def _weights(self, state: DictionaryState) -> Weights:
        dim, dim_out = len(state.scale), len(state.scale_out)
        n, source = self.width(dim), generator("dictionary", self.seed)
        decoder = unit(torch.randn(n, dim_out, generator=source))
        encoder = decoder if self.is_own else unit(torch.randn(n, dim, generator=source))
        values = [encoder.clone(), torch.zeros(n), decoder, torch.zeros(dim_out)]
        if self.act == "jumprelu":
            values.append(torch.full((n,), FIRST_THRESHOLD))
        if self.act == "gated":
            values += [torch.zeros(n), torch.zeros(n)]
        if self.skip and state.cross is not None:
            direct, offset = least_squares(state.cross)
            scaled = direct * state.scale_out[:, None] / state.scale
            values[3] = ((direct @ state.mean + offset - state.mean_out) * state.scale_out).float()
            values.append(scaled.float())
        since, kept = torch.zeros(n, dtype=torch.int64), torch.zeros(1)
        return Weights.of(*values, buffers=(since, kept))

    def held_loss(
        self, state: DictionaryState, live: LiveWeights, *batch: Tensor, **_: Any
    ) -> Tensor:
        """Return the mean squared error of held-out rows, with the whole penalty if there is one.

        The penalty of training rises at first, so that its losses do not compare.
        """
        u, v = batch[0], batch[-1]
        out = self._rebuilt(live, u, is_same=len(batch) == 1)[0]
        error = (v - out).square().sum(1).mean()
        if self.act in (*FEW, *OF_BATCH):
            return error
        centre = live.values[3] if len(batch) == 1 else torch.zeros_like(u[0])
        late = replace(live, steps=round(self._n_steps(state)))
        return error + self._codes(state, late, u, centre)[1]

    def _rebuilt(
        self, weights: Weights | LiveWeights, u: Tensor, *, is_same: bool
    ) -> tuple[Tensor, FeatureCodes]:
        """Return the reconstruction of rows, and their features, each row by itself."""
        decoder, bias_out, *more = weights.values[2:]
        encoder, bias, threshold, act = self.reader(weights)
        centre = bias_out if is_same else torch.zeros_like(u[0])
        pre = torch.addmm(bias - encoder @ centre, u, encoder.T)
        codes = codes_of(pre, act, self.k, threshold)
        out = codes.decoded(decoder) + bias_out
        return (out + u @ more[-1].T if self.skip else out), codes

    def review(self, state: DictionaryState, *columns: Tensor, **_: Any) -> DictionaryState:
        """Add the rows' errors to the sums, and count the features active in the rows."""
        prepared, held = self.prepared(state, *columns).columns, state.groups.mask(columns[-1])
        u, v = prepared[0], prepared[-1]
        with torch.no_grad():
            out, codes = self._rebuilt(state.weights, u, is_same=len(prepared) == 1)
            site = state.site_scale(state.rebuilt).to(v.device)
            rows = v / site.to(v)
            error = ((v - out).double() / site).square().sum(1)
        fired = codes.fired(len(state.weights.values[1]))
        moments, held = Moments("full" if self.is_own else "diag"), held.to(v.device)
        return replace(
            state,
            fired=fired if state.fired is None else state.fired + fired,
            held_out=state.held_out.counted(error[held], rows[held], moments),
            trained_on=state.trained_on.counted(error[~held], rows[~held], Moments("diag")),
            n=state.n + len(u),
        )

    def reader(self, weights: Weights | LiveWeights) -> tuple[Tensor, Tensor, Tensor | None, Act]:
        """Return the trained encoder: its weight, its bias, its threshold and its activation.

        These are the encoder, its bias, the threshold or None if the activation has none, and the
        activation.
        """
        encoder, bias, more = weights.values[0], weights.values[1], weights.values[4:]
        if self.act == "jumprelu":
            return encoder, bias, more[0].relu(), "jumprelu"
        if self.act == "gated":
            encoder, bias, threshold = ungated(encoder, bias, more[0], more[1])
            return encoder, bias, threshold.relu(), "jumprelu"
        if self.act in OF_BATCH:
            return encoder, bias, weights.buffers[1], "batchtopk"
        return encoder, bias, None, self.act


@final
@dataclass(frozen=True, kw_only=True)
class OwnTraining(DictionaryTraining):
    """Training of a dictionary that reconstructs its own input."""

    def sides(self, *columns: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return the rows twice, as input and as target."""
        rows = (columns[0],)
        return rows, rows

    def examples(
        self, state: DictionaryState, x: Float[Tensor, "row dim"], group_draw: Int[Tensor, "row"]
    ) -> tuple[DictionaryState, Examples]:
        """Return rows."""
        return self.parted(state, (x, group_draw))


@final
@dataclass(frozen=True, kw_only=True)
class PairTraining(DictionaryTraining):
    """Training of a dictionary on two sites: from one to the other, or from both to both."""

    both: bool = False
    span: ClassVar[Span] = "pair"

    @property
    def is_own(self) -> bool:
        """True if the dictionary reconstructs both sites from both."""
        return self.both

    def sides(self, *columns: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return input and target: the first and the second site's rows, or both sites twice."""
        pair = columns[:2]
        return (pair, pair) if self.both else (pair[:1], pair[1:])

    def examples(
        self,
        state: DictionaryState,
        x: Float[Tensor, "row dim"],
        y: Float[Tensor, "row dim2"],
        group_draw: Int[Tensor, "row"],
    ) -> tuple[DictionaryState, Examples]:
        """Return the rows of both sites, prepared for training."""
        return self.parted(state, (x, y.to(x.device), group_draw))
