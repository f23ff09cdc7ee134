"""Records over the steps of a training: curves, resuming, and a training that stays as it was."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from narrow import present
from sonde.core import InputError, StateError, StoreError
from sonde.measure import Covariance, ParticipationRatio
from sonde.run.reading.read import read
from sonde.run.training.callback import Recorder, TrackCallback
from sonde.run.training.track import Track
from sonde.tap import fingerprint
from tap_snapshot import assert_unchanged, snapshot


class Rows(torch.utils.data.Dataset):
    """Random token lists as their own targets."""

    def __init__(self, n: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(1, 40, (n, 8), generator=generator)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[i], "labels": self.ids[i]}


def tokens(n: int, seed: int) -> list[dict[str, list[int]]]:
    return [{"input_ids": row.tolist()} for row in Rows(n, seed).ids]


def network() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=16, n_layer=2, n_head=2, n_positions=16, vocab_size=40,
        bos_token_id=0, eos_token_id=0, resid_pdrop=0.2,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def trainer(folder, callbacks, steps=6, **options) -> Trainer:
    arguments = TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=4, report_to="none", seed=3,
        use_cpu=True, disable_tqdm=True, logging_strategy="no",
        **{"save_strategy": "no", **options},
    )  # fmt: skip
    return Trainer(network(), arguments, train_dataset=Rows(32, 1), callbacks=callbacks)


PROBE = tokens(12, 2)


def callback(place, **options) -> TrackCallback:
    chosen = [ParticipationRatio(), Covariance()]
    return TrackCallback(chosen, PROBE, place, every=2, reducer="last", **options)


@pytest.mark.slow
@pytest.mark.truth("the same training without the callback, bit for bit")
def test_training_is_left_as_it_would_be_without(tmp_path):
    found = {}
    for name in ("without", "with"):
        callbacks = [callback(tmp_path / "run.track")] if name == "with" else []
        run = trainer(tmp_path / name, callbacks)
        run.train()
        numbers = np.random.mtrand.random_sample(3)  # what comes next from the global state
        found[name] = present(run.model).state_dict(), torch.get_rng_state(), numbers
    plain, tracked = found["without"], found["with"]
    for key, value in plain[0].items():
        assert torch.equal(value, tracked[0][key]), key
    assert torch.equal(plain[1], tracked[1])
    assert (plain[2] == tracked[2]).all()
    assert Track(tmp_path / "run.track").steps == (0, 2, 4, 6)


@pytest.mark.slow
@pytest.mark.truth("the checkpoint of the last step")
def test_the_last_record_is_of_the_last_step_where_the_best_is_loaded(tmp_path):
    how = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    how |= {"load_best_model_at_end": True, "greater_is_better": True, "learning_rate": 0.3}
    arguments = TrainingArguments(
        str(tmp_path / "out"), max_steps=3, per_device_train_batch_size=4, report_to="none",
        use_cpu=True, disable_tqdm=True, metric_for_best_model="eval_rank", **how,
    )  # fmt: skip
    tracked = callback(tmp_path / "t")
    run = Trainer(
        network(), arguments, train_dataset=Rows(32, 1), eval_dataset=Rows(4, 7),
        callbacks=[tracked], compute_metrics=lambda _: {"rank": -run.state.global_step},
    )  # fmt: skip
    run.train()
    assert present(run.state.best_model_checkpoint).endswith("checkpoint-1")
    assert tracked.track.steps == (0, 2, 3)
    last = GPT2LMHeadModel.from_pretrained(tmp_path / "out" / "checkpoint-3")
    found = dict(tracked.track)[3].header["model"]["model"]
    assert found == fingerprint(last)
    assert found != fingerprint(present(run.model))


def test_a_record_leaves_mode_gradients_and_random_state(tmp_path):
    model = network().train()
    model.transformer.h[0].eval()
    ids = Rows(4, 5).ids
    model(input_ids=ids, labels=ids).loss.backward()
    grads = {n: present(p.grad).clone() for n, p in model.named_parameters()}
    before, state = snapshot(model), torch.get_rng_state()
    Recorder(Covariance(), PROBE, tmp_path / "t", reducer="last").record(model, 7)
    assert_unchanged(before, model)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert not model.transformer.h[0].training
    for name, parameter in model.named_parameters():
        assert torch.equal(present(parameter.grad), grads[name])


@pytest.mark.parametrize(("asked", "most"), [({}, 16), ({"batch_size": 5}, 5)])
def test_no_more_rows_run_at_once_than_a_training_has_room_for(tmp_path, asked, most):
    model, sizes = network(), []
    handle = model.register_forward_pre_hook(
        lambda m, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    recorder = Recorder(Covariance(), PROBE * 4, tmp_path / "t", reducer="last", **asked)
    recorder.record(model, 0)
    handle.remove()
    assert max(sizes) == most
    assert sum(sizes) >= 4 * len(PROBE)


@pytest.mark.truth("numpy over rows read by hand from the model at that step")
def test_curves_are_those_of_the_model_at_each_step(tmp_path):
    model, truth = network(), {}
    recorder = Recorder([Covariance(), ParticipationRatio()], PROBE, tmp_path / "t", reducer="last")
    for step in (0, 5, 10):
        recorder.record(model, step)
        frozen = copy.deepcopy(model).eval()
        with torch.no_grad():
            ids = torch.tensor([item["input_ids"] for item in PROBE])
            states = frozen(input_ids=ids, output_hidden_states=True).hidden_states[1][:, -1]
            truth[step] = float(np.var(states.double().numpy(), axis=0).sum())
            for parameter in model.parameters():
                parameter.mul_(1.3)
    table = Track(tmp_path / "t").table()
    rows = [r for r in table.to_pylist() if r["method"] == "covariance" and "h.0" in r["site"]]
    assert [r["step"] for r in rows] == [0, 5, 10]
    assert [r["value"] for r in rows] == pytest.approx(list(truth.values()), rel=1e-5)
    assert len({v for v in truth.values()}) == 3
    assert {r["method"] for r in table.to_pylist()} == {"covariance", "participation_ratio"}
    chart = Track(tmp_path / "t").chart(["covariance"])
    assert {v["method"] for v in chart["data"]["values"]} == {"covariance"}
    assert len(chart["data"]["values"]) == 3 * 2
    assert all("low" in v for v in chart["data"]["values"])


class Killed(BaseException):
    """Stands for a process that is gone."""


@pytest.mark.slow
def test_what_is_recorded_survives_a_kill_and_training_goes_on_into_the_same_track(
    tmp_path, monkeypatch
):
    whole = tmp_path / "whole.track"
    trainer(tmp_path / "a", [callback(whole)], steps=8).train()
    place = tmp_path / "run.track"
    dying = callback(place)
    record = dying.recorder.record

    def die(model, step):
        if step == 6:
            raise Killed
        record(model, step)

    monkeypatch.setattr(dying.recorder, "record", die)
    saving = {"save_strategy": "steps", "save_steps": 3}
    with pytest.raises(Killed):
        trainer(tmp_path / "b", [dying], steps=8, **saving).train()
    assert Track(place).steps == (0, 2, 4)
    (place / ".step-0000000006.sonde.half").write_bytes(b"half")
    run = trainer(tmp_path / "b", [callback(place)], steps=8, **saving)
    run.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-3"))
    assert Track(place).steps == (0, 2, 3, 4, 6, 8)
    there = {r["step"]: r["value"] for r in Track(whole).table().to_pylist()}
    again = {r["step"]: r["value"] for r in Track(place).table().to_pylist()}
    assert {s: again[s] for s in there} == there


def test_a_track_of_something_else_is_refused(tmp_path):
    model = network()
    Recorder(Covariance(), PROBE, tmp_path / "t", reducer="last").record(model, 0)
    with pytest.raises(StateError, match="holds steps recorded with other instruments"):
        Recorder(ParticipationRatio(), PROBE, tmp_path / "t", reducer="last").record(model, 1)
    with pytest.raises(StateError, match="holds steps recorded with other data"):
        Recorder(Covariance(), PROBE[:6], tmp_path / "t", reducer="last").record(model, 1)
    with pytest.raises(StateError, match="holds steps recorded with other sites"):
        Recorder(Covariance(), PROBE, tmp_path / "t", reducer="mean").record(model, 1)
    assert Track(tmp_path / "t").steps == (0,)


@pytest.mark.slow
@pytest.mark.truth("the table of the track itself")
def test_figures_reach_the_trainers_own_log(tmp_path):
    recorded = callback(tmp_path / "t")
    run = trainer(tmp_path / "run", [recorded])
    recorded.log_to(run)
    run.train()
    want = {
        (row["step"], f"sonde/{row['method']}/{row['site']}"): row["value"]
        for row in recorded.track.table().to_pylist()
        if row["method"] == "participation_ratio"
    }
    found = {
        (entry["step"], name): value
        for entry in run.state.log_history
        for name, value in entry.items()
        if name.startswith("sonde/participation")
    }
    assert found == want
    assert {step for step, _ in found} == {0, 2, 4, 6}


class Writer:
    """Takes scalars as TensorBoard's ``SummaryWriter`` does."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, float, int]] = []

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.seen.append((name, value, step))


class Logger:
    """Takes metrics as a logger of Lightning does."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, float, int]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.seen += [(name, value, step) for name, value in metrics.items()]


def test_loggers_of_a_plain_loop_get_the_same_figures(tmp_path):
    seen: list[tuple[str, float, int]] = []
    writer, logger, several = Writer(), Logger(), SimpleNamespace(loggers=[Logger(), Logger()])
    targets = (writer, logger, several, lambda f, step: seen.extend((*i, step) for i in f.items()))
    for i, target in enumerate(targets):
        recorder = Recorder(ParticipationRatio(), PROBE, tmp_path / str(i))
        recorder.log_to(target)
        recorder.record(network(), 4)
    assert len(seen) > 1
    assert seen == writer.seen == logger.seen == several.loggers[0].seen == several.loggers[1].seen
    with pytest.raises(InputError, match=r"log_to: expected a Trainer.*got int"):
        Recorder(ParticipationRatio(), PROBE, tmp_path / "x").log_to(3)


def test_wrong_steps_and_names_are_refused(tmp_path):
    with pytest.raises(InputError, match="every of at least 1 step, got 0"):
        TrackCallback(Covariance(), PROBE, tmp_path / "t", every=0)
    track = Track(tmp_path / "none")
    assert track.steps == ()
    with pytest.raises(StoreError, match="has no step 3, no step at all"):
        track.at(3)
    with pytest.raises(InputError, match="no curve of anything"):
        track.chart()
    recorder = Recorder(Covariance(), PROBE, tmp_path / "t", reducer="last")
    with pytest.raises(InputError, match="expected a step from 0 on, got -1"):
        recorder.record(network(), -1)
    recorder.record(network(), 1)
    with pytest.raises(InputError, match="no curve of covarianze; recorded: covariance"):
        recorder.track.chart(["covarianze"])


def test_reading_mid_training_is_reading_in_eval_mode(tmp_path):
    model = network().train()
    recorder = Recorder(Covariance(), PROBE, tmp_path / "t", reducer="last")
    recorder.record(model, 0)
    stream = read(copy.deepcopy(model).eval(), PROBE, reducer="last", logits=False)
    truth = Covariance().fit(torch.cat([b.rows["transformer.h.1:out"] for b in stream]))
    found = recorder.track.at(0).result("covariance", "transformer.h.1:out")
    assert found.value == pytest.approx(float(truth.value), rel=1e-6)


def test_a_site_that_became_another_class_is_refused(tmp_path):
    rows = list(torch.randn(20, 4, generator=torch.Generator().manual_seed(0)))
    recorder = Recorder(Covariance(), rows, tmp_path / "t", sites=["0"])
    for step in (0, 1):
        recorder.record(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)), step)
    other = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(4, 2))
    with pytest.raises(StateError, match=r"expected a Linear at 0, .* got a ReLU"):
        recorder.record(other, 2)
    assert recorder.track.steps == (0, 1)
