"""The matrix of kinds of weights: nothing wrong, and the page holds what the command writes."""

import pytest
import torch
from tools.matrix import weights


@pytest.mark.slow
def test_every_cell_is_right_or_refused_and_the_page_says_so():
    cells = weights.weight_cells()
    assert [c for c in cells if c.verdict == "wrong"] == []
    assert {c.verdict for c in cells if c.architecture == "float32"} == {"right"}
    assert len(cells) == len(weights.KINDS) * 11
    assert not torch.distributed.is_initialized()
    written = weights.PAGE.read_text("utf-8").splitlines()
    page = weights.weights_page(cells).splitlines()
    assert [line for line in page if line not in written and " cells: " not in line] == []
    assert {name for name in weights.KINDS if f"| {name} |" not in "\n".join(written)} == set()


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_a_refusal_names_the_tensor_and_its_kind():
    for kind, job, said in (
        ("subclass with dequantize", "fold", "fold_edit at 2: .* got weight as Int8"),
        ("sparse CSR", "compress", "got 2.weight as sparse_csr"),
        ("lazy, never run", "insert", "inserted: .* got 2.weight of a lazy layer"),
        ("meta", "dequantise", "dequantised: .* got 2.weight on the device 'meta'"),
    ):
        with pytest.raises(Exception, match=said):
            weights.JOBS[job](weights.KINDS[kind]())


def test_a_job_that_gives_other_numbers_is_called_wrong(monkeypatch):
    plain = weights.states
    monkeypatch.setattr(weights, "states", lambda *a, **k: 1.1 * plain(*a, **k))
    assert weights.tried("float32", "read").verdict == "wrong"
    assert weights.tried("float32", "edit").verdict == "right"
    assert torch.equal(weights.answers(weights.plain_net()), weights.answers(weights.plain_net()))
