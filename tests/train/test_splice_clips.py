"""Events in clips: each clip against a loop, and the durations against their uniform law."""

import pytest
import torch

from sonde.core import InputError
from sonde.train import splice_clips


@pytest.mark.truth("a loop over clips and frames, and the mean and spread of a uniform law")
def test_events_are_whole_and_last_for_uniform_times():
    n, frames = 2_000, 40
    ground = torch.arange(frames).repeat(n, 1).float() + 100
    event = torch.arange(7).repeat(n, 1).float() + torch.arange(n)[:, None] / n / 2
    draw = torch.Generator().manual_seed(0)
    clips, where = splice_clips(ground, event, (0.2, 0.8), draw)
    for clip, inside, own in zip(clips[:50], where[:50], event[:50], strict=True):
        at = inside.nonzero().flatten().tolist()
        assert at == list(range(at[0], at[-1] + 1))
        assert torch.equal(clip[~inside], ground[0][~inside])
        wanted = [own[int((i + 0.5) * 7 / len(at))] for i in range(len(at))]
        assert torch.equal(clip[inside], torch.stack(wanted))
    length = where.sum(1).double() / frames
    assert float(length.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(length.std()) == pytest.approx(0.6 / 12**0.5, rel=0.05)
    inner = where[:, [0, frames // 2, -1]].double().mean(0)
    assert float(inner[0]) == pytest.approx(float(inner[2]), abs=0.03)
    assert float(inner[1]) > 2 * float(inner[0])


def test_a_clip_may_become_the_event_and_wrong_fractions_are_said():
    whole, where = splice_clips(torch.zeros(3, 5, 2), torch.ones(3, 5, 2), (1.0, 1.0))
    assert bool(where.all())
    assert torch.equal(whole, torch.ones(3, 5, 2))
    for fraction, rows in (((0.0, 0.5), 3), ((0.6, 0.5), 3), ((0.5, 1.2), 3), ((0.1, 0.9), 2)):
        with pytest.raises(InputError, match="0 < low <= high <= 1 and as many events"):
            splice_clips(torch.zeros(3, 5, 2), torch.ones(rows, 5, 2), fraction)
