import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from findings._evidence import digits, evidence_of, shuffled, states
from findings._nets import assert_raised, framed, grey, tensors, texts_of, tokens
from findings._nets import evidence_of as stream_evidence
from sonde.findings.codes.snd042 import SND042
from sonde.findings.evidence.inputs.input_distances import read_input_rows
from sonde.findings.evidence.inputs.near_pairs import near_pairs
from sonde.findings.evidence.inputs.unusual_rows import near_duplicates, rows_section
from sonde.findings.rule import Check


def copied(noise: float, count: int = 40) -> torch.Tensor:
    """Return digits with copies of some, noise in units of a pixel's range."""
    x, _ = digits()
    extra = x[shuffled(len(x), 3)[:count]]
    generator = torch.Generator().manual_seed(0)
    return torch.cat([x, extra + noise * torch.randn(extra.shape, generator=generator)])


@pytest.mark.slow
def test_noisy_copies_are_found_at_both_ends_and_strong_noise_is_not() -> None:
    evidence = evidence_of(states(copied(0.002), trained=True)[0])
    check = SND042().check(evidence)
    finding = assert_raised(check, "warning")
    assert finding.sites == ("blocks.0", "blocks.2")
    table = rows_section(evidence)["near_duplicates"]
    assert 35 <= len(table) <= 50
    assert SND042().check(evidence_of(states(copied(0.1))[0])).state == "clear"


@pytest.mark.slow
@pytest.mark.parametrize("trained", [True, False])
def test_healthy_nets_and_heavy_tails_are_clear(trained: bool) -> None:
    assert SND042().check(evidence_of(states(digits()[0], trained)[0])).state == "clear"
    rng = np.random.default_rng(0)
    assert SND042().check(evidence_of(rng.normal(size=(600, 1)))).state == "not_applicable"
    for dim in (8, 32):
        for x in (rng.normal(size=(600, dim)), rng.standard_t(2, size=(600, dim))):
            assert SND042().check(evidence_of(x)).state == "clear"


def test_rows_of_one_group_and_exact_copies_are_left_to_others() -> None:
    x, group = copied(0.002), [*range(1797), *shuffled(1797, 3)[:40].tolist()]
    together = np.argsort(group, kind="stable")
    x, group = x[together], sorted(group)
    assert SND042().check(evidence_of(x, group=group)).state == "clear"
    assert SND042().check(evidence_of(copied(0.0))).state == "clear"


def test_few_rows_are_withheld_and_a_sample_says_what_it_saw() -> None:
    x, _ = digits()
    assert SND042().check(evidence_of(x[:99])).tables["needed"] == 100
    rng = np.random.default_rng(0)
    check = SND042().check(evidence_of(rng.normal(size=(4096, 8))))
    assert check.reason == "25 % of the pairs were compared (2,048 sampled rows)"


@pytest.mark.slow
@pytest.mark.truth("scikit-learn's neighbours, and the law 1 - (1 - eps^d)^4 by simulation")
@pytest.mark.parametrize("dim", [1, 2])
def test_ratio_and_its_law(dim: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(8000, dim))
    found = near_pairs(torch.from_numpy(x), torch.arange(8000), chance=80.0)
    distance, _ = NearestNeighbors(n_neighbors=6).fit(x).kneighbors(x)
    ratio = distance[:, 1] / distance[:, 5]
    assert len(found) == (ratio < found.eps).sum()
    assert found.dim == pytest.approx(dim, rel=0.04)
    law = 1 - (1 - found.eps**dim) ** 4
    assert (ratio < found.eps).mean() == pytest.approx(law, rel=0.5)
    assert np.allclose(np.sort(ratio)[: len(found)], found.ratio.numpy())


@pytest.mark.slow
def test_images_of_equal_brightness_are_no_copies() -> None:
    x = framed(digits()[0][:600])
    evidence = stream_evidence(grey(x))
    first = evidence.sites[0].sample
    alone = near_pairs(first.rows.double(), first.group)
    assert alone.p < 1e-9
    assert SND042().check(evidence).state == "clear"
    copies = x[shuffled(len(x), 3)[:40]]
    copies = copies + 0.002 * torch.randn(copies.shape, generator=torch.Generator().manual_seed(0))
    assert_raised(SND042().check(stream_evidence(grey(torch.cat([x, copies])))), "warning")


class Halves(nn.Module):
    """A layer for each half of a row, and how far apart they say it is."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 12), nn.Linear(8, 12)

    def forward(self, x: Tensor) -> Tensor:
        return (self.one(x[:, :8]) - self.two(x[:, 8:])).abs()


def test_equal_halves_are_no_copies() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(300, 16, generator=draw)
    x[150:, 8:] = x[:150, 8:]
    torch.manual_seed(0)
    assert SND042().check(stream_evidence(tensors(Halves().eval(), x))).state == "clear"
    x[150:180] = x[:30] + 0.0002 * torch.randn(30, 16, generator=draw)
    assert SND042().check(stream_evidence(tensors(Halves().eval(), x))).state == "raised"


def test_rows_that_differ_in_what_the_first_layer_does_not_see_are_no_copies() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(300, 16, generator=draw)
    x[150:, :8] = x[:150, :8]
    x[150:, 8:] = x[:150, 8:] + 0.25 * torch.randn(150, 8, generator=draw)  # near, yet not copies
    torch.manual_seed(0)
    assert SND042().check(stream_evidence(tensors(Halves().eval(), x))).state == "clear"


class Reads(nn.Module):
    """Two layers that read the first four of ten numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 12), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x[:, :4]).tanh())


def near_rows(x: Tensor) -> Check:
    """Return what the check says of a net that reads four of ten numbers."""
    torch.manual_seed(0)
    stream = tensors(Reads().eval(), x)
    evidence = stream_evidence(stream)
    assert near_duplicates(evidence)[0].p < 1e-6  # at the sites alone
    inputs = read_input_rows(stream, evidence)
    return SND042().check(stream_evidence(stream).having({read_input_rows: inputs}))


@pytest.mark.slow
def test_rows_that_are_near_in_what_a_net_reads_alone_are_no_copies() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(300, 10, generator=draw)
    x[150:180, :4] = x[:30, :4] + 0.001 * torch.randn(30, 4, generator=draw)
    assert near_rows(x).state == "clear"
    x[150:180, 4:] = x[:30, 4:]
    assert len(assert_raised(near_rows(x), "warning").examples) == 60
    x[154:180, :4] = torch.randn(26, 4, generator=draw)  # eight of 300 rows change no score
    assert_raised(near_rows(x), "note")


def test_rows_that_differ_by_rounding_are_all_equal() -> None:
    x = torch.full((200, 16), 3.0) + 2e-7 * torch.randn(200, 16)
    x[:10] = x[10:20]
    assert not len(near_pairs(x.double(), torch.arange(200)))
    assert len(near_pairs(1e4 * (x.double() - 3), torch.arange(200))) == 20


class Ending(nn.Module):
    """A first block that sees almost only the last four tokens, and a second that sees all."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(61, 16)
        self.blocks = nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 16)])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        near = sum((0.5 + k) * x.roll(k, dims=1) for k in range(4))
        mean = x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]
        turned = torch.stack([mean.roll(k, dims=2) * x.roll(k, dims=1) for k in range(14)]).sum(0)
        x = self.blocks[0](near + 1e-3 * turned)
        return self.blocks[1](x + 3 * turned)


@pytest.mark.slow
def test_texts_that_end_in_the_same_tokens_are_no_copies() -> None:
    stream = tokens(Ending().eval(), [14] * 240, reducer="last")
    items = texts_of(stream)
    for i in range(12):
        items[i][10:] = items[i + 12][10:]
    evidence = stream_evidence(stream)
    early = evidence.sites[0].sample
    pairs = near_pairs(early.rows.double(), torch.arange(240))
    assert len(pairs) >= 20
    assert pairs.p < 1e-6
    assert list(near_duplicates(evidence)) == [1]
    assert SND042().check(evidence).state == "clear"
    pooled = tokens(Ending().eval(), [14] * 240, reducer="mean")
    assert list(near_duplicates(stream_evidence(pooled))) == [0, 1]


def test_tokens_that_texts_begin_with_are_no_copies() -> None:
    stream = tokens(Ending().eval(), [14] * 24, reducer="tokens")
    items = texts_of(stream)
    items[12][:] = [*items[0][:9], *items[12][9:]]
    check = SND042().check(stream_evidence(stream))
    assert check.state == "not_applicable"
    assert "the same beginning" in check.reason


class Places(nn.Module):
    """Where a token stands and what it is say almost all; the text before it says little."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.place = nn.Embedding(61, 16), nn.Embedding(64, 16)
        self.blocks = nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 16)])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        n = x.shape[1]
        mean = x.cumsum(1) / torch.arange(1, n + 1)[:, None]
        return self.blocks[1](self.blocks[0](self.place(torch.arange(n)) + 0.02 * mean))


def test_few_texts_of_one_length_and_ending_are_no_copies() -> None:
    lengths = [*(6 + i % 8 for i in range(200)), *(20 + i % 10 for i in range(20))]
    stream = tokens(Places().eval(), lengths, reducer="last")
    for text in texts_of(stream):
        text[-1] = 7
    evidence = stream_evidence(stream)
    rows = evidence.sites[-1].sample.rows.double()
    pairs = near_pairs(rows, torch.arange(220))
    assert (len(pairs), pairs.p < 1e-9) == (20, True)
    check = SND042().check(evidence)
    assert check.state == "withheld"
    assert "20 rows are near a row of equal length" in check.reason
    assert rows_section(evidence)["near_duplicates"] == []


def test_copies_of_another_length_are_still_found() -> None:
    x = torch.randn(220, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:6] = x[100:106] + 1e-5
    row = torch.arange(220)
    pairs = near_pairs(x, row, lengths=(row, row))
    assert set(pairs.row.tolist()) == {*range(6), *range(100, 106)}
    one = torch.full((220,), 9)
    alike = near_pairs(x, row, lengths=(one, one))
    assert (len(alike), alike.n_alike, alike.p) == (0, 12, 1.0)
    assert alike.chance(12) == pairs.p
