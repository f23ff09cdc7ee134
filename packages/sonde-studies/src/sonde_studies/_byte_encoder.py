"""A small bidirectional encoder of bytes, trained to fill in masked bytes of Python files."""

from typing import Any

import torch
from torch.nn.functional import cross_entropy

from sonde import Model
from sonde.data import StandardLibrary
from sonde_studies.worlds.learning import drawn, minimise

BYTES, MASK, LONGEST = 256, 0, 512
SHAPE: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
LENGTH, BATCH, SHARE, RATE = 160, 16, 0.15, 3e-3


def byte_encoder(processor: Any, seed: int, steps: int) -> tuple[Model, float]:
    """Return an encoder of bytes, and its share of right bytes at masked places of its last texts.

    Parameters
    ----------
    processor : tokenizer
        A fast tokenizer whose tokens are bytes.
    seed : int
    steps : int
        Batches of 16 pieces of 160 bytes, of the files that the shipped language model read.
    """
    from transformers import BertConfig, BertForMaskedLM

    config: Any = BertConfig(
        vocab_size=BYTES, intermediate_size=256, max_position_embeddings=LONGEST, **SHAPE
    )
    net: Any = drawn(lambda: BertForMaskedLM(config).eval(), seed)  # eval: no dropout
    text = torch.tensor(
        list(b"\n".join(r["text"].encode() for r in StandardLibrary("train").rows()))
    )
    right = list[float]()

    def loss(starts: torch.Tensor) -> torch.Tensor:
        ids = text[starts[:, None] + torch.arange(LENGTH)]
        hidden = torch.rand(ids.shape) < SHARE
        logits = net(ids.masked_fill(hidden, MASK)).logits[hidden]
        right.append(float((logits.argmax(1) == ids[hidden]).double().mean()))
        return cross_entropy(logits, ids[hidden])

    how = {"steps": steps, "seed": seed, "rate": RATE, "batch": BATCH}
    minimise(loss, net.parameters(), len(text) - LENGTH, **how)
    last = right[-max(steps // 10, 1) :]
    return Model(net.bert, processor=processor), sum(last) / len(last)
