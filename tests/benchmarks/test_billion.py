"""The jobs of the benchmark of a billion weights, on a toy model."""

import pytest

from benchmarks import billion


@pytest.mark.slow
@pytest.mark.truth("the files that the jobs write")
def test_every_job_runs_on_a_toy_model(tmp_path, monkeypatch):
    monkeypatch.setattr(billion, "VOCABULARY", 300)
    size = billion.build(str(tmp_path), [3, 128, 192])
    assert size["weight_mib"] == 2 * size["weights"] / 2**20
    figures = {job: billion.measured(str(tmp_path), job) for job in billion.JOBS}
    assert all(one["seconds"] > 0 and one["cpu"] > 0 for one in figures.values())
    assert {"model", "acts", "rtn", "gptq"} <= {p.name for p in tmp_path.iterdir() if p.is_dir()}
