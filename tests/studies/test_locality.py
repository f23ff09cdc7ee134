"""Arms of ``locality`` that are compared have as many parameters as each other."""

import pytest

from sonde_studies import locality

DIM, SIDE = locality.DIM, locality.SIDE


def size(kind):
    return sum(p.numel() for m in locality._mixers(kind) for p in m.parameters())


@pytest.mark.truth("counts by hand")
def test_rivals_are_as_large():
    def slow(width, maps):
        return 3 * width + maps * (DIM * width + DIM)

    wide = {kind: w for kind, (w, _) in locality.KERNELS.items()}
    grid = slow(wide["grid"], 1) + DIM * DIM + 2 * DIM
    context = (DIM + 1) * wide["near"]
    near = slow(wide["near"], 1) + context + DIM * DIM + 2 * DIM
    block = slow(wide["block"], 2) + (DIM + 1) * wide["block"] + 3 * DIM * DIM + 2 * DIM
    assert {k: size(k) for k in wide} == {"grid": 2 * grid, "near": 2 * near, "block": 2 * block}
    assert size("slow error") == size("block")
    assert max(grid, near, block) < 1.02 * min(grid, near, block)
    places = size("dilated")
    waves, plain = size("waves") - places, size("plain waves") - places
    assert waves < plain < 1.05 * waves
    assert size("no skips") == size("skips") == locality.DEEP * block
    hidden = locality.PLAIN
    plain = 9 * hidden * (DIM + hidden + DIM) + 2 * hidden + DIM
    assert size("plain net") == plain
    assert plain == pytest.approx(size("skips"), rel=0.01)
