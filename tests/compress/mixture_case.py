"""A small mixture of experts of transformers, with moved weights."""

import torch
from transformers import MixtralConfig, MixtralForCausalLM

from sonde import Model
from sonde.data import open_inputs


def mixture(n_experts: int = 5, layers: int = 2, seed: int = 0, dim: int = 8) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = MixtralConfig(
            vocab_size=32,
            hidden_size=dim,
            intermediate_size=dim,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            num_local_experts=n_experts,
            num_experts_per_tok=2,
            max_position_embeddings=64,
            initializer_range=0.3,
        )
        return Model(MixtralForCausalLM(config).eval(), config=config, task="causal")


def texts(seed: int = 1, lengths: tuple[int, ...] = (9, 20, 13, 6)) -> list[dict]:
    draw = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(1, 32, (n,), generator=draw)} for n in lengths]


def inputs(model: Model, seed: int = 1):
    return open_inputs(model, texts(seed))
