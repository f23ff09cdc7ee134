"""A model whose forward pass writes into its weights is refused before anything is calibrated."""

import pytest
import torch
from transformers import RwkvConfig, RwkvForCausalLM

import sonde
from sonde.core.errors import InputError
from sonde.data import open_inputs
from sonde.run.compressing.choosing import require_still_weights


@pytest.mark.parametrize("every", [0, 1])
def test_a_forward_pass_that_scales_its_weights_is_refused(every):
    sizes = {"hidden_size": 8, "attention_hidden_size": 8, "intermediate_size": 12}
    config = RwkvConfig(vocab_size=16, num_hidden_layers=2, rescale_every=every, **sizes)
    model = sonde.load(RwkvForCausalLM(config).eval())
    inputs = open_inputs(model, [{"input_ids": torch.arange(1, 6)}, {"input_ids": torch.arange(3)}])
    if not every:
        require_still_weights(model, inputs)
        return
    with pytest.raises(InputError, match=r"output\.weight and 3 more.*rescale_every 0"):
        require_still_weights(model, inputs)
