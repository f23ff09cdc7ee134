"""All sites of a table as one detector: rates under dependence, by hand, files, refusals."""

import inspect
import math
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats
import torch

from sonde.alarms import fuse, simes
from sonde.core import Stream
from sonde.core.errors import InputError, StateError
from sonde.detect import KNN, Mahalanobis
from sonde.run.fitting.fit import fit
from sonde.run.scoring.calibrate import calibrate
from sonde.run.scoring.fuse import COMBINED, AnyRule, held_rows, with_fused
from sonde.run.scoring.score import score
from sonde.run.scoring.tables import keys_of, part_of, scores_of

SITES = ("a", "b", "c")


def sites(n, seed, useful=0.0):
    """Return rows of three sites that share most of what they hold; ``useful`` moves one site."""
    g = torch.Generator().manual_seed(seed)
    shared = torch.randn(n, 3, generator=g)
    found = {s: 2 * shared + torch.randn(n, 3, generator=g) for s in SITES}
    found["b"] = found["b"] + useful
    return found


def scored(bundle, x, **options):
    return score(bundle, Stream.of(x), progress=False, **options)


@pytest.fixture(scope="module")
def fitted():
    return fit(Mahalanobis(), Stream.of(sites(300, 0)), calibrate=0, progress=False)


@pytest.fixture(scope="module")
def bundle(fitted):
    return calibrate(fitted, Stream.of(sites(200, 1)), progress=False)


def fused_of(table, rule):
    (key,) = [k for k in keys_of(table) if k[0] == f"fuse({rule})"]
    return part_of(table, key)


@pytest.mark.slow
@pytest.mark.truth("one fresh row for each of 200 calibrations: an exact binomial band")
def test_rates_under_dependence_lie_in_the_exact_binomial_band(fitted):
    alpha, repeats = 0.1, 200
    rules = get_args(AnyRule)
    alarms, allowed = dict.fromkeys(rules, 0), 0.0
    known = scored(fitted, sites(40, 5, 3.0))
    for i in range(repeats):
        mine = calibrate(fitted, Stream.of(sites(59, 100 + i)), progress=False)
        table = scored(mine, sites(1, 10_000 + i))
        for rule in rules:
            unusual = known if rule == "learned" else None
            found = fused_of(with_fused(table, mine, rule, unusual=unusual, seed=i), rule)
            alarms[rule] += found["p"][0].as_py() <= alpha
        draw, held, _ = held_rows(mine, keys_of(table))
        n = fuse(held, draw.numpy(), seed=i).calibration.n
        allowed += math.floor(alpha * (n + 1) + 1e-9) / (n + 1) / repeats
    low, high = scipy.stats.binom.ppf([1e-4, 1 - 1e-4], repeats, allowed)
    most = scipy.stats.binom.ppf(1 - 1e-4, repeats, alpha)
    for rule in rules:
        assert alarms[rule] <= most if rule in COMBINED else low <= alarms[rule] <= high


@pytest.mark.truth("sonde.alarms on the scores of plain arrays, rows in another order")
def test_lines_are_what_the_arrays_give(fitted, bundle):
    new = sites(30, 2)
    table = scored(bundle, new)
    assert with_fused(table, bundle).slice(0, 90).equals(table)
    scorers = [bundle.result("mahalanobis", s) for s in SITES]
    p = torch.column_stack(
        [s.calibration.p_value(s.scorer.score(new[k])) for k, s in zip(SITES, scorers, strict=True)]
    )
    mixed = table.take(np.random.default_rng(0).permutation(90))
    found = fused_of(with_fused(mixed, bundle, "simes"), "simes")
    order = np.argsort(found["row"].to_numpy())
    assert found["p"].to_numpy()[order] == pytest.approx(simes(p).numpy())
    assert found["score"].to_numpy()[order] == pytest.approx(-simes(p).log().numpy())
    assert found["site"].unique().to_pylist() == [" & ".join(k[1] for k in keys_of(mixed))]
    held = sites(200, 1)
    draw, kept, _ = held_rows(bundle, [("mahalanobis", s) for s in SITES])
    want = torch.column_stack(
        [s.scorer.score(held[k]) for k, s in zip(SITES, scorers, strict=True)]
    )
    order = torch.argsort(kept[:, 0]), torch.argsort(want[:, 0])
    assert torch.allclose(kept[order[0]], want[order[1]].double())
    again = fuse(kept, draw.numpy())
    x = torch.column_stack([s.scorer.score(new[k]) for k, s in zip(SITES, scorers, strict=True)])
    found = fused_of(with_fused(table, bundle), "sum")
    assert found["p"].to_pylist() == pytest.approx(again.p_value(x).tolist())


def test_learned_weights_see_more_where_one_site_knows(bundle):
    known, new = scored(bundle, sites(200, 3, 4.0)), scored(bundle, sites(500, 4, 4.0))
    plain = fused_of(with_fused(new, bundle), "sum")
    learned = fused_of(with_fused(new, bundle, "learned", unusual=known), "learned")
    seen = [np.mean(t["p"].to_numpy() <= 0.05) for t in (plain, learned)]
    assert seen[1] > seen[0] + 0.1


def test_rows_of_examples_and_explained_tables(fitted, bundle):
    found = with_fused(scored(bundle, sites(10, 2), explain=2), bundle, "max")
    assert fused_of(found, "max")["layers"].null_count == 10
    x = {s: torch.randn(12, 3, generator=torch.Generator().manual_seed(i))
         for i, s in enumerate(SITES[:2])}  # fmt: skip
    ids, position = [f"r{i // 3}" for i in range(12)], [i % 3 for i in range(12)]
    mine = fit(KNN(k=2), Stream.of({k: v + 1 for k, v in x.items()}), calibrate=0, progress=False)
    several = Stream.of(x, ids=ids, position=position)
    mine = calibrate(mine, several, reduction="max", progress=False)
    table = score(mine, several, progress=False)
    best = table["position"].to_pylist()
    lines = fused_of(with_fused(table, mine, "simes"), "simes")
    p = np.reshape(table["p"].to_numpy(), (2, 4))
    assert lines["position"].to_pylist() == [best[k * 4 + i] for i, k in enumerate(p.argmin(0))]


def test_infinite_scores_stay_the_most_unusual(bundle):
    new = sites(20, 2)
    new["b"][7] = torch.nan
    table = scored(bundle, new)
    for rule in ("sum", "max", "bonferroni"):
        found = fused_of(with_fused(table, bundle, rule), rule)
        assert found["p"].to_numpy().argmin() == 7
    assert math.isinf(scores_of(fused_of(with_fused(table, bundle), "sum"))[7])


def test_what_is_refused(fitted, bundle):
    table = scored(bundle, sites(20, 2))
    one = part_of(table, keys_of(table)[0])
    untyped: Any = inspect.unwrap(with_fused)  # tests check types, users' calls do not
    with pytest.raises(InputError, match="several detectors or sites, got 1"):
        with_fused(one, bundle)
    with pytest.raises(InputError, match=r"a rule of sum, .*, twice_mean, got 'fisher'"):
        untyped(table, bundle, "fisher")
    for wrong in ({"rule": "learned"}, {"unusual": table}):
        with pytest.raises(InputError, match="known outliers"):
            untyped(table, bundle, **wrong)
    with pytest.raises(InputError, match="a p-value in every line"):
        with_fused(scored(fitted, sites(20, 2)), fitted, "simes")
    with pytest.raises(InputError, match=r"lines of the same rows .* got 19 lines of .* and 20 of"):
        with_fused(table.slice(1), bundle)
    held = fit(Mahalanobis(), Stream.of(sites(300, 0)), progress=False)
    with pytest.raises(StateError, match="`sonde calibrate`, or"):
        with_fused(scored(held, sites(20, 2)), held)
    assert fused_of(with_fused(scored(held, sites(20, 2)), held, "simes"), "simes").num_rows == 20
    label = torch.arange(200) % 2
    by = calibrate(fitted, Stream.of(sites(200, 1), label=label), by="label", progress=False)
    lines = score(by, Stream.of(sites(20, 2), label=label[:20]), progress=False)
    with pytest.raises(StateError, match="without --by"):
        with_fused(lines, by)
    other = pa.table({**table.to_pydict(), "instrument": ["other"] * table.num_rows})
    with pytest.raises(StateError, match="calibration scores of other"):
        with_fused(other, bundle)
