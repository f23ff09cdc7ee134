import math

import numpy as np
import pytest
from scipy import stats

from sonde.core.errors import InputError
from sonde_studies import Claim, Outcome, Study, StudyTable, as_text, run_study, study_of
from sonde_studies.arms import note, part
from sonde_studies.study import verdict_of

VALUES = (0.03, 0.05, 0.04, 0.07)


class Planted(Study):
    """Figures that follow from the seed."""

    name, title, data = "planted", "is it there?", "none"
    fidelity = "ours"
    claims = (
        Claim("effect", "There is an effect.", "units"),
        Claim("large", "It is large.", "units", above=10.0),
    )
    null = Claim("null", "Nothing.", "units")

    def run(self, seed, tiny, tick):
        tick("counting")
        return {
            "effect": 1 + 0.1 * seed,
            "large": 1 + 0.1 * seed,
            "null": (-1.0) ** seed,
            "ours | near": 0.5,
            "plain": 3.0,
        }


@pytest.mark.truth("scipy.stats.t.interval")
def test_interval_is_students():
    low, high = stats.t.interval(0.95, 3, loc=0.0475, scale=stats.sem(VALUES))
    assert Outcome(VALUES).interval == pytest.approx((low, high))
    low, high = stats.t.interval(0.99, 3, loc=0.0475, scale=stats.sem(VALUES))
    assert Outcome(VALUES, level=0.99).interval == pytest.approx((low, high))


@pytest.mark.truth("scipy.stats.nct, the law of a one-sample t")
@pytest.mark.parametrize("n", [3, 10, 30, 41])
def test_an_effect_that_matters_is_called_too_small_in_at_most_one_of_forty(n):
    wide = Outcome(tuple(0.3 * x for x in range(n)))
    assert wide.matters / wide.deviation == pytest.approx(
        2 * stats.t.ppf(0.975, 29) / math.sqrt(30)
    )
    effect = wide.matters / wide.deviation * math.sqrt(n)  # in standard errors
    edges = np.linspace(-6, 6, 501)  # t of an interval
    said = [verdict_of(t - (h := stats.t.ppf(0.975, n - 1)), t + h, 0.0, n) for t in edges]
    small = edges[[v == "not at this size" for v in said]]
    reached = stats.nct.cdf(small.max(), n - 1, effect)
    assert 0 < reached <= 0.025
    assert ("undecided" in said) == (n < 30)


@pytest.mark.truth("scipy.stats.nct, the power of a one-sample t test")
def test_the_effect_that_would_have_been_seen_is_seen_about_four_times_out_of_five():
    wide = Outcome(tuple(0.1 * x for x in range(30)))
    scale = wide.deviation / math.sqrt(30)
    shift = wide.detectable / scale
    found = 1 - stats.nct.cdf(stats.t.ppf(0.975, 29), 29, shift)
    assert found == pytest.approx(0.8, abs=0.02)


def test_verdicts_follow_the_interval():
    assert Outcome(VALUES).verdict == "holds"
    assert Outcome(VALUES, above=0.04).verdict == "undecided"
    assert Outcome(tuple(x - 0.048 for x in VALUES * 3)).verdict == "not at this size"
    assert Outcome(VALUES, above=0.5).verdict == "not at this size"  # short of the bar
    assert Outcome(tuple(-x for x in VALUES)).verdict == "holds the other way"
    assert Outcome(tuple(-x for x in VALUES), above=0.5).verdict == "holds the other way"
    assert Outcome(tuple(0.04 - x for x in VALUES), above=-0.5).verdict == "holds"
    assert Outcome((0.4, 0.5, 0.6), above=0.5).covers
    assert not Outcome(VALUES).covers
    assert Outcome((1.0,)).verdict == "undecided"
    assert Outcome((0.5, 0.5, 0.5), above=0.5).verdict == "not at this size"


def test_a_table_says_what_was_claimed_and_found():
    said = []
    table = run_study(Planted(), range(4), tick=said.append)
    entry = table.json()
    assert [c["verdict"] for c in entry["claims"]] == ["holds", "not at this size"]
    assert entry["null"]["verdict"] == "as expected"
    low, high = stats.t.interval(0.99, 3, loc=0.0, scale=stats.sem(table.figures["null"]))
    assert (entry["null"]["low"], entry["null"]["high"]) == pytest.approx((low, high))
    assert entry["figures"]["plain"] == [3.0] * 4
    text = as_text(table)
    for word in ("There is an effect.", "not at this size", "as expected", "ours", "near", "plain"):
        assert word in text
    assert said == [f"planted, seed {i}: counting" for i in range(4)]
    wide = {**table.figures, "null": tuple(5 * x for x in table.figures["null"])}
    blind = StudyTable(Planted(), table.seeds, wide)
    assert blind.outcome(Planted.null).detectable > 10 - 1.15  # of the large effect
    assert blind.json()["null"]["verdict"] == "as expected, weak"
    assert "as expected, weak" in as_text(blind)
    assert "no evidence" in as_text(StudyTable(Planted(), (0,), table.figures, tiny=True))


def test_an_arm_that_a_seed_did_without_was_given_nothing_there():
    class Sometimes(Planted):
        def run(self, seed, tiny, tick):
            tick("extra")
            with part("extra"):
                if seed % 2:
                    note(rows=6)
            return super().run(seed, tiny, tick)

    table = run_study(Sometimes(), range(4))
    assert table.figures["given | extra | rows"] == (0.0, 6.0, 0.0, 6.0)


def test_finished_seeds_are_kept_for_the_same_code_and_size(tmp_path, monkeypatch):
    file, said = tmp_path / "planted.seeds.json", []

    class Stopped(Planted):
        def run(self, seed, tiny, tick):
            said.append(seed)
            if seed == 2 and len(said) == 3:
                raise KeyboardInterrupt
            return {**super().run(seed, tiny, tick), "inf": math.inf}

    study = Stopped()
    with pytest.raises(KeyboardInterrupt):
        run_study(study, range(4), kept=file)
    table = run_study(study, range(5), kept=file)
    assert said == [0, 1, 2, 2, 3, 4]
    assert table == run_study(study, range(5))
    said.clear()
    run_study(study, (4, 1, 7), kept=file)
    assert said == [7]
    run_study(study, range(3), tiny=True, kept=file)
    assert said == [7, 0, 1, 2]
    monkeypatch.setattr("sonde_studies._kept_seeds.code_hash", lambda: "of other sources")
    run_study(study, range(3), tiny=True, kept=file)
    file.write_text("[")
    run_study(study, range(3), tiny=True, kept=file)
    assert said == [7, *[0, 1, 2] * 3]


def test_a_null_arm_has_to_see_the_smallest_effect_that_matters_where_nothing_was_found():
    table = run_study(Planted(), range(4))
    noise = (-5.0, 5.0, 5.0, -5.0)
    found = {"effect": noise, "large": tuple(10 + x for x in noise)}
    table = StudyTable(Planted(), table.seeds, {**table.figures, **found})
    assert 0 < table.outcome(Planted.null).detectable < table.outcome(Planted.claims[0]).matters
    assert table.null_verdict == "as expected"
    wide = {**table.figures, "null": tuple(2 * x for x in table.figures["null"])}
    assert StudyTable(Planted(), table.seeds, wide).null_verdict == "as expected, weak"


def test_without_its_premise_a_claim_was_not_tested():
    class Conditional(Planted):
        claims = (
            Claim("effect", "There is an effect.", "units"),
            Claim("large", "It is large.", "units", above=10.0),
            Claim("there", "Where it is large it is there.", "units", premise="large"),
            Claim("also", "Where it is there it is there.", "units", premise="effect"),
            Claim("then", "Where that was not tested.", "units", premise="there"),
        )

        def run(self, seed, tiny, tick):
            return {**super().run(seed, tiny, tick), **dict.fromkeys(("there", "also", "then"), 1)}

    table = run_study(Conditional(), range(4))
    verdicts = ["holds", "not at this size", "not tested", "holds", "not tested"]
    assert [c["verdict"] for c in table.json()["claims"]] == verdicts
    assert as_text(table).count("; not tested") == 2


def test_a_premise_that_is_no_claim_is_an_error():
    class Loose(Planted):
        claims = (Claim("effect", "There is an effect.", "units", premise="absent"),)

    with pytest.raises(InputError, match="'absent'"):
        run_study(Loose(), range(3))


@pytest.mark.parametrize("seeds", [(0, 1), (0, 1, 1), ()])
def test_too_few_seeds_are_refused(seeds):
    with pytest.raises(InputError, match="different seeds"):
        run_study(Planted(), seeds)


def test_a_figure_that_is_missing_is_an_error():
    class Forgetful(Planted):
        def run(self, seed, tiny, tick):
            return {"effect": 1.0, "null": 0.0}

    with pytest.raises(InputError, match="large"):
        run_study(Forgetful(), range(3))


def test_unknown_study_is_an_error():
    with pytest.raises(InputError, match="nac"):
        study_of("nacc")
