import numpy as np
import pytest
import torch

from findings._evidence import digits, evidence_of, states
from findings._nets import assert_clear, assert_raised
from sonde.findings.codes.snd034 import SND034
from sonde.findings.evidence.answers.labels import label_evidence
from sonde.findings.evidence.inputs.suspect_labels import suspect_labels
from sonde.findings.evidence.inputs.unusual_rows import doubtful_labels, rows_section
from sonde.findings.evidence.shared_rows import examples_at


def flipped(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    label = digits()[1].clone()
    rows = torch.from_numpy(rng.choice(len(label), count, replace=False))
    label[rows] = (label[rows] + torch.from_numpy(rng.integers(1, 10, count))) % 10
    return label, rows


@pytest.mark.slow
def test_five_per_cent_of_wrong_labels_are_a_warning() -> None:
    x, names = states(digits()[0])[0], [f"row {i}" for i in range(1797)]
    label, rows = flipped(90)
    evidence = evidence_of(x, label=label, ids=names)
    finding = assert_raised(SND034().check(evidence), "warning")
    assert finding.figure.value > 0.03
    wrong = {f"row {i}" for i in rows.tolist()}
    listed = [row["id"] for row in rows_section(evidence)["mislabelled"]]
    assert len(set(listed) & wrong) >= 0.85 * len(listed)


def test_most_of_thirty_wrong_labels_are_listed_but_not_raised_loudly() -> None:
    x = states(digits()[0])[0]
    label, rows = flipped(30, seed=1)
    evidence = evidence_of(x, label=label)
    doubt = doubtful_labels(evidence)
    check = SND034().check(evidence)
    assert check.state == "clear" or (check.finding is not None and check.finding.level == "note")
    assert 18 <= len(doubt.row) <= 40
    assert len(rows) == 30


@pytest.mark.slow
def test_true_labels_are_clear_at_trained_and_random_nets() -> None:
    x, label = digits()
    for trained in (True, False):
        check = SND034().check(evidence_of(states(x, trained)[0], label=label))
        assert assert_clear(check).value < 0.006


@pytest.mark.truth("the rows whose labels were changed, among classes that overlap")
def test_a_model_that_did_not_learn_the_wrong_labels_finds_more_of_them() -> None:
    draw = np.random.default_rng(3)
    centre, label = draw.normal(size=(4, 6)) * 1.5, draw.integers(0, 4, 700)
    x = centre[label] + draw.normal(size=(700, 6))
    logits = torch.from_numpy(x @ centre.T - (centre**2).sum(1) / 2)  # the true posterior
    given, wrong = label.copy(), draw.random(700) < 0.06
    given[wrong] = (label[wrong] + draw.integers(1, 4, wrong.sum())) % 4

    def listed(said: torch.Tensor) -> np.ndarray:
        facts = {"labels_are_models": True}
        evidence = evidence_of(
            torch.from_numpy(x), label=torch.from_numpy(given), logits=said, facts=facts
        )
        rows = label_evidence(evidence).where[doubtful_labels(evidence).row].tolist()
        return wrong[examples_at(evidence, rows)]

    learned = 10.0 * torch.nn.functional.one_hot(torch.from_numpy(given))
    alone, more = listed(learned), listed(logits)
    assert more.sum() >= 1.2 * alone.sum()
    assert more.mean() >= 0.9
    assert more.sum() >= 0.8 * wrong.sum()


@pytest.mark.truth("the labels that were changed, one in ten, of two classes")
def test_one_wrong_label_in_ten_is_a_warning_if_the_model_did_not_learn_them() -> None:
    draw = np.random.default_rng(6)
    label = draw.integers(0, 2, 285)
    x = (2.0 * label - 1)[:, None] * np.array([1.1, 0.9, 0.0]) + draw.normal(size=(285, 3)) / 2
    wrong = draw.random(285) < 0.1
    logits = np.stack([-3 * x[:, 0], 3 * x[:, 0]], 1)
    evidence = evidence_of(
        torch.from_numpy(x), label=torch.from_numpy(np.where(wrong, 1 - label, label)),
        logits=torch.from_numpy(logits), facts={"labels_are_models": True},
    )  # fmt: skip
    doubt = doubtful_labels(evidence)
    finding = assert_raised(SND034().check(evidence), "warning")
    assert doubt.n_clear / doubt.n < 0.06  # the rows without any neighbour of their label
    assert finding.figure.value == len(doubt.row) / 285
    assert finding.figure.value > 0.05


@pytest.mark.truth("labels exchanged before the net was trained on them, which it then learned")
def test_wrong_labels_that_the_net_has_learned_are_counted_at_an_early_site() -> None:
    """The late states and the answers hold the given labels: alone they show no wrong one."""
    draw = np.random.default_rng(5)
    n, classes = 900, 4
    truth = draw.integers(0, classes, n)
    early = 4 * np.eye(8)[truth] + draw.normal(size=(n, 8))
    given, wrong = truth.copy(), draw.random(n) < 0.06
    given[wrong] = (truth[wrong] + draw.integers(1, classes, wrong.sum())) % classes
    late = 4 * np.eye(8)[given] + draw.normal(size=(n, 8)) * 0.5
    logits = torch.from_numpy(6 * np.eye(classes)[given])
    sites = {"early": early, "late": late}
    evidence = evidence_of(
        {k: torch.from_numpy(v).float() for k, v in sites.items()},
        label=torch.from_numpy(given), logits=logits, facts={"labels_are_models": True},
    )  # fmt: skip
    finding = assert_raised(SND034().check(evidence), "note")
    low, high = finding.figure.low, finding.figure.high
    assert low is not None
    assert high is not None
    assert low * n <= wrong.sum() <= high * n
    found = suspect_labels(evidence)
    rows = label_evidence(evidence).where[found.row[: int(wrong.sum())]].tolist()
    assert wrong[examples_at(evidence, rows)].mean() > 0.9
    assert found.planted == 0
    clean = evidence_of(
        {"early": torch.from_numpy(early).float(), "late": torch.from_numpy(early).float()},
        label=torch.from_numpy(truth),
    )
    assert_clear(SND034().check(clean))


def level_of(seed: int, wrong: float, apart: float) -> str:
    """Rows of three normal classes, answered as well as can be, and states that follow answers."""
    draw, n = np.random.default_rng(seed), 600
    centre, label = apart * draw.normal(size=(3, 6)), draw.integers(0, 3, n)
    x = centre[label] + draw.normal(size=(n, 6))
    logits = x @ centre.T - (centre**2).sum(1) / 2
    p = torch.softmax(2 * torch.from_numpy(logits), 1).numpy()
    late = 6 * np.tanh(2 * p) @ np.eye(3, 5) + 0.3 * draw.normal(size=(n, 5))
    given, is_wrong = label.copy(), draw.random(n) < wrong
    given[is_wrong] = (label[is_wrong] + draw.integers(1, 3, is_wrong.sum())) % 3
    sites = {k: torch.from_numpy(v).float() for k, v in (("early", x), ("late", late))}
    evidence = evidence_of(
        sites, label=torch.from_numpy(given), logits=torch.from_numpy(logits),
        facts={"labels_are_models": True},
    )  # fmt: skip
    finding = SND034().check(evidence).finding
    return "clear" if finding is None else finding.level


@pytest.mark.slow
@pytest.mark.truth("no label is wrong; one label in twelve is wrong")
def test_rows_between_classes_that_overlap_are_no_wrong_labels() -> None:
    """The answers of the best possible classifier gather its errors in the wrong class."""
    healthy = [level_of(seed, 0.0, apart) for seed in range(8) for apart in (0.7, 1.0)]
    planted = [level_of(seed, 0.08, 1.0) for seed in range(8)]
    assert healthy.count("warning") <= 2  # 8 of 16 by the count of doubtful rows alone
    assert planted.count("warning") >= 5
