from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm

from findings._evidence import gathered
from findings._nets import assert_clear, assert_raised
from sonde.findings.codes.snd049 import SND049, Change, _said, changes_in_file
from sonde.findings.evidence.answers.answers import judge_heads
from sonde.findings.evidence.answers.head_accuracy import Kind
from sonde.findings.evidence.answers.head_answers import HeadAnswers, Heads
from sonde.findings.evidence.inputs.weak_groups import known_columns
from sonde.findings.evidence.record import Evidence
from sonde.findings.rule import Location

N, AT = 320, 190


def _rows(seed: int, n: int = N):
    """Draw inputs of three classes, and answers that are right nine times in ten."""
    draw = np.random.default_rng(seed)
    label = draw.choice(3, n, p=(0.5, 0.3, 0.2))
    x = draw.normal(size=(n, 5)).round(2) + 2 * np.eye(5)[label]
    x[:, 4] = draw.integers(0, 4, n)
    said = np.where(draw.random(n) < 0.9, label, (label + 1) % 3)
    return x, label, said


def _evidence(x: Any, label: Any, said: Any, brightness: Any = None) -> Evidence:
    n, names = len(x), tuple("pqrst")

    def columns(examples: Sequence[int]) -> dict[str, list[float]]:
        return {name: [float(x[i, j]) for i in examples] for j, name in enumerate(names)}

    facts = {"inputs": names, "key_columns": columns, "labels_are_models": True}
    facts["label_names"] = ("ash", "birch", "cedar")
    more = {} if brightness is None else {"columns": {"brightness": torch.tensor(brightness)}}
    logits = torch.tensor(3 * np.eye(3)[said], dtype=torch.float32)
    ids = [f"r{i}" for i in range(n)]
    return gathered(
        np.nan_to_num(x), label=torch.tensor(label), logits=logits, ids=ids,
        keys=[i.encode() for i in ids], facts=facts, **more,
    )[0].evidence  # fmt: skip


@pytest.mark.truth("the row from which on the labels were moved")
@pytest.mark.parametrize("slip", [1, -2])
def test_labels_that_slip_are_named_with_the_row_and_the_line_that_moves_them_back(slip) -> None:
    x, label, said = _rows(0)
    moved = label.copy()
    moved[AT:] = np.roll(label, slip)[AT:]
    evidence = _evidence(x, moved, said)
    finding = assert_raised(SND049().check(evidence), "warning")
    way = "later" if slip > 0 else "earlier"
    assert f"{abs(slip)} row{'s' * (abs(slip) > 1)} {way}" in finding.sentence
    (change,) = changes_in_file(evidence)
    assert abs(change.row - AT) <= 4
    assert finding.examples == (change.row,)
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"label": moved})
    exec(finding.fix.split(" (the column")[0], {"frame": frame})  # what a user would paste
    known = frame["label"].notna().to_numpy()
    right = (frame["label"].to_numpy() == label)[known]
    assert right.mean() > 0.98
    assert change.mended == pytest.approx((said == label)[AT:].mean(), abs=0.02)


@pytest.mark.truth("the row from which on a column was overwritten")
def test_a_sensor_that_sticks_and_one_that_says_minus_999_are_named() -> None:
    x, label, said = _rows(1)
    x[AT:, 1] = x[AT - 1, 1]
    x[AT + 40 :, 2] = -999.0
    said[AT + 40 :] = 0
    evidence = _evidence(x, label, said)
    finding = assert_raised(SND049().check(evidence), "warning")
    found = {c.name: c for c in changes_in_file(evidence)}
    assert set(found) == {"the answers", "q", "r"}
    assert (found["q"].kind, found["r"].kind, found["r"].value) == ("stuck", "value", -999)
    assert abs(found["q"].row - AT) <= 2
    assert found["r"].row == AT + 40
    assert "r is -999 in 100 % of rows (0 % before)" in finding.sentence
    assert finding.fix.startswith("Treat '")
    x[AT:, 3] = np.nan
    found = {c.name: c for c in changes_in_file(_evidence(x, label, said))}
    assert (found["s"].kind, found["s"].row) == ("missing", AT)


def _of_numbers(said: np.ndarray, target: np.ndarray) -> Evidence:
    """Return the evidence of a regression with these answers and targets."""
    x, logits = np.stack([said, said**2], 1), torch.tensor(said[:, None])
    return gathered(x, logits=logits, facts={"target": torch.tensor(target)})[0].evidence


@pytest.mark.truth("the number that was added to the targets, and the row from which on")
@pytest.mark.parametrize("added", [6.5, -11.0])
def test_targets_with_an_offset_from_one_row_on_are_named_and_undone(added) -> None:
    draw = np.random.default_rng(8)
    said = 20 + 9 * draw.normal(size=N)
    truth = said + 4 * draw.normal(size=N)
    moved = truth + added * (np.arange(N) >= AT)
    finding = assert_raised(SND049().check(_of_numbers(said, moved)), "warning")
    assert finding.location is not None
    assert finding.location.answers
    assert finding.trial is not None
    assert finding.trial.holds
    fixed = {"target": torch.tensor(moved)}
    exec(finding.fix.split(": R^2")[0], fixed)
    assert np.square(fixed["target"].numpy() - truth).mean() < 0.1 * np.square(moved - truth).mean()
    assert_clear(SND049().check(_of_numbers(said, truth)))
    order = np.argsort(said)  # answers that are too close to their mean lie below large targets
    assert_clear(SND049().check(_of_numbers(0.5 * said[order] + 10, truth[order])))


@pytest.mark.truth("the row from which on targets were shuffled")
def test_targets_of_other_rows_from_one_row_on_are_named() -> None:
    draw = np.random.default_rng(5)
    truth = 40 + 9 * draw.normal(size=N)
    said = 20 + 0.5 * truth + 4 * draw.normal(size=N)

    def found(order: np.ndarray, target: np.ndarray) -> Evidence:
        facts = {"target": torch.tensor(target[order])}
        logits = torch.tensor(said[order, None])
        return gathered(np.stack([said, truth], 1)[order], logits=logits, facts=facts)[0].evidence

    given, moved = np.arange(N), truth.copy()
    moved[AT:] = draw.permutation(truth[AT:])
    finding = assert_raised(SND049().check(found(given, moved)), "warning")
    (change,) = changes_in_file(found(given, moved))
    assert (change.kind, finding.examples) == ("fit", (change.row,))
    assert finding.location == Location(rows=(change.row, N))
    assert abs(change.row - AT) <= 20
    assert change.before > 0.6
    assert abs(change.after) < 0.3
    assert_clear(SND049().check(found(given, truth)))
    assert_clear(SND049().check(found(np.argsort(truth), truth)))  # in the order of the targets


def test_pictures_that_grow_dim_are_a_note() -> None:
    x, label, said = _rows(2)
    light = 0.5 + 0.1 * np.random.default_rng(0).normal(size=N)
    assert_clear(SND049().check(_evidence(x, label, said, light)))
    light[AT:] -= np.linspace(0.1, 0.5, N - AT)
    finding = assert_raised(SND049().check(_evidence(x, label, said, light)), "note")
    assert "the brightness falls: median 0.16, before 0.51" in finding.sentence


def test_a_file_sorted_by_class_is_compared_within_classes() -> None:
    x, label, said = _rows(3)
    said[label == 2] = 1
    order = np.argsort(label, kind="stable")
    evidence = _evidence(x[order], label[order], said[order])
    assert_clear(SND049().check(evidence))
    said = said.copy()
    late = order[AT:]
    said[late] = (label[late] + 1) % 3
    assert_raised(SND049().check(_evidence(x[order], label[order], said[order])), "warning")


@pytest.mark.slow
def test_at_most_one_healthy_file_in_sixty_raises() -> None:
    raised = sum(
        SND049().check(_evidence(*_rows(100 + s, 200))).state == "raised" for s in range(60)
    )
    assert raised <= 1


def test_few_rows_and_groups_do_not_apply() -> None:
    x, label, said = _rows(4, 60)
    assert SND049().check(_evidence(x, label, said)).reason == "needs 80 rows, 60 present"
    grouped = gathered(np.zeros((200, 2)), group=[i // 4 for i in range(200)])[0].evidence
    assert "groups" in SND049().check(grouped).reason


def test_errors_from_a_file_on_are_those_of_its_name_where_files_are_read_by_name() -> None:
    x, label, said = _rows(0)
    late = np.arange(N) >= AT
    said = np.where(late, (label + 1) % 3, said)
    found = _evidence(x, label, said)

    def named(start: str) -> Evidence:
        def place(i: int) -> str:
            return f"ash/{start if late[i] else 'cam_1_'}{i:04d}.png"

        return replace(found, data=replace(found.data, by_name=True, place=place))

    changes = changes_in_file(named("cam_1_"))
    assert not isinstance(changes, str)
    assert [c.kind for c in changes] == ["error"]
    assert changes_in_file(named("cam_2_")) == ()
    columns = known_columns(named("cam_2_"), torch.arange(N))
    assert set(columns["file name"]) == {"cam_1_", "cam_2_"}


def _recorded(seed: int, planted: str) -> Evidence:
    """Draw windows of three persons in the order of time; errors come in runs, and by person."""
    draw = np.random.default_rng(seed)
    n, dim = int(draw.integers(280, 420)), 5
    first, second = sorted(draw.choice(np.arange(70, n - 70), 2, replace=False).tolist())
    person = np.repeat([0, 1, 2], [first, second - first, n - second])
    noise = draw.normal(size=(n, dim + 1))
    for t in range(1, n):
        noise[t] = 0.9 * noise[t - 1] + np.sqrt(0.19) * noise[t]
    label = np.repeat(draw.choice(3, n), draw.integers(6, 20, n))[:n]
    levels, classes = draw.normal(size=(3, dim)), 2 * draw.normal(size=(3, dim))
    x = (classes[label] + levels[person] + noise[:, :dim]).round(2)
    wrong = norm.cdf(noise[:, dim]) < np.array([0.04, 0.1, 0.3])[person]
    if planted == "stuck":
        x[second:, 1] = x[second - 1, 1]
    return _evidence(x, label, np.where(wrong, (label + 1) % 3, label))


@pytest.mark.truth("nothing changes in three recordings that follow one another")
def test_recordings_of_persons_are_blocks_of_rows() -> None:
    assert [SND049().check(_recorded(seed, "")).state for seed in range(6)] == ["clear"] * 6
    assert SND049().check(_recorded(3, "stuck")).state == "raised"


def _of_head(measure: Kind, right: np.ndarray, numbers: Any = None) -> Evidence:
    """Return evidence whose only answers are those of a head of several labels or numbers."""
    x, _, said = _rows(4)
    each = torch.tensor(right)
    head = HeadAnswers(
        name="", column="label", measure=measure, right=each, usual=each,
        examples=tuple(range(N))[::-1], group=torch.arange(N), numbers=numbers,
    )  # fmt: skip
    evidence = _evidence(np.zeros((N, 5)) + x[:, [0]], np.full(N, -1), said)
    return evidence.having({judge_heads: Heads((head,))})


@pytest.mark.truth("the row from which on a third of the labels of a row is wrong")
@pytest.mark.parametrize("wrong", [0.0, 0.3])
def test_maps_and_tags_that_are_wrong_from_one_row_on_are_named(wrong: float) -> None:
    draw = np.random.default_rng(3)
    right = 1 - np.maximum(0, 0.3 * draw.random(N) - 0.2)
    right[AT:] -= wrong
    check = SND049().check(_of_head("pixel_accuracy", right[::-1].copy()))
    if not wrong:
        assert_clear(check)
        return
    finding = assert_raised(check, "warning")
    assert "wrong on 3" in finding.sentence
    assert "of the labels of a row" in finding.sentence
    assert abs(finding.examples[0] - AT) <= 2


@pytest.mark.truth("the row from which on several numbers are far off")
def test_several_numbers_that_are_off_from_one_row_on_are_named() -> None:
    draw = np.random.default_rng(5)
    truth = draw.normal(size=(N, 3)) * [1, 100, 0.01]
    answers = truth + 0.1 * draw.normal(size=(N, 3)) * [1, 100, 0.01]
    answers[AT:] = draw.normal(size=(N - AT, 3)) * [1, 100, 0.01]
    pair = tuple(torch.tensor(x[::-1].copy()) for x in (answers, truth))
    finding = assert_raised(SND049().check(_of_head("rms_error", np.zeros(N), pair)), "warning")
    assert abs(finding.examples[0] - AT) <= 3


@pytest.mark.truth("the half whose targets are those of other rows")
@pytest.mark.parametrize("is_first", [True, False])
def test_the_half_that_follows_the_targets_less_is_named(is_first) -> None:
    change = Change("fit", "the answers", AT, *((0.1, 0.9) if is_first else (0.9, 0.1)), 1e-6)
    words = _said(change, N)
    assert words.startswith("up to row 190" if is_first else "from row 191")
    assert "less: correlation 0.1" in words
