"""Trajectories from a file to a verdict and its step."""

import math
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from sonde import load
from sonde.data.shipped import model_directory
from sonde.detect import Mahalanobis, TrajectoryVerifier
from sonde.run.fitting.fit import fit
from sonde.run.fitting.fitted import Fitted
from sonde.run.reading.read import read
from sonde.run.scoring.calibrate import calibrate
from sonde.run.scoring.known_steps import evaluate_steps
from sonde.run.scoring.score import score
from sonde.run.scoring.tables import part_of, read_table, write_table
from sonde_studies.worlds import Calculator, build_trajectories, write_trajectories

QUIET: dict[str, Any] = {"progress": False}
SITE = "model.layers.1"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=1024,
    )
    tokenizer = AutoTokenizer.from_pretrained(model_directory("sonde:stdlib"))
    tokenizer.model_max_length = 1024
    return load(LlamaForCausalLM(config), processor=tokenizer)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trajectories")
    built = build_trajectories(30, worlds=[Calculator(2, 3)]).trajectories
    parts = {"train": built[:44], "test": built[44:], "clean": built[:44:2]}
    for name, part in parts.items():
        write_trajectories(folder / f"{name}.jsonl", part)
    return folder, parts


@pytest.fixture(scope="module")
def fitted(model, files, tmp_path_factory):
    stream = read(model, files[0] / "train.jsonl", sites=SITE)
    assert [str(s.reducer) for s in stream.schema] == ["steps"]
    detectors = [TrajectoryVerifier(), TrajectoryVerifier(head="lda"), Mahalanobis()]
    path = tmp_path_factory.mktemp("fitted") / "verifier.sonde"
    fit(detectors, stream, calibrate=0.0, **QUIET).save(path)
    return Fitted.load(path)


@pytest.mark.slow
@pytest.mark.truth("one minus the product over the hazards of the steps, by hand")
def test_from_a_file_to_a_verdict_and_its_step(model, files, fitted):
    folder, parts = files
    data = folder / "test.jsonl"
    steps = score(fitted, model, data, reduction="rows", **QUIET).to_pylist()
    whole = score(fitted, model, data, **QUIET).to_pylist()
    names = {t.id: t for t in parts["test"]}
    verdicts = [r for r in whole if r["instrument"].startswith("trajectory_verifier")]
    assert len(verdicts) == 2 * len(names)
    for verdict in verdicts:
        mine = [
            r for r in steps
            if (r["id"], r["instrument"]) == (verdict["id"], verdict["instrument"])
        ]  # fmt: skip
        mine.sort(key=lambda r: r["position"])
        assert [r["position"] for r in mine] == [*range(len(names[verdict["id"]].steps))]
        hazards = [r["score"] for r in mine]
        assert verdict["score"] == pytest.approx(1 - math.prod(1 - h for h in hazards))
        first = [h * math.prod(1 - g for g in hazards[:t]) for t, h in enumerate(hazards)]
        assert verdict["position"] == first.index(max(first))


@pytest.mark.slow
@pytest.mark.truth("the highest step of every wrong trajectory, and its alarms, by hand")
def test_a_written_table_of_steps_is_held_against_the_file(model, files, fitted, tmp_path):
    folder, parts = files
    data = folder / "test.jsonl"
    ready = calibrate(fitted, model, folder / "clean.jsonl", reduction="rows", **QUIET)
    write_table(score(ready, model, data, reduction="rows", **QUIET), tmp_path / "s.parquet")
    table = read_table(tmp_path / "s.parquet")
    first = {t.id: t.first_error for t in parts["test"]}
    found = evaluate_steps(table, data, alpha=0.2, resamples=10)
    assert len(found) == 3
    for row in found:
        lines = part_of(table, (row["instrument"], row["site"])).to_pylist()
        mine = {name: [r for r in lines if r["id"] == name] for name in first}
        right = [
            max(steps, key=lambda r: r["score"])["position"] == first[name]
            for name, steps in mine.items()
            if first[name] >= 0
        ]
        assert 0 < row["localised"] == pytest.approx(sum(right) / len(right))
        alarms = {n: [r["position"] for r in steps if r["p"] <= 0.2] for n, steps in mine.items()}
        joint = [min(alarms[name], default=-1) == first[name] for name in first]
        assert row["joint"] == pytest.approx(sum(joint) / len(joint))


@pytest.mark.slow
def test_calibrated_on_right_trajectories_alone(model, files, fitted):
    clean = files[0] / "clean.jsonl"
    ready = calibrate(fitted, model, clean, **QUIET)
    table = score(ready, model, clean, **QUIET).to_pylist()
    verdicts = [r["p"] for r in table if r["instrument"].startswith("trajectory_verifier")]
    assert len(verdicts) == 2 * 22
    assert min(verdicts) == pytest.approx(2 / 23)
