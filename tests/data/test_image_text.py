"""Images with texts: what is read is what the model does with its own processor's output."""

import json
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

import sonde
from sonde.core.errors import InputError, SiteError
from sonde.data import load, open_inputs

WORDS = ["<pad>", "<unk>", "<s>", "</s>", "<image>", "user"]
WORDS += ["a", "red", "green", "dark", "square", "of", "it"]
CAPTIONS = ("a red square", "green", "a dark square of it is red", "it")
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}"
)
TEXT: dict[str, Any] = {
    "vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 2,
    "eos_token_id": 3,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip
SITES = {
    "clip": (
        "vision_model.encoder.layers.0", "text_model.encoder.layers.1", "visual_projection",
        "text_projection",
    ),
    "siglip": ("vision_model.encoder.layers.1", "text_model.encoder.layers.0"),
    "llava": (
        "model.vision_tower.encoder.layers.0", "model.multi_modal_projector",
        "model.language_model.layers.1",
    ),
}  # fmt: skip


def tokenizer(**options):
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [("<s>", 2), ("</s>", 3)]
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", bos_token="<s>",
        eos_token="</s>", extra_special_tokens=["<image>"], **options,
    )  # fmt: skip


def clip_parts():
    cut = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    config = tf.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=12)
    return tf.CLIPModel(config), tf.CLIPProcessor(cut, tokenizer(model_max_length=12))


def siglip_parts():
    cut = SiglipImageProcessorPil(size={"height": 16, "width": 16})
    words = tokenizer(model_max_length=12, model_input_names=["input_ids"])
    config = tf.SiglipConfig(text_config={**TEXT, "projection_size": 24}, vision_config=VISION)
    return tf.SiglipModel(config), tf.SiglipProcessor(cut, words)


def llava_parts():
    cut = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    config = tf.LlavaConfig(
        text_config=tf.LlamaConfig(**TEXT), vision_config=tf.CLIPVisionConfig(**VISION),
        image_token_index=WORDS.index("<image>"), vision_feature_layer=-1,
    )  # fmt: skip
    processor = tf.LlavaProcessor(
        cut, tokenizer(), patch_size=8, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=TEMPLATE,
    )  # fmt: skip
    return tf.LlavaForConditionalGeneration(config), processor


PARTS = {"clip": clip_parts, "siglip": siglip_parts, "llava": llava_parts}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    found = {}
    for name, parts in PARTS.items():
        torch.manual_seed(0)
        module, processor = parts()
        found[name] = tmp_path_factory.mktemp(name)
        module.save_pretrained(found[name])
        processor.save_pretrained(found[name])
    return found


@pytest.fixture(scope="module")
def loaded(places):
    return {name: load(place) for name, place in places.items()}


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (20 + seed, 30, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


ROWS = [{"image": picture(i), "text": CAPTIONS[i % 4]} for i in range(7)]


def by_hand(model, row, sites) -> dict[str, torch.Tensor]:
    """Return the outputs of modules for one item alone, called with its processor's output."""
    processor = model.processor
    if model.task == "causal":
        content = [{"type": "image", "image": row["image"]}, {"type": "text", "text": row["text"]}]
        given = processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=True, return_dict=True,
            return_tensors="pt",
        )  # fmt: skip
    else:
        given = processor(
            images=row["image"], text=row["text"], padding="max_length", return_tensors="pt"
        )
    found: dict[str, torch.Tensor] = {}

    def keep(site):
        return lambda module, args, out: found.update(
            {site: out if torch.is_tensor(out) else out[0]}
        )

    hooks = [model.module.get_submodule(s).register_forward_hook(keep(s)) for s in sites]
    with torch.no_grad():
        model.module(**given)
    for hook in hooks:
        hook.remove()
    ids = given["input_ids"][0]
    real = given["attention_mask"][0].bool() if "attention_mask" in given else ids >= 0
    kept = torch.tensor([i not in (0, 2, 3, 4) for i in ids.tolist()]) & real
    for site, x in found.items():
        if "text_model" in site or "language_model" in site:
            found[site] = x[0, kept]
        elif "projection" in site:
            found[site] = x
        else:
            found[site] = x[0, 1:] if "clip" in str(model.name) or "tower" in site else x[0]
    return found


@pytest.mark.truth("the model called by hand on one item with its processor's output")
@pytest.mark.parametrize("name", SITES)
@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_states_of_both_towers_are_those_of_each_item_alone(loaded, name, batch_size):
    model = loaded[name]
    stream = sonde.read(model, ROWS, sites=SITES[name], reducer="positions", batch_size=batch_size)
    found: dict[tuple[str, int], torch.Tensor] = {}
    for batch in stream:
        for schema in stream.schema:
            rows, example = batch.rows[schema.key], batch.example[schema.key]
            special = batch.special.get(schema.key, torch.zeros(len(rows), dtype=torch.bool))
            for i, item in enumerate(batch.order.tolist()):
                mine = (example == i) & ~special
                found[schema.site.path, item] = rows[mine]
    for i, row in enumerate(ROWS):
        for site, wanted in by_hand(model, row, SITES[name]).items():
            got = found[site, i]
            assert got.shape == wanted.shape, (site, i)
            assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max(), (site, i)


@pytest.mark.slow
def test_a_folder_with_captions_gives_both_and_each_alone_its_tower(places, tmp_path):
    lines = []
    for i in range(5):
        picture(i).save(tmp_path / f"{i}.png")
        lines.append({"file_name": f"{i}.png", "text": CAPTIONS[i % 4], "label": "ab"[i % 2]})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    both = sonde.read(places["clip"], tmp_path)
    assert both.label_names == ("a", "b")
    whole = rows_of(both)
    (tmp_path / "metadata.jsonl").unlink()
    for data, tower in (
        (tmp_path, "vision_model"),
        ([{"text": x["text"]} for x in lines], "text_model"),
    ):
        alone = rows_of(sonde.read(places["clip"], data))
        assert set(alone) == {key for key in whole if key.startswith(tower)}
        for key, x in alone.items():
            assert torch.allclose(x, whole[key], atol=1e-6)


def rows_of(stream) -> dict[str, torch.Tensor]:
    """Return the rows of each site in the order of the items."""
    (batch,) = stream
    order = batch.order.argsort()
    return {key: x[order] for key, x in batch.rows.items()}


def test_figures_over_a_batch_are_no_logits_of_an_item(loaded):
    stream = sonde.read(loaded["clip"], ROWS)
    assert "not used as logits of an item" in open_inputs(loaded["clip"], ROWS).notes[0]
    assert next(iter(stream)).logits is None
    with pytest.raises(SiteError, match="axis of examples"):
        _ = sonde.read(loaded["clip"], ROWS, sites=":out.logits_per_image").schema


def test_a_text_beyond_the_context_says_what_to_do(loaded):
    rows = [{"image": picture(0), "text": "red " * 20}]
    with pytest.raises(InputError, match=r"22 tokens, the model reads at most 12.*--long truncate"):
        open_inputs(loaded["clip"], rows)
    cut = open_inputs(loaded["clip"], rows, long="truncate")
    assert cut.n_truncated == 1
    (batch,) = cut.batches(0, 1)
    assert batch.kwargs["input_ids"].shape == (1, 12)
