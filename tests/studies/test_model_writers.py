"""Writers that stop at a held-out loss, and texts of a net that knows what comes next."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sonde_studies import _model_writers
from sonde_studies._model_writers import GIVEN, HELD, LENGTH, Sources, texts_of, trained


def test_beginnings_and_held_out_pieces_are_of_files_that_no_model_learns_from():
    sources = Sources.of(5, np.random.default_rng(0))
    assert sources.begun.shape == (5, GIVEN)
    assert sources.held.shape == (HELD, LENGTH)
    learned = b"\n".join(sources.files)
    seen = [bytes(piece.tolist()) in learned for piece in sources.held]
    assert sum(seen) <= 1  # a licence may stand in both


@pytest.mark.truth("the loss of the returned model, and texts of one letter")
def test_a_model_is_trained_until_it_reaches_the_loss(monkeypatch):
    files = [b"abababab" * 20_000]
    held = torch.tensor([list(b"ab" * 20)])
    monkeypatch.setattr(_model_writers, "LOSS", 0.5)
    net, loss = trained("convolution", Sources(files, held[:, :8], held), 1, most=150)
    with torch.no_grad():
        logits = net(held)[0][:, :-1].flatten(0, 1)
    wanted = cross_entropy(logits, held[:, 1:].flatten())
    assert loss == pytest.approx(float(wanted), rel=1e-4)
    _, other = trained("convolution", Sources(files, held[:, :8], held), 1, most=3)
    assert loss <= 0.5 < other


class _Next(nn.Module):
    """The byte after the sum of all before is certain, counted from the last one."""

    def forward(self, ids, past=None):
        total = ids.cumsum(1) + (past or 0)
        return torch.where(torch.arange(256) == (total % 7 + 97)[..., None], 0.0, -1e4), int(
            total[0, -1]
        )


@pytest.mark.truth("sums by hand")
def test_a_text_goes_on_after_its_beginning():
    begun = torch.tensor([[97, 98]])
    total, wanted = 195, []
    for _ in range(5):
        wanted.append(total % 7 + 97)
        total += wanted[-1]
    found = texts_of(_Next(), "sum", begun, 5, 2)
    assert found == [{"text": bytes(wanted).decode(), "author": "sum", "file": "0"}]
