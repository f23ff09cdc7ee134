"""States that are written from symbols, and the alignment of symbols with frames."""

from itertools import combinations, pairwise

import pytest
import torch
from torch import nn

from sonde.core.errors import InputError, ShapeError
from sonde.train import StateWriter, monotonic_durations


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.truth("all alignments, one after another")
def test_the_cheapest_alignment_is_found():
    cost, tokens, frames = drawn(6, 4, 7), [4, 3, 1, 4, 2, 4], [7, 6, 5, 4, 7, 6]
    found = monotonic_durations(cost, torch.tensor(tokens), torch.tensor(frames))
    for row, (n, time) in enumerate(zip(tokens, frames, strict=True)):

        def price(cuts, row=row, time=time):
            ends = [0, *cuts, time]
            parts = pairwise(ends)
            return sum(float(cost[row, i, a:b].sum()) for i, (a, b) in enumerate(parts))

        best = min(combinations(range(1, time), n - 1), key=price)
        ends = [0, *best, time]
        wanted = [b - a for a, b in pairwise(ends)]
        assert found[row].tolist() == wanted + [0] * (4 - n)


@pytest.mark.truth("states of symbols that were planted, with their durations")
def test_planted_states_and_durations_are_learned_without_an_alignment():
    draw = torch.Generator().manual_seed(1)
    means, lasts = 2 * torch.randn(5, 3, generator=draw), torch.tensor([1, 2, 3, 4, 2])
    symbols = torch.randint(5, (60, 6), generator=draw)
    symbols[::3, 4:] = -1
    rows = [
        torch.cat([means[s].expand(int(lasts[s]), -1) for s in row if s >= 0]) for row in symbols
    ]
    states = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    real = torch.arange(states.shape[1]) < torch.tensor([len(r) for r in rows])[:, None]
    states = states + 0.1 * torch.randn(states.shape, generator=draw)
    torch.manual_seed(0)
    writer = StateWriter(5, 3, hidden=24)
    adam = torch.optim.Adam(writer.parameters(), lr=1e-2)
    for _ in range(150):
        adam.zero_grad()
        writer(symbols, states, real).backward()
        adam.step()
    new = torch.tensor([[3, 0, 1, 2, 4, 3]])
    written, kept = writer.write(new)
    wanted = torch.cat([means[s].expand(int(lasts[s]), -1) for s in new[0]])
    assert written.shape[1] == len(wanted) == int(kept.sum())
    assert float((written[0] - wanted).square().mean()) < 0.1


@torch.no_grad()
def test_padding_changes_nothing_and_states_have_no_gradient():
    torch.manual_seed(0)
    writer, symbols = StateWriter(4, 3), torch.tensor([[1, 0, 3], [2, 1, -1]])
    longer = torch.cat([symbols, torch.full((2, 2), -1)], 1)
    states, real = writer.write(symbols, torch.tensor([[1, 2, 1], [3, 1, 9]]))
    assert real.sum(1).tolist() == [4, 4]
    assert torch.equal(states[0, 1], states[0, 2])
    again, _ = writer.write(longer, torch.tensor([[1, 2, 1, 5, 5], [3, 1, 9, 9, 9]]))
    torch.testing.assert_close(again, states)
    target, junk = drawn(2, 6, 3), drawn(2, 2, 3, seed=1)
    seen = torch.arange(8) < 6
    plain = writer(symbols, target)
    torch.testing.assert_close(
        writer(longer, torch.cat([target, junk], 1), seen.expand(2, -1)), plain
    )
    with torch.enable_grad():
        given = target.clone().requires_grad_()
        writer(symbols, given).backward()
    assert given.grad is None


def test_too_few_frames_are_refused():
    with pytest.raises(ShapeError, match="3 symbols and 2 frames in row 0"):
        monotonic_durations(drawn(1, 3, 2))
    with pytest.raises(InputError, match="sizes of at least 1"):
        StateWriter(0, 3)


def test_padding_before_the_symbols_is_refused():
    writer, states = StateWriter(5, 3), drawn(2, 6, 3)
    with pytest.raises(InputError, match="padding behind the last of a row's symbols"):
        writer(torch.tensor([[-1, 0, 4], [1, 1, 3]]), states)
    real = torch.tensor([[False] + [True] * 5, [True] * 6])
    with pytest.raises(InputError, match="padding behind the last of a row's frames"):
        writer(torch.tensor([[0, 4, 2], [1, 1, 3]]), states, real)


def test_unknown_symbols_are_refused():
    with pytest.raises(InputError, match="symbols from 0 to 4, or -1 for padding, got 0 to 7"):
        StateWriter(5, 3).write(torch.tensor([[0, 7]]))
