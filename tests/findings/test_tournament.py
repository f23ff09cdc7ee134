from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sonde.findings.evidence.answers.best_probe import BestProbe
from sonde.findings.rule import Check, Figure, Finding, Level
from sonde.findings.tournament import name_cause
from sonde.findings.trial import Measure, Scope, Trial, chooses_by_key

N = 40


def trial(
    mended: range, scope: Scope, broken: range = range(0), measure: Measure = "accuracy"
) -> Trial:
    """Return a trial on 40 rows. The model is wrong on the first 24 before the change."""
    before = (torch.arange(N) >= 24).double()
    after = before.clone()
    after[list(mended)], after[list(broken)] = 1.0, 0.0
    return Trial(f"{scope} changed", scope, measure, torch.arange(100, 100 + N), before, after)


def found(
    code: str, tried: Trial | None, because_of: str | None = None, level: Level = "warning"
) -> Check:
    finding = Finding(code, level, "Something.", Figure("value", 1.0), trial=tried)
    finding = replace(finding, because_of=because_of)
    return Check(code, "raised", "", finding.figure, finding)


def named(*checks: Check) -> tuple[str | None, dict[str, str | None]]:
    """Return the cause and what explains each finding."""
    settled = name_cause({check.code: check for check in checks})
    findings = [c.finding for c in settled.values() if c.finding is not None]
    cause = [f.code for f in findings if f.is_cause]
    assert len(cause) <= 1
    return next(iter(cause), None), {f.code: f.because_of for f in findings}


def test_the_smaller_of_two_changes_that_mend_about_as_many_rows_is_the_cause() -> None:
    column, constant = trial(range(23), "inputs"), trial(range(22), "answers")
    cause, why = named(found("SND015", column), found("SND046", constant))
    assert (cause, why["SND015"]) == ("SND046", "SND046")
    few = trial(range(9), "answers")
    cause, why = named(found("SND015", column), found("SND046", few))
    assert (cause, why["SND046"]) == ("SND015", "SND015")


def test_a_change_of_other_rows_is_not_explained_by_the_cause() -> None:
    checks = (
        found("SND015", trial(range(17), "inputs")),
        found("SND068", trial(range(17, 24), "part")),
    )
    assert named(*checks) == ("SND015", {"SND015": None, "SND068": None})


def test_a_change_that_does_as_well_as_leaving_values_out_is_no_cause() -> None:
    held = replace(trial(range(15), "inputs"), leaves_out=True)
    assert named(found("SND015", held))[0] is None
    little, much = (found("SND068", trial(range(n), "part")) for n in (17, 22))
    assert named(found("SND015", held), little)[0] is None
    assert named(little)[0] == "SND068"
    assert named(found("SND015", held), much)[0] == "SND068"


@pytest.mark.parametrize(
    "check",
    [
        found("SND015", None),
        found("SND015", trial(range(3), "inputs")),
        found("SND015", trial(range(8), "inputs", range(24, 38))),
        found("SND015", trial(range(23), "inputs"), level="note"),
    ],
    ids=["not tried", "few rows", "harm", "note"],
)
def test_what_was_not_tried_or_does_not_help_is_no_cause(check: Check) -> None:
    assert named(check)[0] is None


def test_a_new_head_is_no_cause_where_an_untried_finding_explains_it() -> None:
    head = found("SND037", trial(range(20), "head"), because_of="SND003")
    assert named(found("SND003", None), head)[0] is None
    fresh = found("SND003", trial(range(20), "part"))
    assert named(fresh, head) == ("SND003", {"SND003": None, "SND037": "SND003"})


def test_a_head_that_is_fitted_anew_is_no_cause() -> None:
    head = found("SND037", trial(range(24), "head"))
    assert named(head)[0] is None
    column = found("SND015", trial(range(22), "inputs"))
    assert named(head, column) == ("SND015", {"SND037": "SND015", "SND015": None})


def test_probabilities_are_a_cause_only_if_no_answer_is_mended() -> None:
    sure = found("SND069", trial(range(20), "answers", measure="probabilities"))
    assert named(sure)[0] == "SND069"
    cause, why = named(sure, found("SND068", trial(range(18), "part")))
    assert (cause, why["SND069"]) == ("SND068", "SND068")


def test_one_huge_error_does_not_decide_between_two_changes_of_a_regression() -> None:
    order, before = torch.arange(N), torch.full((N,), 0.2)
    before[0] = -1e4
    most, least = (torch.full((N,), x) for x in (0.95, 0.4))

    def tried(scope: Scope, after: Tensor) -> Trial:
        return Trial("x", scope, "error", order, before + 0.01 * order, after + 0.001 * order)

    checks = found("SND037", tried("answers", least)), found("SND015", tried("inputs", most))
    assert named(*checks)[0] == "SND015"


def test_the_rows_that_choose_are_the_same_in_a_sample_and_in_a_small_batch() -> None:
    keys = [f"row {i}".encode() for i in range(400)]
    first = chooses_by_key(keys)
    assert 150 < int(first.sum()) < 250
    assert torch.equal(first[::3], chooses_by_key(keys[::3]))


def possible(best: float, measure: Measure = "accuracy", constant: float = 0.0) -> BestProbe:
    return BestProbe("conv1:out", measure, best, constant, {})


def settled_as(check: Check, known: BestProbe, *others: Check) -> Finding:
    checks = {c.code: c for c in (check, *others)}
    finding = name_cause(checks, known)[check.code].finding
    assert finding is not None
    return finding


@pytest.mark.parametrize("measure", ["accuracy", "error", "loss"])
@pytest.mark.parametrize(
    ("best", "is_cause", "is_part"),
    [(0.7, True, False), (0.8, False, True), (0.62, True, False), (2.2, False, False)],
)
def test_a_cause_closes_two_thirds_of_the_gap_whatever_the_measure(
    measure: Measure, best: float, is_cause: bool, is_part: bool
) -> None:
    few = found("SND015", trial(range(9), "inputs", measure=measure))  # .4 before, .625 after
    finding = settled_as(few, possible(best, measure, constant=-9.0))
    assert (finding.is_cause, finding.is_part) == (is_cause, is_part)
    assert finding.gap is not None
    assert finding.gap.closed == pytest.approx(0.225 / (best - 0.4))


def test_the_gap_is_that_of_the_rows_of_the_trial() -> None:
    few = found("SND015", trial(range(9), "inputs"))
    easy = {100 + i: float(i < 25) for i in range(N)}  # .625 on these rows, .95 elsewhere
    known = BestProbe("conv1:out", "accuracy", 0.95, 0.1, easy)
    assert settled_as(few, known).is_cause
    assert not settled_as(few, replace(known, scores={})).is_cause


def test_answers_no_better_than_the_commonest_label_or_the_mean_have_no_cause() -> None:
    few = found("SND015", trial(range(9), "inputs"))
    assert settled_as(few, possible(0.64, constant=0.6)).is_cause
    finding = settled_as(few, possible(0.64, constant=0.63))
    assert not finding.is_cause
    assert not finding.is_part
    order, draw = torch.arange(N), torch.Generator().manual_seed(1)
    errors = torch.rand(N, generator=draw, dtype=torch.float64) ** 4
    for after, expected in ((2114.0, False), (0.9, True)):  # times the variance of the targets
        huge = Trial("x", "part", "error", order, 1 - 1e9 * errors, 1 - 2 * after * errors.sqrt())
        assert huge.holds
        finding = settled_as(found("SND068", huge), possible(0.1, "error"))
        assert finding.is_cause is expected
        assert finding.is_part is False


def test_a_change_far_behind_one_of_another_kind_is_no_cause() -> None:
    least, most = trial(range(9), "inputs"), trial(range(24), "part")
    explained = found("SND068", most, because_of="SND003")
    checks = found("SND015", least), explained, found("SND003", None)
    assert named(*checks)[0] is None
    assert named(found("SND015", trial(range(20), "inputs")), *checks[1:])[0] == "SND015"


def test_a_constant_on_a_logit_is_the_cause_only_where_inputs_and_parts_were_tried() -> None:
    constant = found("SND046", replace(trial(range(22), "answers"), is_constant=True))
    tried = [Check(code, "clear") for code in ("SND015", "SND068")]
    known = possible(0.97)
    assert settled_as(constant, known, *tried).is_cause
    assert not settled_as(constant, known, tried[0]).is_cause
    assert not settled_as(constant, known, tried[0], Check("SND068", "withheld")).is_cause
    finding = settled_as(constant, possible(1.1), *tried)  # closes 79 %
    assert (finding.is_cause, finding.is_part) == (False, True)


def test_a_change_of_inputs_that_acts_as_a_constant_on_a_logit_is_no_cause() -> None:
    unsure = torch.linspace(0.3, 0.9, N, dtype=torch.float64)
    constant = replace(trial(range(22), "answers"), is_constant=True, nats=unsure)
    for scope, nats, is_cause in (
        ("inputs", unsure, False), ("part", unsure, False), ("inputs", unsure / 3, True),
        ("labels", unsure, True), ("inputs", None, True),
    ):  # fmt: skip
        check = found("SND015", replace(trial(range(23), scope), nats=nats))
        finding = name_cause({"SND015": check}, possible(0.99), constant)["SND015"].finding
        assert finding is not None
        assert (finding.is_cause, finding.is_part) == (is_cause, not is_cause)
    far = replace(constant, after=constant.before)
    assert name_cause({"SND015": check}, possible(0.99), far)["SND015"].finding is not None


def test_what_a_change_does_to_the_fit_of_batch_norms_decides_between_equal_gains() -> None:
    unsure = torch.linspace(0.3, 0.9, N, dtype=torch.float64)
    constant = replace(trial(range(22), "answers"), is_constant=True, nats=unsure)
    for misfit, cause in (("none", None), ("left", None), ("gone", "SND015")):
        form = replace(trial(range(23), "inputs"), nats=unsure, misfit=misfit)
        settled = name_cause({"SND015": found("SND015", form)}, possible(0.99), constant)
        assert [c for c, check in settled.items() if check.finding and check.finding.is_cause] == (
            [cause] if cause else []
        )
    form, norms = trial(range(23), "inputs"), trial(range(22), "statistics")
    for misfit, cause in (("none", "SND015"), ("gone", "SND015"), ("left", "SND012")):
        pair = found("SND015", replace(form, misfit=misfit)), found("SND012", norms)
        assert named(*pair)[0] == cause


def test_a_larger_change_that_leaves_much_less_undone_is_the_cause() -> None:
    constant, scaled = trial(range(20), "answers"), trial(range(24), "inputs")
    cause, why = named(found("SND046", constant), found("SND015", scaled))
    assert (cause, why["SND046"]) == ("SND015", "SND015")


@pytest.mark.truth("binom.sf: four of four groups gain, not twelve of twelve rows")
def test_rows_of_one_group_count_once_in_the_test_of_a_change():
    before = torch.zeros(20, dtype=torch.float64)
    after = (torch.arange(20) < 12).double()
    tried = Trial("x", "part", "accuracy", torch.arange(20), before, after)
    assert tried.p == pytest.approx(0.5**12)
    grouped = replace(tried, group=torch.arange(20) // 3)
    assert grouped.p == pytest.approx(0.5**4)
    assert tried.holds
    assert not grouped.holds
    alone = replace(tried, group=torch.arange(20))
    assert alone.p == tried.p


def test_a_change_of_a_part_that_helps_rows_with_stand_ins_alone_is_no_cause() -> None:
    """Rows 100 to 120 hold -999: what makes up for it there says nothing about the part."""
    part, replaced = trial(range(20), "part"), trial(range(20), "inputs")
    spoiled = found("SND072", None)
    assert spoiled.finding is not None
    spoiled = replace(spoiled, finding=replace(spoiled.finding, examples=tuple(range(100, 121))))
    assert named(found("SND068", part))[0] == "SND068"
    assert named(spoiled, found("SND068", part))[0] is None
    assert named(spoiled, found("SND015", replaced))[0] == "SND015"
    elsewhere = trial(range(24), "part")
    few = replace(spoiled, finding=replace(spoiled.finding, examples=tuple(range(100, 106))))
    assert named(few, found("SND068", elsewhere))[0] == "SND068"


def test_a_change_that_gains_no_more_than_an_offset_of_numbers_is_no_cause() -> None:
    part, offset = (trial(range(20), s, measure="error") for s in ("part", "answers"))
    offset = replace(offset, is_constant=True)
    tried = found("SND015", None), found("SND068", part)
    assert named(*tried)[0] == "SND068"
    assert named(*tried, found("SND037", offset))[0] != "SND068"
    more = trial(range(24), "part", measure="error")
    assert (
        named(found("SND015", None), found("SND068", more), found("SND037", offset))[0] == "SND068"
    )
