"""Every statistic that is exported or read by an instrument, with how it may be split."""

import importlib
import inspect
from typing import Any

import torch
from torch import Tensor

import sonde.stats
from sonde.core.instrument import Instrument, Read
from sonde.core.statistic import Learner, Statistic
from sonde.run.instruments.families import FAMILIES
from sonde.stats import (
    BatchHsic,
    ClassDirectionMoments,
    ClassMoments,
    Coreset,
    CrossMoments,
    DirectionMoments,
    EntryCounts,
    Extremes,
    FourierFeatures,
    FourierMoments,
    GroupedHsicSums,
    GroupMeans,
    HashSample,
    HeadWeights,
    HeldScores,
    Histogram,
    HsicSums,
    LogHistogram,
    Moments,
    NeighbourSums,
    OctaveSample,
    PositionMoments,
    Quantiles,
    Scalars,
    ScaledHistogram,
    Symbols,
    TokenNorms,
    TopK,
    UpdateMoments,
)
from sonde.testing.statistic_laws import Case, case_of

EDGES = torch.tensor([0.0, 1.5, 3.0])
SMALL = FourierFeatures(2.0, 4)


def rank_error(state: Any, columns: dict[str, Any]) -> float:
    """Return by how many rows a quantile sketch misjudges the rank of any row, at worst."""
    x: Tensor = columns["x"]
    true = (x[:, None, :] <= x[None, :, :]).sum(0).double()
    return float((state.rank(x.double()) - true).abs().max())


def uncovered(state: Any, columns: dict[str, Any]) -> float:
    """Return the largest distance of a row to the rows that a coreset chose."""
    return float(torch.cdist(columns["x"].double(), state.rows.double()).amin(1).max())


CASES: tuple[Case, ...] = (
    Case(BatchHsic(8), "8"),
    Case(ClassDirectionMoments(), dims=(1, 3, 8)),
    Case(ClassMoments()),
    Case(ClassMoments(products="fast")),
    Case(ClassMoments("trace")),
    Case(ClassMoments("diag")),
    Case(ClassMoments("full"), dims=(1, 3, 8)),
    Case(Coreset(6), error=uncovered),
    Case(CrossMoments()),
    Case(DirectionMoments()),
    Case(EntryCounts()),
    Case(Extremes(4)),
    Case(FourierMoments(SMALL)),
    Case(FourierMoments(SMALL, scatter=True)),
    Case(GroupMeans(), "example"),
    Case(GroupedHsicSums(), "group"),
    Case(GroupedHsicSums("yy"), "group"),
    Case(HashSample(8)),
    Case(HashSample(8, "label", groups=True)),
    Case(HashSample(8, groups="one")),
    Case(HeadWeights()),
    Case(HeldScores(8, 4)),
    Case(Histogram(EDGES)),
    Case(Histogram(EDGES, classes=3)),
    Case(HsicSums()),
    Case(HsicSums("xx", SMALL, FourierFeatures(2.0, 4, seed=1))),
    Case(LogHistogram()),
    Case(LogHistogram(("x", "grad"))),
    Case(Moments()),
    Case(Moments("diag")),
    Case(NeighbourSums(), "16", whole=False),
    Case(OctaveSample(2, 3)),
    Case(PositionMoments()),
    Case(PositionMoments("diag", 2)),
    Case(Quantiles(8), grows=3 * 16 * 8, error=rank_error),
    Case(Scalars()),
    Case(Scalars("length")),
    Case(ScaledHistogram(16)),
    Case(ScaledHistogram(16, "label")),
    Case(Symbols(EDGES, max_symbols=8)),
    Case(Symbols(EDGES, classes=3, max_symbols=8)),
    Case(TokenNorms()),
    Case(TopK(4)),
    Case(UpdateMoments()),
)

NOT_EXACT = {
    "Coreset": "which rows are chosen depends on the split; every row stays within the radius",
    "Quantiles": "which values stand for others depends on the split; ranks stay within the bound",
}

NO_INFLUENCE = {
    "BatchHsic": "its error comes from the spread over sub-batches, kept in the state",
    "Coreset": "which rows are chosen is not differentiable",
    "EntryCounts": "results of counts are figures with an error of their own",
    "Extremes": "a largest value has no first-order effect of one more row",
    "HashSample": "values of a sample take their error from random halves of it",
    "HeadWeights": "constants of the model, not rows",
    "HeldScores": "values of a sample take their error from the rank of a threshold",
    "Histogram": "results of counts are figures with an error of their own",
    "LogHistogram": "results of counts are figures with an error of their own",
    "NeighbourSums": "its error comes from the blocks kept in the state",
    "OctaveSample": "which rows are kept is not differentiable",
    "PositionMoments": "only scorers read it, whose scores are calibrated instead",
    "Quantiles": "values that stand for others have no derivative in a row's weight",
    "ScaledHistogram": "results of counts are figures with an error of their own",
    "Symbols": "results of counts are figures with an error of their own",
    "TokenNorms": "medians of counts are not differentiable",
    "TopK": "a largest value has no first-order effect of one more row",
}


def exported_statistics() -> set[str]:
    """Return the names of the statistics that the package exports."""
    members = {name: getattr(sonde.stats, name) for name in sonde.stats.__all__}
    return {
        n
        for n, m in members.items()
        if inspect.isclass(m) and issubclass(m, Statistic) and not inspect.isabstract(m)
    }


def exported_instruments() -> list[Instrument]:
    """Return every exported instrument with every set of its example parameters."""
    found: list[Instrument] = []
    for family in FAMILIES:
        package = importlib.import_module(f"sonde.{family}")
        for name in getattr(package, "__all__", ()):
            member = getattr(package, name)
            if inspect.isclass(member) and issubclass(member, Instrument):
                found += [member(**parameters) for parameters in member.examples]
    return found


def private_cases() -> list[Case]:
    """Return the statistics that instruments read and no package exports, one of each class.

    Those that read predictions of tokens are left out: random rows are none. Their instruments are
    held to the laws on real ones.
    """
    found: dict[type, Statistic[Any]] = {}
    for instrument in exported_instruments():
        if instrument.reading().get("reducer") == "predictions":
            continue
        for read in instrument.reads().values():
            statistic = read.statistic if isinstance(read, Read) else read
            if type(statistic).__name__ not in exported_statistics():
                found.setdefault(type(statistic), statistic)
    return [case_of(s) for s in found.values()]


def learners() -> list[Case]:
    """Return the learners among the private statistics."""
    return [c for c in private_cases() if isinstance(c.statistic, Learner)]


def mergeable() -> list[Case]:
    """Return all cases but learners."""
    return [*CASES, *(c for c in private_cases() if not isinstance(c.statistic, Learner))]


def name_of(case: Case) -> str:
    """Return a readable test id."""
    values = [
        v for v in vars(case.statistic).values() if isinstance(v, str | tuple | int) and v != ""
    ]
    inner = "-".join(str(v) for v in values).replace(" ", "")
    return f"{type(case.statistic).__name__}-{inner}".rstrip("-")
