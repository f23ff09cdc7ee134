"""Logits are found by their form in what a model returns, or by the name that the user gives."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import sonde
from sonde.core.errors import InputError
from sonde.core.perturbation import Perturbation
from sonde.detect import MSP, ODIN, Energy
from sonde.run.fitting.fit import fit
from sonde.run.reading.notes import notes_of
from sonde.run.reading.read import read
from sonde.run.scoring.opening import open_for
from sonde.run.scoring.score import score

QUIET: dict[str, Any] = {"progress": False}
X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))


class Pair(NamedTuple):
    features: torch.Tensor
    out: torch.Tensor


class Net(nn.Module):
    def __init__(self, form):
        super().__init__()
        torch.manual_seed(1)
        self.form, self.body, self.fc, self.aux = (
            form,
            nn.Linear(6, 8),
            nn.Linear(8, 3),
            nn.Linear(8, 3),
        )

    def forward(self, x):
        h = self.body(x).relu()
        return self.form(self.fc(h), self.aux(h), h)


FORMS = {
    "named": (lambda y, aux, h: {"logits": y}, None, 1),
    "first of two": (lambda y, aux, h: (y, aux), "0", 1),
    "beside features": (lambda y, aux, h: Pair(h, y), "1", 1),
    "under another name": (lambda y, aux, h: {"h": h, "classes": [y]}, "classes_0", 1),
    "scaled": (lambda y, aux, h: 10 * y, "0", 10),
}


@pytest.mark.truth("MSP of what the final layer returns")
@pytest.mark.parametrize("form", FORMS)
def test_logits_are_found_by_their_form(form, tmp_path):
    make, said, factor = FORMS[form]
    net = Net(make).eval()
    with torch.no_grad():
        want = -(factor * net.fc(net.body(X).relu())).softmax(1).amax(1)
    still = Perturbation(temperature=1.0, eps=0.0)
    stream = read(net, X, sites="body", perturb=still)
    fitted = fit([MSP(), ODIN(temperature=1.0, eps=0.0)], stream, **QUIET)
    fitted.save(tmp_path / "p.sonde")
    loaded = sonde.Fitted.load(tmp_path / "p.sonde")
    for method in ("msp", "odin"):
        found = score(loaded, net, X, **QUIET).to_pandas()
        mine = found[found.instrument.str.startswith(method)].sort_values("row")
        assert np.allclose(mine.score, want.numpy(), atol=1e-6)
    opened = open_for(loaded, net, X)
    next(iter(opened))
    notes = " ".join(notes_of(opened))
    assert (f"output {said!r} (3 numbers" in notes) == (said is not None), notes
    guard = sonde.Guard(net, loaded, alpha=0.3, methods=["msp"])
    with guard, torch.no_grad():
        net(X[:5])
    assert np.allclose(next(iter(guard.scores.values())).numpy(), want[:5].numpy(), atol=1e-6)


@pytest.mark.truth("Energy of the output that is named")
def test_an_output_is_named_where_it_cannot_be_found():
    net = Net(lambda y, aux, h: (2 * y, aux * 3)).eval()
    with pytest.raises(InputError, match=r"one output.*0 \(2, 3\), 1 \(2, 3\)\. Name.*--logits"):
        fit(Energy(), read(net, X, sites="body"), **QUIET)
    with pytest.raises(InputError, match=r"no output '2', only 0 \(2, 3\), 1 \(2, 3\)"):
        fit(Energy(), read(net, X, sites="body", logits="2"), **QUIET)
    fitted = fit(Energy(), read(net, X, sites="body", logits="1"), **QUIET)
    with torch.no_grad():
        want = -torch.logsumexp(3 * net.aux(net.body(X).relu()), 1)
    found = score(fitted, net, X, **QUIET).to_pandas().sort_values("row")
    assert np.allclose(found.score, want.numpy(), atol=1e-5)


def test_probabilities_are_no_logits():
    net = Net(lambda y, aux, h: y.softmax(1)).eval()
    with pytest.raises(InputError, match=r"before the softmax.*got probabilities"):
        fit(MSP(), read(net, X, sites="body"), **QUIET)


@pytest.mark.parametrize(("n_classes", "said"), [(5, "output '0' (6 numbers)"), (6, "")])
def test_an_output_that_could_be_an_embedding_is_told_with_its_option(n_classes, said):
    net = Net(lambda y, aux, h: torch.cat([y, aux], 1) / 2).eval()
    items = [{"x": row, "label": i % n_classes} for i, row in enumerate(X)]
    stream = read(net, items, sites="body")
    next(iter(stream))
    notes = " ".join(notes_of(stream))
    assert said in notes
    assert ("--logits 0." in notes) == bool(said)
