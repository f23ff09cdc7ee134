"""Runs in the environment of SAELens: its training step and ours, on the same rows."""

import importlib
import itertools
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.against import against
from benchmarks.environments import peer_version
from sonde.explain import SparseAutoencoder, load_dictionary

RATE = 1e-4
ACTS = ("topk", "relu", "batchtopk", "jumprelu", "gated", "matryoshka")


def ours(dim: int, features: int, k: int, x: Tensor) -> tuple[Callable[[], float], Any, Tensor]:
    """Return a step that gives its loss, the weights that it starts from, and the rows it sees."""
    method = SparseAutoencoder(features=features, k=k, batch=len(x), mixed=1, rate=RATE)
    learner: Any = method.reads()["trained"]
    start = learner.close_pass(learner.survey(learner.start(dim), x))
    batch = learner.examples(start, x)[1].columns
    live = start.weights.live()

    def step() -> float:
        loss, _ = learner.loss(start, live, *batch)
        learner.step(start, live, torch.autograd.grad(loss, live.values))
        live.steps += 1
        return float(loss.detach())

    return step, [v.clone() for v in start.weights.values], batch[0]


def theirs(weights: Any, k: int, x: Tensor, sparse: bool) -> Callable[[], float]:
    """Return a step of SAELens's own trainer from the same weights."""
    lens: Any = importlib.import_module("sae_lens")
    config: Any = importlib.import_module("sae_lens.config")
    trainer: Any = importlib.import_module("sae_lens.training.sae_trainer")
    encoder, bias, decoder, offset = weights
    net = lens.TopKTrainingSAE(
        lens.TopKTrainingSAEConfig(
            d_in=encoder.shape[1],
            d_sae=len(encoder),
            k=k,
            apply_b_dec_to_input=True,
            rescale_acts_by_decoder_norm=False,
            use_sparse_activations=sparse,
        )
    )
    with torch.no_grad():
        for name, value in (("W_enc", encoder.T), ("b_enc", bias), ("W_dec", decoder)):
            getattr(net, name).copy_(value)
        net.b_dec.copy_(offset)
    settings = config.SAETrainerConfig(
        total_training_samples=1_000_000_000,
        train_batch_size_samples=len(x),
        lr=RATE,
        lr_end=RATE,
        dead_feature_window=1_000_000,
    )
    walk = trainer.SAETrainer(cfg=settings, sae=net, data_provider=itertools.repeat(x))

    def step() -> float:
        walk.n_training_steps += 1
        return float(walk._train_step(net, x).losses["mse_loss"].detach())

    return step


def layout(dim: int, features: int, k: int) -> float:
    """Return the largest difference of rows rebuilt by a dictionary and by SAELens from its files.

    Over all activations that its layout knows, and back: what SAELens writes is read by ours.
    """
    lens: Any = importlib.import_module("sae_lens")
    x = torch.randn(50 * features, dim, generator=torch.Generator().manual_seed(0))
    apart = 0.0
    for act in ACTS:
        found = SparseAutoencoder(features=features, k=k, act=act, batch=256).fit(x)
        with tempfile.TemporaryDirectory() as folder:
            found.save_saelens(f"{folder}/ours")
            loaded = lens.SAE.load_from_disk(f"{folder}/ours")
            loaded.save_model(f"{folder}/theirs")
            back = load_dictionary(f"{folder}/theirs")
            with torch.no_grad():
                wanted = loaded(x)
        apart = max(apart, *(float((d.rebuild(x) - wanted).abs().max()) for d in (found, back)))
    return apart


def times(dim: int, features: int, k: int, n: int, rounds: int, sparse: bool) -> dict[str, Any]:
    """Return the times of a step of both, and how far their first losses are apart."""
    x = torch.randn(n, dim, generator=torch.Generator().manual_seed(0))
    own, weights, rows = ours(dim, features, k, x)
    other = theirs(weights, k, rows, sparse)
    apart = abs(own() / other() - 1)
    found = against(own, other, rounds)
    return found | {"apart": apart, "version": peer_version("sae-lens")}
