"""Losses at sites in a Trainer of transformers: the same steps by hand, logs, checkpoints."""

import copy

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import sonde
from sonde.core import InputError, StateError
from sonde.train import Align, Contrast

RATE = 0.1
IDS = torch.randint(1, 40, (8, 6), generator=torch.Generator().manual_seed(1))
SITES = {
    ("blocks.0", "teacher:blocks.1"): lambda: Align("cosine", "linear", width=16),
    "blocks.1": lambda: Align("mse"),
}


def network(seed=0, **options) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        n_embd=16, n_layer=2, n_head=2, n_positions=16, vocab_size=40, bos_token_id=0,
        eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **options,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def trained(folder, model, terms, steps=3, batch=8, log_to=None, resume=False, **options):
    arguments = TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=batch, report_to="none", seed=3,
        use_cpu=True, disable_tqdm=True, learning_rate=RATE, lr_scheduler_type="constant",
        max_grad_norm=0.0, optim="sgd", logging_steps=1,
        **{"save_strategy": "no", **options},
    )  # fmt: skip
    data = [{"input_ids": row, "labels": row} for row in IDS]
    callback = sonde.TermsCallback(terms)
    trainer = Trainer(model, arguments, train_dataset=data, callbacks=[callback])  # pyright: ignore[reportArgumentType]
    if log_to is not None:
        callback.log_to(log_to)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def align() -> Align:
    torch.manual_seed(5)
    made = Align("cosine", "linear", width=16)
    made(torch.ones(1, 16), torch.ones(1, 16))
    return made


@pytest.mark.slow
@pytest.mark.truth("the same loop by hand, one batch of all rows")
@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_trainer_takes_the_steps_of_a_loop_by_hand(tmp_path, accumulated):
    model, teacher, key = network(), network(7), ("blocks.0", "teacher:blocks.1")
    by_hand = copy.deepcopy(model).train()
    with sonde.training(model, {key: align()}, weight=0.7, teacher=teacher) as terms:
        trainer = trained(
            tmp_path, model, terms, batch=8 // accumulated, gradient_accumulation_steps=accumulated
        )
        assert terms.n_steps == 3
    own = align()
    with sonde.training(by_hand, {key: own}, weight=0.7, teacher=teacher) as terms:
        sgd = torch.optim.SGD(by_hand.parameters(), lr=RATE)
        adam = torch.optim.Adam(terms.parameters(), lr=RATE)
        figures = []
        for _ in range(3):
            task = by_hand(input_ids=IDS, labels=IDS, num_items_in_batch=IDS.numel()).loss
            loss = task + terms.loss()
            sgd.zero_grad()
            adam.zero_grad()
            loss.backward()
            sgd.step()
            adam.step()
            terms.step()
            figures += terms.figures.values()
    for (name, p), q in zip(model.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=2e-4, atol=2e-6, msg=name)
    logged = [row for row in trainer.state.log_history if "loss" in row]
    found = [next(v for n, v in row.items() if n.startswith("sonde/Align")) for row in logged]
    assert found == pytest.approx(figures, rel=1e-4)


@pytest.mark.slow
def test_a_training_that_was_stopped_goes_on_from_its_checkpoint(tmp_path):
    def run(folder, steps, resume=False):
        model = network()
        loss = Contrast(0.5, memory=20, prototypes=0)
        sites = {("blocks.0", "blocks.1"): Align("mse", "linear", width=16), "blocks.1": loss}
        with sonde.training(model, sites, weight=0.5, teacher="ema") as terms:
            terms.module.register_forward_pre_hook(_twins, with_kwargs=True)
            trained(
                folder, model, terms, steps, 4, resume=resume, save_strategy="steps", save_steps=2
            )
        return model, loss

    torch.manual_seed(1)
    whole, loss = run(tmp_path / "a", 4)
    torch.manual_seed(1)
    run(tmp_path / "b", 2)
    torch.manual_seed(99)
    again, other = run(tmp_path / "b", 4, resume=True)
    assert all(
        torch.equal(p, q) for p, q in zip(whole.parameters(), again.parameters(), strict=True)
    )
    assert torch.equal(loss.kept_rows, other.kept_rows)


def _twins(module, args, kwargs):
    """Give Contrast labels that repeat."""
    kwargs["label"] = torch.arange(len(kwargs["input_ids"])) % 2
    return args, kwargs


@pytest.mark.slow
def test_figures_go_to_a_logger_and_wrong_models_are_refused(tmp_path):
    model, seen = network(), []
    with sonde.training(model, {("blocks.0", "blocks.1"): Align()}) as terms:
        trainer = trained(tmp_path, model, terms, 2, log_to=lambda figures, step: seen.append(step))
        assert seen == [1, 2]
        assert not any("sonde/" in name for row in trainer.state.log_history for name in row)
        with pytest.raises(InputError, match="the Trainer's model to be"):
            trained(tmp_path, network(), terms)


class OwnLoss(torch.nn.Module):
    """A model whose outputs have a loss without labels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = torch.nn.Embedding(40, 6), torch.nn.Linear(6, 40)

    def forward(self, input_ids, labels=None):
        logits = self.b(self.a(input_ids))
        return {"loss": logits.square().mean(), "logits": logits}


@pytest.mark.slow
def test_a_loss_that_the_trainer_computes_itself_is_said(tmp_path):
    model = network()
    with (
        sonde.training(model, {("blocks.0", "blocks.1"): Align("mse")}) as terms,
        pytest.raises(InputError, match=r"expected label_smoothing_factor=0, got 0\.1"),
    ):
        trained(tmp_path, model, terms, label_smoothing_factor=0.1)

    def mine(outputs, labels, num_items_in_batch=None):
        return outputs["logits"].square().mean()

    given = {"report_to": "none", "max_steps": 2, "use_cpu": True, "disable_tqdm": True}
    for made, told, error in (
        (
            model,
            "do not pass compute_loss_func to the Trainer, which takes the labels away",
            InputError,
        ),
        (OwnLoss(), "no gradient reached them: the Trainer trains another loss", StateError),
    ):
        site = "b" if isinstance(made, OwnLoss) else ("blocks.0", "blocks.1")
        loss = Small() if isinstance(made, OwnLoss) else Align("mse")
        with sonde.training(made, {site: loss}) as terms:
            trainer = Trainer(
                made, TrainingArguments(str(tmp_path), save_strategy="no", **given),
                train_dataset=[{"input_ids": row, "labels": row} for row in IDS],  # pyright: ignore
                callbacks=[sonde.TermsCallback(terms)], compute_loss_func=mine,
            )  # fmt: skip
            with pytest.raises(error, match=told):
                trainer.train()


class Small(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.square().mean()
