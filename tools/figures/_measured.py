"""Every figure of ``sonde.measure`` and the probes, as functions of one drawn world of rows.

``copies``, ``coverage`` and ``nulls`` ask the same figures different questions.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from sonde import explain, measure
from sonde.core.result import Result

CLASSES = 4
STUDENT = 1.96


@dataclass(frozen=True)
class World:
    """Rows of two sites, with classes and factors; every column has one entry for each row."""

    x: Tensor
    y: Tensor
    label: Tensor
    factors: Tensor
    grad: Tensor
    logits: Tensor
    group: Tensor | None = None

    def at(self, rows: Tensor) -> "World":
        """Return the world of some rows."""
        found = {name: v[rows] for name, v in vars(self).items() if v is not None}
        return World(**found)

    @property
    def some(self) -> dict[str, Any]:
        """The group column, if there is one."""
        return {} if self.group is None else {"group": self.group}


LAWS: dict[str, int] = {"normal": 0, "t3": 3, "t5": 5}
"""Degrees of freedom of the laws that rows are drawn from; 0 is the normal law."""
Laws = tuple[Literal["normal", "t3", "t5"], ...]


def normal(random: torch.Generator, *shape: int) -> Tensor:
    """Return standard normal numbers in float64."""
    return torch.randn(*shape, generator=random, dtype=torch.float64)


def drawn(law: str, random: torch.Generator, *shape: int) -> Tensor:
    """Return numbers of variance 1, normal or of Student's law."""
    x, freedom = normal(random, *shape), LAWS[law]
    if not freedom:
        return x
    square = normal(random, freedom, *shape).square().mean(0)
    return x / square.sqrt() * math.sqrt((freedom - 2) / freedom)


def unrelated(n: int, seed: int, law: str = "normal") -> World:
    """Return rows in which nothing tells of anything else."""
    random = torch.Generator().manual_seed(seed)
    return World(
        x=drawn(law, random, n, 6),
        y=drawn(law, random, n, 5),
        label=torch.randint(CLASSES, (n,), generator=random),
        factors=torch.randint(4, (n, 3), generator=random).double(),
        grad=drawn(law, random, n, 6),
        logits=drawn(law, random, n, CLASSES),
    )


def related(n: int, seed: int, law: str = "normal") -> World:
    """Return rows in which everything tells a part of everything else."""
    random = torch.Generator().manual_seed(seed)
    plan = torch.Generator().manual_seed(12345)  # the law is the same in every draw
    label = torch.randint(CLASSES, (n,), generator=random)
    scale = torch.linspace(2.0, 0.4, 6, dtype=torch.float64)
    means, turn = 0.8 * normal(plan, CLASSES, 6), normal(plan, 6, 5)
    shift = normal(plan, 6)
    x = drawn(law, random, n, 6) * scale + means[label] + 0.3
    factors = torch.floor((x[:, :3] / scale[:3] + drawn(law, random, n, 3)).clamp(-1.9, 1.9) + 2)
    return World(
        x=x,
        y=x @ turn / 3 + drawn(law, random, n, 5),
        label=label,
        factors=factors,
        grad=drawn(law, random, n, 6) + 0.2 * shift + 0.5 * means[label],
        logits=x @ means.T / 2 + drawn(law, random, n, CLASSES),
    )


def related_in_groups(
    n: int, n_groups: int, seed: int, share: float = 0.5, largest: float = 0.0
) -> World:
    """Return rows as in ``related`` in groups: rows of a group share a part of what they hold.

    Group ``g`` has rows ``g, g + n_groups, ..``; ``share`` is the size of its own part. ``largest``
    is the fraction of rows of the first group, if it is to be larger than others.
    """
    world, random = related(n, seed), torch.Generator().manual_seed(seed + 1_000_000)
    group = torch.arange(n) % n_groups
    if largest:
        group = torch.where(torch.arange(n) < largest * n, 0, 1 + torch.arange(n) % (n_groups - 1))

    def moved(x: Tensor) -> Tensor:
        return x + share * normal(random, n_groups, x.shape[1])[group]

    parts = {name: moved(getattr(world, name)) for name in ("x", "y", "grad", "logits")}
    return replace(world, group=group, **parts)


Figure = Callable[[World], Result]


def _one(name: str, **options: Any) -> Figure:
    return lambda w: getattr(measure, name)(w.x, **options, **w.some)


def _pair(name: str, n_units: int | None = None, **options: Any) -> Figure:
    return lambda w: getattr(measure, name)(w.x[:, :n_units], w.y[:, :n_units], **options, **w.some)


def _classes(name: str, **options: Any) -> Figure:
    return lambda w: getattr(measure, name)(w.x, w.label, **options, **w.some)


def _factors(name: str, **options: Any) -> Figure:
    return lambda w: getattr(measure, name)(w.x, w.factors, **options, **w.some)


def _layers(name: str, *columns: str, **options: Any) -> Figure:
    return lambda w: getattr(measure, name)(
        [w.x, w.y, w.grad], *(getattr(w, c) for c in columns), **options, **w.some
    )


FIGURES: dict[str, Figure] = {
    "ActivationCoverage": lambda w: measure.activation_coverage(
        w.x, w.label, w.grad, w.logits, **w.some
    ),
    "ActiveVariables": lambda w: measure.active_variables(w.x[:, :5], w.y, **w.some),
    "AlignmentQuality": lambda w: measure.alignment_quality([w.x, w.y], w.label % 2, **w.some),
    "Anisotropy": _one("anisotropy"),
    "BottleneckDegree": _classes("bottleneck_degree"),
    "BottleneckDegree(mc)": _classes("bottleneck_degree", estimator="mc", m=512),
    "CCA": _pair("cca"),
    "CKA": _pair("cka"),
    "CKA(biased)": _pair("cka", debiased=False),
    "CKNNA": _pair("cknna"),
    "CauchySchwarz": _pair("cauchy_schwarz_information"),
    "CauchySchwarz(sigma=2)": _pair("cauchy_schwarz_information", sigma=2.0),
    "ClassSeparability": _classes("class_separability"),
    "ClusterIndices": _classes("cluster_indices"),
    "CodingRate": _one("coding_rate"),
    "CorrelationMatch": _pair("correlation_match"),
    "CorrelationMatch(soft)": _pair("correlation_match", method="soft"),
    "Covariance": _one("covariance"),
    "Crossnobis": lambda w: measure.crossnobis(w.x, w.label, torch.arange(len(w.x)) % 2, **w.some),
    "DCI": _factors("dci"),
    "DeadUnits": lambda w: measure.dead_units(w.x.relu(), **w.some),
    "EffectiveRank": _one("effective_rank"),
    "EffectiveRank(sample)": _one("effective_rank", source="sample"),
    "EntropyRank": _one("entropy_rank"),
    "EntropyRank(sample)": _one("entropy_rank", source="sample"),
    "FeatureComplexity": _layers("feature_complexity", k=3),
    "GULP": _pair("gulp"),
    "GradientConflict": lambda w: measure.gradient_conflict(w.grad, w.label, **w.some),
    "GradientSignalToNoise": lambda w: measure.gradient_signal_to_noise(w.grad, **w.some),
    "Gride": _one("gride"),
    "InfoMEC": _factors("info_mec"),
    "InformationImbalance": _pair("information_imbalance"),
    "InformationImbalance(m=64)": _pair("information_imbalance", m=64),
    "InformationPlane": _classes("information_plane"),
    "InformationPlane(kde)": _classes("information_plane", estimator="kde", noise=0.3),
    "KernelCKA": _pair("kernel_cka", sigma=2.0, m=32),
    "LayerCKA": _layers("layer_cka"),
    "MLEDimension": _one("mle_dimension"),
    "MassiveActivations": _one("massive_activations"),
    "MatrixEntropy": _one("matrix_entropy"),
    "MdlProbe": lambda w: explain.MdlProbe().fit(w.x, label=w.label, **w.some),
    "Modularity": _factors("modularity"),
    "MutualInformation": _pair("mutual_information"),
    "MutualInformation(copula)": _pair("mutual_information", estimator="copula"),
    "MutualInformation(ksg)": _pair("mutual_information", 2, estimator="ksg"),
    "MutualInformation(ksg, 1)": _pair("mutual_information", estimator="ksg", components=1),
    "MutualInformationGap": _factors("mutual_information_gap"),
    "MutualKNN": _pair("mutual_knn"),
    "NeuralCollapse": _classes("neural_collapse"),
    "Norms": _one("norms"),
    "PWCCA": _pair("pwcca"),
    "ParticipationRatio": _one("participation_ratio"),
    "ParticipationRatio(sample)": _one("participation_ratio", source="sample"),
    "Probe": lambda w: explain.Probe().fit(w.x, label=w.label, **w.some),
    "Procrustes": _pair("procrustes"),
    "RSA": _pair("rsa"),
    "RateReduction": _classes("rate_reduction"),
    "Readout": _layers("readout", "label", steps=100),
    "Regression": _pair("regression"),
    "SAP": _factors("sap"),
    "SVCCA": _pair("svcca"),
    "SVCCA(keep=.8)": _pair("svcca", keep=0.8),
    "SaturatedUnits": lambda w: measure.saturated_units(w.x.tanh(), **w.some),
    "Spectrum": _one("spectrum"),
    "Spectrum(sample)": _one("spectrum", source="sample"),
    "SpuriousShift": lambda w: measure.spurious_shift(
        w.x, w.label, w.factors[:, 0].long(), **w.some
    ),
    "StableRank": _one("stable_rank"),
    "StableRank(sample)": _one("stable_rank", source="sample"),
    "TokenEntropy": lambda w: measure.token_entropy(w.logits, **w.some),
    "TotalCorrelation": _one("total_correlation"),
    "TwoNN": _one("two_nn"),
    "Uniformity": _one("uniformity"),
    "UnitClusters": _one("unit_clusters", k=2),
    "UnitEntropy": _one("unit_entropy"),
    "UpdateSimilarity": lambda w: measure.update_similarity(w.x, w.grad, **w.some),
    "UpdateSize": lambda w: measure.update_size(w.x, w.grad, **w.some),
    "VInformation": _classes("v_information"),
}


def scalar(value: Any) -> float:
    """Return the mean of a value; NaN if there is none."""
    return float("nan") if value is None else float(torch.as_tensor(value).double().mean())


def is_one(value: Any) -> bool:
    """Return whether a value is a single number."""
    return value is not None and torch.as_tensor(value).numel() == 1


def doubled(world: World, times: int, share: float = 1.0) -> World:
    """Return the world with a share of its rows ``times`` times, in a fixed random order."""
    n = len(world.x)
    often = torch.arange(n)[: round(share * n)].repeat(times)
    rows = torch.cat([often, torch.arange(n)[round(share * n) :]])
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    return world.at(rows[order])
