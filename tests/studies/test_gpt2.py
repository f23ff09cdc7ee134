"""The loss of a language model against the library's own, and options of an untrained model."""

import pytest
import torch

from sonde_studies._gpt2 import gpt2, next_token_loss


@pytest.mark.truth("the loss that transformers computes from labels")
def test_the_loss_of_texts_is_that_of_the_library():
    torch.manual_seed(2)
    model = gpt2(11, 7, width=8, layers=1, heads=2, initializer_range=0.5).eval()
    ids = torch.randint(11, (5, 7))
    out = model(ids, labels=ids)
    torch.testing.assert_close(next_token_loss(out.logits, ids), out.loss)
    assert not torch.allclose(out.loss, torch.tensor(11.0).log(), atol=0.05)


def test_texts_have_special_tokens_where_they_are_asked_for():
    assert gpt2(5, 4, 8, 1, 2).config.pad_token_id is None
    assert gpt2(5, 4, 8, 1, 2, special=3).config.eos_token_id == 3
