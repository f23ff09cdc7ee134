"""A record reaches the real TensorBoard, Weights & Biases (offline) and MLflow (files)."""

import math
import os
import subprocess
import sys

import pytest
import torch

import sonde
from sonde.core.errors import InputError
from sonde.measure import ParticipationRatio
from sonde.run.training.callback import Recorder
from sonde.run.training.loggers import log_track


@pytest.fixture
def track(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3))
    probe = [{"x": row} for row in torch.randn(40, 5, generator=torch.Generator().manual_seed(1))]
    recorder = Recorder(ParticipationRatio(), probe, tmp_path / "run.track", sites=["0", "1"])
    for step in (0, 30):
        recorder.record(net, step)
        with torch.no_grad():
            net[0].weight[0] *= 9
    return sonde.Track(tmp_path / "run.track")


def wanted(track):
    return {
        (row["step"], f"sonde/{row['method']}/{row['site']}"): row["value"]
        for row in track.table().to_pylist()
        if math.isfinite(row["value"])
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.truth("the event file, read by TensorBoard")
def test_tensorboard_reads_the_figures(track, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert log_track(track, f"tensorboard:{tmp_path / 'events'}") == 2
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    found = {
        (e.step, tag): e.value for tag in events.Tags()["scalars"] for e in events.Scalars(tag)
    }
    assert found == pytest.approx(wanted(track), rel=1e-5)
    assert len(found) == 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.truth("the metrics that MLflow stored")
def test_mlflow_stores_the_figures(track, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    log_track(track, "mlflow:states")
    (run,) = mlflow.search_runs(experiment_names=["states"], output_format="list")
    client = mlflow.MlflowClient()
    found = {
        (m.step, name): m.value
        for name in run.data.metrics
        for m in client.get_metric_history(run.info.run_id, name)
    }
    assert found == pytest.approx(wanted(track))


@pytest.mark.slow
def test_wandb_takes_the_figures_offline(track, tmp_path):
    pytest.importorskip("wandb")
    opened = f"sonde.Track({str(track.directory)!r})"
    code = "import sonde\nfrom sonde.run.training.loggers import log_track\n"
    code += f"print(log_track({opened}, 'wandb:states'))"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "WANDB_MODE": "offline", "PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "2" in ran.stdout.split()
    (stored,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"sonde/participation_ratio/0:out" in stored.read_bytes()


def test_an_unknown_logger_and_a_missing_package_are_refused(tmp_path, monkeypatch):
    empty = sonde.Track(tmp_path / "none.track")
    for word in ("tensorboard", "comet:x", "wandb:"):
        with pytest.raises(InputError, match="expected tensorboard:FOLDER"):
            log_track(empty, word)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match="Run: pip install wandb"):
        log_track(empty, "wandb:states")
