"""Banks of a model of images and texts: cosines as the model itself gives them."""

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

import sonde
from sonde.core import InputError
from sonde.explain import ConceptMarginal, concept_bank, shared_rows

WORDS = ["<pad>", "<unk>", "<s>", "</s>", "red", "green", "dark", "square", "round", "a"]
SIZES = {"intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {"vocab_size": len(WORDS), "hidden_size": 16, "max_position_embeddings": 8, **SIZES}
TEXT |= {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
VISION = {"hidden_size": 24, "image_size": 16, "patch_size": 8, **SIZES}
TEXTS = {"square": ["a square", "dark square a red"], "round": ["round", "a green round", "green"]}


def parts(kind):
    """Return a random small CLIP or SigLIP and its processor."""
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [("<s>", 2), ("</s>", 3)]
    words.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    own = {} if kind == "clip" else {"model_input_names": ["input_ids"]}
    tokens = tf.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", bos_token="<s>",
        eos_token="</s>", model_max_length=8, **own,
    )  # fmt: skip
    torch.manual_seed(0)
    if kind == "clip":
        cut = CLIPImageProcessorPil(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
        )
        config = tf.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=12)
        return tf.CLIPModel(config).eval(), tf.CLIPProcessor(cut, tokens)
    cut = SiglipImageProcessorPil(size={"height": 16, "width": 16})
    config = tf.SiglipConfig(text_config={**TEXT, "projection_size": 24}, vision_config=VISION)
    return tf.SiglipModel(config).eval(), tf.SiglipProcessor(cut, tokens)


def pictures(n):
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (20 + i, 30, 3), np.uint8)) for i in range(n)]


@pytest.mark.essential
@pytest.mark.truth("logits of every pair of image and text, by transformers alone")
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_cosines_are_those_of_the_model(kind):
    module, processor = parts(kind)
    images, model = pictures(5), sonde.load(module, processor=processor)
    bank = concept_bank(model, TEXTS, batch_size=2)
    rows = shared_rows(model, [{"image": image} for image in images], batch_size=2)
    every = [text for own in TEXTS.values() for text in own]
    given = processor(images=images, text=every, padding="max_length", return_tensors="pt")
    with torch.no_grad():
        logits = module(**given).logits_per_image
    bias = module.logit_bias if kind == "siglip" else 0.0
    wanted = (logits - bias) / module.logit_scale.exp()
    unit = [x / x.norm(dim=1, keepdim=True) for x in (rows, bank.rows)]
    torch.testing.assert_close(unit[0] @ unit[1].T, wanted.detach(), rtol=1e-4, atol=1e-5)
    assert bank.classes == ("square", "round")
    assert bank.texts == tuple(every)
    assert bank.owner.tolist() == [0, 0, 1, 1, 1]
    found = ConceptMarginal().fit(rows, bank.rows, bank.owner)
    weight = (wanted.double() / 0.07).softmax(1)
    mass = torch.stack([weight[:, :2].mean(1), weight[:, 2:].mean(1)], 1)
    torch.testing.assert_close(found.value, mass / mass.sum(1, keepdim=True), rtol=1e-3, atol=1e-4)


def test_what_is_refused():
    module, processor = parts("clip")
    model = sonde.load(module, processor=processor)
    with pytest.raises(InputError, match=r"a text for every class, got none for \['b'\]"):
        concept_bank(model, {"a": ["red"], "b": []})
    with pytest.raises(InputError, match=r"items with \[\('image',\), \('text',\)\]"):
        shared_rows(model, [{"text": "red"}, {"image": pictures(1)[0]}])
    with pytest.raises(InputError, match="a tower for images and one for texts"):
        shared_rows(sonde.load("sonde:stdlib", device="cpu"), [{"text": "a b"}])
