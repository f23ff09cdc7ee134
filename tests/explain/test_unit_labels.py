"""Labels of units against brute force over all rows."""

import pytest
import torch

from sonde.core import InputError
from sonde.explain import UnitLabels

GENERATOR = torch.Generator().manual_seed(1)


def planted() -> tuple[torch.Tensor, torch.Tensor]:
    """Return units, of which 0 and 2 follow concepts 0 and 1, and the concept of each row."""
    concept = torch.randint(-1, 40, (4000,), generator=GENERATOR).clamp(max=2)
    x = torch.rand(4000, 4, generator=GENERATOR)
    x[:, 0] += 3.0 * (concept == 0)
    x[:, 2] += 2.0 * (concept == 1)
    return x, concept


@pytest.mark.truth("brute force over the rows above each threshold")
def test_labels_of_planted_units():
    x, concept = planted()
    found = UnitLabels(quantile=0.02, least=0.3).fit(x, label=concept)
    assert found.label.tolist() == [0, -1, 1, -1]
    assert found.labelled == 0.5
    high = x.double() > found.threshold
    assert bool((high.double().mean(0) <= 0.02 + 1e-9).all())
    for k in range(3):
        member = (concept == k)[:, None]
        overlap = (high & member).sum(0) / (high | member).sum(0)
        torch.testing.assert_close(found.overlap[k], overlap.double())
    share = (concept == 0).double().mean() * high[:, 0].double().mean()
    both = (concept == 0).double().mean() + high[:, 0].double().mean() - share
    assert float(torch.as_tensor(found.null)[0]) == pytest.approx(float(share / both))
    assert float(found.best_f1[0, 0]) == 1.0
    assert float(found.average_precision[0, 0]) == 1.0


@pytest.mark.truth("average precision by scikit-learn")
def test_average_precision_and_concepts_that_overlap():
    from sklearn.metrics import average_precision_score

    x, concept = planted()
    x = (x * 16).ceil() / 16  # on the edges of bins, so that they lose nothing
    bits = (concept == 0).long() + 2 * (concept >= 0).long()
    found = UnitLabels(concepts="first_error").fit(x, first_error=bits)
    for k in range(2):
        member = (bits >> k) & 1 == 1
        want = average_precision_score(member.numpy(), x[:, 1].numpy())
        assert float(found.average_precision[k, 1]) == pytest.approx(want, abs=1e-6)


@pytest.mark.truth("brute force over all thresholds, by scikit-learn")
def test_classes_are_compared_above_the_threshold_that_suits_them_best():
    from sklearn.metrics import precision_recall_curve

    x, concept = planted()
    x = ((x + 0.4 * torch.randn(x.shape, generator=GENERATOR)) * 8).ceil() / 8
    found = UnitLabels(quantile=None, least=0.5).fit(x, label=concept)
    for k, unit in ((0, 0), (1, 2), (2, 1)):
        known = (concept == k).numpy()
        precision, recall, _ = precision_recall_curve(known, x[:, unit].numpy())
        f1 = 2 * precision * recall / (precision + recall).clip(1e-9)
        assert float(found.overlap[k, unit]) == pytest.approx(float((f1 / (2 - f1)).max()))
    for unit in range(4):  # the threshold is the one at which the unit has that overlap
        high, known = x[:, unit] > found.threshold[unit], concept == found.concept[unit]
        overlap = float((high & known).sum() / (high | known).sum())
        assert float(torch.as_tensor(found.value)[unit]) == pytest.approx(overlap)
    # concept 2 has nine rows in ten: a unit that is always high overlaps with it as much
    assert found.label.tolist()[::2] == [0, 1]
    assert found.label.tolist()[1::2] == [-1, -1]


def test_rows_without_concepts_and_constant_units():
    x, concept = planted()
    with pytest.raises(InputError, match="expected rows of concepts, got none in the column"):
        UnitLabels().fit(x, label=torch.full((4000,), -1))
    x[:, 0] = 1.0
    found = UnitLabels(least=0.0).fit(x, label=concept)
    assert found.label[0] == -1
    assert found.flags == ("dead",)


def test_a_concept_of_nine_rows_names_no_unit_and_is_flagged():
    labels = []
    for n in (9, 10):
        concept = (torch.arange(4000) < n).long()
        unit = concept * 2.0 + torch.linspace(0, 1, 4000)
        found = UnitLabels(quantile=n / 4000).fit(unit[:, None], label=concept)
        labels.append((int(found.label[0]), found.flags))
    assert labels == [(-1, ("few_rows",)), (1, ())]
