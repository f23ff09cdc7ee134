"""Models of transformers whose input is neither a text nor an image: their arguments are read."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import sonde
from sonde.core.errors import InputError

WIDE: dict[str, Any] = {"d_model": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
LAYER: dict[str, Any] = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "d_model": 8}
SOUND: dict[str, Any] = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "conv_dim": (8,),
    "conv_stride": (5,),
    "conv_kernel": (10,),
    "num_feat_extract_layers": 1,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}


def whisper() -> nn.Module:
    config = transformers.WhisperConfig(
        vocab_size=9, num_mel_bins=4, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=8,
        decoder_ffn_dim=8, max_source_positions=10, max_target_positions=8, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, begin_suppress_tokens=None,
        **LAYER,
    )  # fmt: skip
    return transformers.WhisperModel(config)


def wav2vec2() -> nn.Module:
    return transformers.Wav2Vec2ForSequenceClassification(transformers.Wav2Vec2Config(**SOUND))


def perceiver() -> nn.Module:
    config = transformers.PerceiverConfig(
        num_latents=3, d_latents=8, d_model=8, num_blocks=1, num_self_attends_per_block=1,
        num_self_attention_heads=2, num_cross_attention_heads=2, vocab_size=9,
        max_position_embeddings=6,
    )  # fmt: skip
    return transformers.PerceiverForMaskedLM(config)


def patchtst() -> nn.Module:
    config = transformers.PatchTSTConfig(
        num_input_channels=2, context_length=8, patch_length=2, patch_stride=2, ffn_dim=8, **WIDE
    )
    return transformers.PatchTSTModel(config)


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        n_embd=8, n_layer=1, n_head=2, vocab_size=9, n_positions=8, bos_token_id=1, eos_token_id=2
    )
    return transformers.GPT2Model(config)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


GIVEN: dict[str, tuple[Callable[[], nn.Module], str, dict[str, Tensor]]] = {
    "Whisper": (whisper, "encoder.layers.0", {
        "input_features": drawn(3, 4, 20), "decoder_input_ids": torch.tensor([[1, 4, 5]] * 3),
    }),
    "Wav2Vec2": (wav2vec2, "wav2vec2.encoder.layers.0", {"input_values": drawn(3, 60)}),
    "Perceiver": (
        perceiver, "perceiver.encoder.self_attends.0", {"inputs": torch.arange(18).view(3, 6) % 9},
    ),
    "PatchTST": (patchtst, "encoder.layers.0", {"past_values": drawn(3, 8, 2)}),
    "GPT-2, embeddings": (gpt2, "h.0", {"inputs_embeds": drawn(3, 5, 8)}),
}  # fmt: skip


@pytest.mark.parametrize("name", GIVEN)
@pytest.mark.truth("a plain hook on the module")
def test_a_key_that_the_forward_takes_is_an_input(name):
    make, site, given = GIVEN[name]
    torch.manual_seed(0)
    model = make().eval()
    items = [{key: x[i] for key, x in given.items()} | {"label": i % 2} for i in range(3)]
    stream = sonde.read(model, items, sites=site, reducer="mean")
    (schema,) = stream.schema
    (batch,) = stream.batches(0, 3)
    seen: list[Tensor] = []
    handle = model.get_submodule(site).register_forward_hook(
        lambda _m, _a, out: seen.append(out if isinstance(out, Tensor) else out[0])
    )
    with torch.no_grad():
        model(**given)
    handle.remove()
    expected = seen[0].mean(tuple(range(1, seen[0].ndim - 1)))
    assert schema.dim == 8
    torch.testing.assert_close(batch.rows[schema.key], expected, rtol=1e-4, atol=1e-5)
    assert batch.label.tolist() == [0, 1, 0]


def test_what_the_forward_does_not_take_is_refused_and_words_are_left_out():
    items = [{"past_values": x, "note": "a day"} for x in drawn(3, 8, 2)]
    assert sonde.read(patchtst().eval(), items).schema
    with pytest.raises(InputError, match=r"no argument 'past_value', only .*past_values"):
        sonde.read(patchtst().eval(), [{**i, "past_value": i["past_values"]} for i in items])
