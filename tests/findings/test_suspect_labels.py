import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer

from findings._evidence import evidence_of
from findings._nets import assert_clear, assert_raised
from sonde.findings.codes.snd034 import SND034
from sonde.findings.evidence.answers.labels import label_evidence
from sonde.findings.evidence.inputs.suspect_labels import (
    doubts_of,
    one_way,
    suspect_labels,
    suspects_section,
)
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import examples_at


def _evidence(x: np.ndarray, label: np.ndarray) -> Evidence:
    z = (x - x.mean(0)) / x.std(0)
    ids = [f"row {i}" for i in range(len(label))]
    return evidence_of(torch.tensor(z).float(), label=torch.tensor(label), ids=ids)


def _cancer() -> tuple[np.ndarray, np.ndarray]:
    found = load_breast_cancer(return_X_y=True)
    return np.asarray(found[0]), np.asarray(found[1])


def _examples(evidence: Evidence, rows: torch.Tensor) -> list[int]:
    return examples_at(evidence, label_evidence(evidence).where[rows].tolist())


@pytest.mark.truth("the rows of breast_cancer whose labels were changed")
def test_labels_that_are_wrong_in_one_direction_are_found_and_the_truth_is_clear() -> None:
    x, truth = _cancer()
    assert one_way(_evidence(x, truth)) is None
    assert_clear(SND034().check(_evidence(x, truth)))
    label, draw = truth.copy(), np.random.default_rng(0)
    wrong = (truth == 1) & (draw.random(len(truth)) < 0.35)
    label[wrong] = 0
    evidence = _evidence(x, label)
    finding = assert_raised(SND034().check(evidence), "warning")
    assert finding.figure.value == pytest.approx(wrong.sum() / (truth == 1).sum(), abs=0.06)
    assert finding.classes == ("1", "0")
    assert np.mean(wrong[list(finding.examples)]) > 0.9
    assert len(finding.examples) > 0.7 * wrong.sum()
    first = suspect_labels(evidence).row[:20].tolist()
    assert np.mean(wrong[_examples(evidence, torch.tensor(first))]) > 0.9
    both = truth.copy()
    flipped = draw.random(len(truth)) < 0.2
    both[flipped] = 1 - both[flipped]
    assert one_way(_evidence(x, both)) is None


@pytest.mark.truth("the rows whose labels were changed, among five classes that overlap")
def test_rows_between_two_classes_do_not_hide_labels_that_are_wrong_in_one_direction() -> None:
    draw = np.random.default_rng(3)
    label, centre = draw.integers(0, 5, 450), draw.normal(size=(5, 8))
    x = centre[label] + draw.normal(size=(450, 8))
    assert one_way(_evidence(x, label)) is None
    wrong = (label == 3) & (draw.random(450) < 0.35)
    found = one_way(_evidence(x, np.where(wrong, 1, label)))
    assert found is not None
    assert (found.of, found.called) == (3, 1)


@pytest.mark.truth("the rows whose labels were changed, among three classes of four clumps")
def test_a_model_that_is_better_than_the_probe_shows_labels_wrong_in_one_direction() -> None:
    draw = np.random.default_rng(4)
    centre, label = 1.5 * draw.normal(size=(3, 4, 8)), draw.integers(0, 3, 500)
    x = centre[label, draw.integers(0, 4, 500)] + draw.normal(size=(500, 8))
    gaps = ((x[:, None, None] - centre) ** 2).sum(-1)
    logits = torch.from_numpy(-gaps / 2).logsumexp(2)  # the true posterior
    wrong = (label == 2) & (draw.random(500) < 0.3)
    given, facts = torch.from_numpy(np.where(wrong, 0, label)), {"labels_are_models": True}

    def found(shown: torch.Tensor, said: torch.Tensor) -> Evidence:
        return evidence_of(torch.from_numpy(x), label=shown, logits=said, facts=facts)

    evidence = found(given, logits)
    way = one_way(evidence)
    assert way is not None
    assert (way.of, way.called) == (2, 0)
    assert np.mean(wrong[_examples(evidence, way.rows)]) > 0.85
    truth = torch.from_numpy(label)
    assert one_way(evidence_of(torch.from_numpy(x), label=given)) is None  # the probe alone
    assert one_way(found(truth, logits)) is None
    biased = logits + torch.tensor([0.0, 0.0, 6.0])  # a fault of the model, not of the labels
    assert one_way(found(truth, biased)) is None


@pytest.mark.truth("the rows of breast_cancer whose labels were changed")
def test_the_planted_check_tells_how_many_wrong_labels_the_list_shows() -> None:
    x, truth = _cancer()
    label, draw = truth.copy(), np.random.default_rng(1)
    wrong = np.zeros(len(truth), dtype=bool)
    wrong[draw.choice(len(truth), 12, replace=False)] = True
    label[wrong] = 1 - label[wrong]
    evidence = _evidence(x, label)
    found = suspect_labels(evidence)
    first = wrong[_examples(evidence, found.row[:12])]
    assert first.mean() >= 0.7
    assert found.planted == 20
    assert found.found / found.planted == pytest.approx(first.mean(), abs=0.25)
    doubt = doubts_of(evidence)
    assert max(doubt.values()) == pytest.approx(float(found.doubts.doubt.max()))
    assert set(doubt) == set(range(len(truth)))
    section = suspects_section(evidence)
    assert section is not None
    assert [row["id"] for row in section["rows"][:12]] == [
        f"row {i}" for i in _examples(evidence, found.row[:12])
    ]
    shares = [row["share"] for row in section["rows"]]
    assert shares == sorted(shares, reverse=True)
    assert all(0 < share <= 1 for share in shares)


@pytest.mark.slow
@pytest.mark.truth("the rows whose labels were changed, among four classes of eight clumps")
def test_the_models_own_answers_raise_the_wrong_labels_in_the_list() -> None:
    alone, both = [], []
    for seed in range(3):
        draw = np.random.default_rng(seed)
        centre, label = 1.3 * draw.normal(size=(4, 8, 8)), draw.integers(0, 4, 500)
        x = centre[label, draw.integers(0, 8, 500)] + 0.9 * draw.normal(size=(500, 8))
        gaps = ((x[:, None, None] - centre) ** 2).sum(-1)
        logits = torch.from_numpy(-gaps / (2 * 0.9**2)).logsumexp(2)  # the true posterior
        wrong = np.zeros(500, dtype=bool)
        wrong[draw.choice(500, 25, replace=False)] = True
        given = np.where(wrong, (label + draw.integers(1, 4, 500)) % 4, label)
        facts = {"labels_are_models": True}

        learned = 9.0 * torch.nn.functional.one_hot(torch.from_numpy(given)).double()
        shown = {"label": torch.from_numpy(given)}
        every = [evidence_of(torch.from_numpy(x), **shown)]
        every += [evidence_of(torch.from_numpy(x), logits=said, facts=facts, **shown)
                  for said in (logits, learned)]  # fmt: skip
        lists = [suspect_labels(evidence) for evidence in every]
        hits = [wrong[_examples(e, f.row[:25])].sum() for e, f in zip(every, lists, strict=True)]
        alone.append(hits[0])
        both.append(hits[1])
        # labels that a model knows by heart are no check
        assert [f.planted for f in lists] == [20, 20, 0]
    assert sum(both) >= 1.2 * sum(alone)


def test_without_two_classes_there_is_no_list() -> None:
    x = np.random.default_rng(0).normal(size=(90, 3))
    assert suspects_section(_evidence(x, np.zeros(90, dtype=int))) is None
    assert doubts_of(_evidence(x, np.zeros(90, dtype=int))) == {}


@pytest.mark.slow
def test_at_most_one_healthy_set_in_sixty_has_labels_wrong_in_one_direction() -> None:
    """Classes of one clump or three, of unequal size and spread, that overlap."""
    raised = 0
    for seed in range(60):
        draw = np.random.default_rng(seed)
        k, dim, n = draw.integers(2, 6), draw.integers(4, 20), draw.integers(200, 600)
        label = draw.choice(k, n, p=draw.dirichlet(3 * np.ones(k)))
        centre = draw.normal(size=(k, 3, dim)) * draw.uniform(0.3, 1.5)
        clump = draw.integers(0, 3, n) if seed % 2 else np.zeros(n, dtype=int)
        spread = draw.uniform(0.5, 1.6, k)[label][:, None]
        evidence = _evidence(centre[label, clump] + draw.normal(size=(n, dim)) * spread, label)
        if min(np.bincount(label, minlength=k)) >= 30:
            raised += one_way(evidence) is not None
    assert raised <= 1
