"""The plan of one large job, on a toy net."""

from dataclasses import replace

import pytest

from benchmarks import merging, planning


@pytest.mark.slow
@pytest.mark.truth("seconds and bytes of a straight line")
def test_a_plan_follows_the_slope_and_not_the_fixed_cost(capsys, monkeypatch):
    def estimates(job, n, *shape):
        estimate = real(job, 16, *shape)
        return replace(estimate, n_examples=n, seconds=30.0 + n * 3e-3, disk_bytes=1000 + 640 * n)

    real = planning.estimates
    monkeypatch.setattr(planning, "estimates", estimates)
    monkeypatch.setattr(merging, "MANY", 2)
    options = "--samples 100 300 --sites 2 --width 8 --length 10 --tokens 1000000 --latency 0"
    options += " --tokens-per-second 1000"
    assert planning.main(options.split()) == 0
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    row = next(line for line in lines if line[0] == "read tokens")
    # 300 and 1,000 microseconds of a token: 1,300 s in all; 64 bytes of a token.
    assert row[:6] == ["read tokens", "300", "22 min", "81 s", "1.3 s", "61 MiB"]
    places = [line[1] for line in lines if line[0] == "covariances"]
    assert places == ["folder", "bucket, 0 ms"]
