"""Reconstruct each patch of an image from a few normal patches, and score the error.

Meant for few usual images: what lies between two patches of the dictionary is retrieved too.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError, StateError
from sonde.core.instrument import Detector
from sonde.core.ranges import check_ranges
from sonde.core.result import Scorer, infinite_where_nonfinite
from sonde.core.state import size_bytes
from sonde.core.statistic import Statistic
from sonde.detect._lookup import KEY, QUERY, VALUE, Generators, misfit, retrieval, starting_weights
from sonde.detect._metric import check_fitted_width
from sonde.detect.knn import to_unit_length
from sonde.detect.patch_core import READERS
from sonde.stats import Coreset, CoresetState, HashSample, HashSampleState
from sonde.stats.training import Examples, Trainer, TrainingState, generator
from sonde.stats.training_weights import LiveWeights

HINGE = 0.1
MARGIN = 0.25


@dataclass(frozen=True, kw_only=True)
class LookupTrainingState(TrainingState):
    """Weights of the maps, and the sample of patches that they retrieve from.

    The losses are the misfits of usual patches and of scrambled patches.
    """

    sample: HashSampleState | None = None


@final
@dataclass(frozen=True)
class LookupTraining(Trainer[LookupTrainingState]):
    """Training of ``DictLookup``, which documents the parameters."""

    m: int
    temperature: float
    hidden: int
    passes: int
    batch: int
    rate: float
    seed: int

    def start(self, dim: int) -> LookupTrainingState:
        """Return identity maps as the initial weights."""
        return LookupTrainingState(weights=starting_weights(dim, self.hidden, self.seed))

    def size_bytes(self, *dims: int) -> int:
        """Return the bytes of a state with a full sample."""
        return size_bytes(self.start(dims[0])) + HashSample(self.m).size_bytes(*dims)

    def survey(
        self, state: LookupTrainingState, x: Tensor, *who: Tensor, **_: Any
    ) -> LookupTrainingState:
        """Sample the patches of the dictionary."""
        sample = HashSample(self.m)
        seen = sample.observe(x.cpu(), *who)
        return replace(
            state, sample=seen if state.sample is None else sample.merge(state.sample, seen)
        )

    def examples(
        self,
        state: LookupTrainingState,
        x: Float[Tensor, "row dim"],
        draw: Int[Tensor, "row"],
        group: Int[Tensor, "row"],
        group_draw: Int[Tensor, "row"],
    ) -> tuple[LookupTrainingState, Examples]:
        """Return patches and their images."""
        return state, Examples((x, group.to(x.device)))

    def loss(
        self, state: LookupTrainingState, live: LiveWeights, *batch: Tensor, **_: Any
    ) -> tuple[Tensor, tuple[Tensor, Tensor]] | None:
        """Return the loss of reconstructing patches and scrambled ones from other images."""
        if (sample := state.sample) is None:
            return None
        x, group = to_unit_length(batch[0]).float(), batch[1]
        source = generator("scrambled", self.seed, live.steps)
        drawn = torch.randperm(len(sample.rows), generator=source)[: self.batch].to(x.device)
        bank = to_unit_length(sample.rows[drawn]).to(x)
        others = group[:, None] != sample.group[drawn]
        has_others = others.any(1)
        x, others = x[has_others], others[has_others]
        if len(x) == 0:
            return None
        fakes, share = scrambled(x, source)
        both, others = torch.cat([x, fakes]), torch.cat([others, others])
        maps = Generators(tuple(live.values))
        held = maps(KEY, bank), maps(VALUE, bank)
        usual, odd = misfit(maps, both, *held, self.temperature, others).split(len(x))
        gap = 2 * (MARGIN * share + usual.mean() - odd).clamp(min=0).mean()
        return 2 * usual.mean() + HINGE * gap, (usual, odd)

    def close_pass(self, state: LookupTrainingState) -> LookupTrainingState:
        """Raise if the sample holds fewer than 2 groups (images)."""
        n_groups = 0 if state.sample is None else len(state.sample.group.unique())
        if n_groups < 2:
            raise InputError(
                f"DictLookup: expected patches of at least 2 images (groups), got {n_groups}: in "
                "training a patch is compared with patches of other images, not of its own "
                "image. Pass more images, train on other images (over), or use "
                "generators='identity'."
            )
        return super().close_pass(state)


def scrambled(
    x: Float[Tensor, "row dim"], source: torch.Generator
) -> tuple[Float[Tensor, "row dim"], Float[Tensor, "row"]]:
    """Return unit patches mixed with scrambled ones, and each patch's scrambled fraction.

    Each unit of a scrambled patch has the value of another patch drawn at random: each unit is
    usual by itself, but the combination is not. The share is uniform in (0, 1).
    """
    rows = torch.randint(len(x), x.shape, generator=source).to(x.device)
    share = torch.rand(len(x), generator=source).to(x)
    return to_unit_length(torch.lerp(x, x.gather(0, rows), share[:, None])), share


CHUNK_ENTRIES = 1 << 21
IDENTITY = Generators()


@final
@dataclass(frozen=True, kw_only=True)
class DictLookupScorer(Scorer):
    """Angle of patches to their reconstruction from ``bank``; ``value`` is the bank's size.

    Every fitted patch lies within ``radius`` of the bank; ``radius`` is None if not known.
    """

    bank: Float[Tensor, "entry dim"]
    temperature: float
    radius: float | None = None
    generators: Generators = IDENTITY

    def score(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row"]:
        """Return ``(1 - cosine) / 2`` between each patch's value and its retrieved mean value."""
        out = torch.empty(len(x), dtype=self.bank.dtype, device=x.device)
        query = self._unit(x)
        step = max(1, CHUNK_ENTRIES // len(self.bank))
        for start in range(0, len(x), step):
            part = slice(start, start + step)
            out[part] = misfit(
                self.generators, query[part], self._keys, self._values, self.temperature
            )
        return infinite_where_nonfinite(out, x)

    def weights(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row entry"]:
        """Return each dictionary entry's weight in a patch's reconstruction."""
        return retrieval(self.generators(QUERY, self._unit(x)), self._keys, self.temperature)

    def over(self, x: Float[Tensor, "entry dim"]) -> "DictLookupScorer":
        """Return this detector with another dictionary: a few normal patches of a new kind.

        Its scores are about other patches, so calibrate them anew.
        """
        bank = to_unit_length(self._checked(x)).to(self.bank)
        if len(bank) == 0 or not bool(torch.isfinite(bank).all()):
            raise InputError(
                "DictLookup.over: expected at least 1 patch and only finite patches, got "
                f"{len(bank)}."
            )
        return replace(self, value=float(len(bank)), n=len(bank), flags=(), bank=bank, radius=None)

    @cached_property
    def _keys(self) -> Float[Tensor, "entry dim"]:
        return self.generators(KEY, self.bank)

    @cached_property
    def _values(self) -> Float[Tensor, "entry dim"]:
        return self.generators(VALUE, self.bank)

    def _unit(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
        return to_unit_length(self._checked(x).to(self.bank)).nan_to_num(0.0)

    def _checked(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
        check_fitted_width("DictLookup", x, self.bank.shape[1])
        return x


@final
@dataclass(frozen=True)
class DictLookup(Detector):
    """One minus the cosine between each patch and a sparse mean of normal patches like it, halved.

    Patches of usual images are keys and values of a dictionary. A query ``q`` retrieves
    ``r = sum_i w_i v(s_i)`` with ``w = sparsemax(q . k(s_i) / temperature)`` over rows of unit
    length: only the few entries that are nearly as similar as the best one have a weight. What the
    dictionary does not hold comes back as something else. Trained generators of queries, keys and
    values begin as the identity and are taught by usual patches alone: these are to be retrieved
    from other images, and blends with scrambled ones (each unit from another patch) are not. They
    know no class, so what they learned serves a dictionary of another kind too (``over``).

    Range        [0, 1]; higher = more unusual. An image's score is that of its worst patch.
    Cost         one pass; state 4 m dim bytes; O(m (dim + log m)) per patch. Trained: ``passes``
                 walks more, state 72 hidden dim bytes more, O(hidden dim) per patch more.
    Assumes      reducer ``patches`` or ``patches3``; lengths carry nothing. A patch of zeros scores
                 0.5. Trained: patches of at least 2 images.
    Differs      from the paper: generators see a patch alone. Attention over the image, as it has,
                 gained nothing in ``sonde study attending-lookup``. What is unusual is made of
                 single patches (it pastes textures into images); no alignment with text; cosines
                 in place of dot products, whose sparsity depends on lengths; one site and one
                 window at a time: average the maps of several.

    Parameters
    ----------
    m : int, default=4096
        Most rows in the dictionary.
    temperature : float, default=0.05
        What cosines are divided by; small: only the most similar entry counts.
    bank : {"sample", "coreset"}, default="sample"
        Rows chosen by a hash, which merges exactly, or farthest first, which keeps rare ones.
        Bundles with the latter that were fitted apart and merged give other scores than one pass
        does, by as much as scores spread (flag ``rough_merge``).
    window : {1, 3}, default=1
        Patches along a side of the neighbourhood that is averaged; 1 = each patch by itself.
    generators : {"identity", "trained"}, default="identity"
        Whether queries, keys and values are the patches themselves. What is trained cannot merge.
    hidden : int, default=256
        Hidden units of each generator.
    passes : int, default=30
        Walks over the images in training.
    batch : int, default=1024
        Patches in a step, and most patches that they are looked up in.
    rate : float, default=1e-3
        Step size of Adam (1e-4 in the paper, over more steps).
    seed : int, default=0
        Seed of the initial weights, of the order of rows and of the scrambling.

    Examples
    --------
    >>> scorer = DictLookup().fit([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> scorer.score(torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 1.0]])).tolist()
    [0.0, 0.5]

    References
    ----------
    dictas2025, martins2016sparsemax
    """

    m: int = 4096
    temperature: float = 0.05
    bank: Literal["sample", "coreset"] = "sample"
    window: int = 1
    generators: Literal["identity", "trained"] = "identity"
    hidden: int = 256
    passes: int = 30
    batch: int = 1024
    rate: float = 1e-3
    seed: int = 0
    paper: ClassVar[str] = "dictas2025"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"m": 64},
        {"m": 16, "bank": "coreset", "window": 3},
        {"m": 64, "generators": "trained", "hidden": 8, "passes": 2, "batch": 256},
    )

    def __post_init__(self) -> None:
        check_ranges(
            self,
            m=">= 1",
            temperature="> 0",
            bank=("sample", "coreset"),
            window=READERS,
            generators=("identity", "trained"),
            hidden=">= 1",
            passes=">= 1",
            batch=">= 1",
            rate="(0, inf)",
        )

    def reading(self) -> dict[str, Any]:
        """Return the reading of a row per patch, averaged over its neighbourhood if requested."""
        return {"reducer": READERS[self.window]}

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the requests for the dictionary's rows, or for the training state with them."""
        statistics: dict[str, Statistic[Any]] = {}
        if self.generators == "trained":
            statistics["trained"] = LookupTraining(
                self.m, self.temperature, self.hidden, self.passes, self.batch, self.rate, self.seed
            )
        if self.bank == "coreset":
            statistics["coreset"] = Coreset(self.m)
        elif self.generators == "identity":
            statistics["sample"] = HashSample(self.m)
        return statistics

    def result(
        self,
        sample: HashSampleState | None = None,
        coreset: CoresetState | None = None,
        trained: LookupTrainingState | None = None,
    ) -> DictLookupScorer:
        """Scale the dictionary's rows to unit length, and add the trained maps."""
        states = (coreset, sample, None if trained is None else trained.sample)
        kept = next((state for state in states if state is not None), None)
        if kept is None or len(kept.rows) == 0:
            raise StateError("DictLookup: expected at least 1 row to fit on, got none.")
        conventions: dict[str, Any] = {
            "value": "rows in the dictionary",
            "similarity": "cosine",
            "se": "not given for a scorer: calibrate its scores",
        }
        rough = () if coreset is None else ("rough_merge",)
        if trained is not None:
            conventions |= self._trained(trained)
        return DictLookupScorer(
            value=float(len(kept.rows)),
            n=kept.n,
            range=(0.0, 1.0),
            flags=() if kept.is_everything else ("sampled", *rough),
            conventions=conventions,
            bank=to_unit_length(kept.rows.double()),  # cosines near 1 keep their digits
            temperature=self.temperature,
            radius=None if coreset is None else coreset.radius,
            generators=IDENTITY if trained is None else Generators(trained.weights.values),
        )

    def _trained(self, trained: LookupTrainingState) -> dict[str, Any]:
        """Return steps and mean scores of the training run; raise if it did not finish."""
        trained.require_trained("DictLookup")
        return {
            "steps": trained.weights.steps,
            "mean score of normal patches in training": trained.losses[0].average,
            "the same for scrambled patches": trained.losses[1].average,
        }
