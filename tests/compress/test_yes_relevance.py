"""Yes or no for each segment in batches, against each prompt alone; parts that a model writes."""

import inspect
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from sonde import Model, load
from sonde.compress import asked_parts, token_budget, yes_relevance
from sonde.core import InputError

SIGNS = ["<pad>", "<unk>", "<s>", "</s>", "<image>", "yes", "no"]
WORDS = [
    "a",
    "the",
    "red",
    "green",
    "dark",
    "cup",
    "dog",
    "door",
    "is",
    "here",
    "where",
    "and",
    ",",
]
WORDS += ["it", "of", "on", "answer", ":"]
TEXTS = ["the red cup is on the door", "a dog", "where is it , the dark green dog of the cup", "it"]
PARTS = ["red cup", "the dark door and it"]
TEMPLATE = "{segment} is the {part} here : answer :"
SIZES: dict[str, Any] = {
    "vocab_size": len(SIGNS) + len(WORDS), "hidden_size": 16, "intermediate_size": 32,
    "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 0, "bos_token_id": 2,
    "eos_token_id": 3, "initializer_range": 0.5,
}  # fmt: skip


def tokenizer(end: bool = False, side: str = "left") -> Any:
    """Return a tokenizer of words that begins texts, and ends them if asked."""
    numbers = {word: i for i, word in enumerate([*SIGNS, *WORDS])}
    made = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if end else "<s> $A", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", bos_token="<s>",
        eos_token="</s>", extra_special_tokens=["<image>"], padding_side=side,
    )  # fmt: skip


def gpt2() -> Any:
    """Return a model that counts positions by itself and would count padding."""
    names = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": SIZES["vocab_size"]}
    return tf.GPT2LMHeadModel(tf.GPT2Config(**names, initializer_range=0.5))


def llama() -> Any:
    """Return a small Llama."""
    return tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES))


def answered(module: Any, given: Any) -> float:
    """Return the probability of yes of one prompt, run alone and without padding."""
    with torch.no_grad():
        logits = module(**given).logits[0, -1].double()
    yes, no = (logits[SIGNS.index(word)].exp() for word in ("yes", "no"))
    return float(yes / (yes + no))


@pytest.mark.truth("each prompt run alone by transformers, without padding")
@pytest.mark.parametrize("make", [gpt2, llama])
@pytest.mark.parametrize("end", [False, True])
def test_batches_of_texts_are_answered_as_each_alone(make, end):
    torch.manual_seed(1)
    module = make().eval()
    plain = tokenizer()
    alone = torch.tensor(
        [
            [
                answered(
                    module,
                    plain(
                        TEMPLATE.replace("{segment}", text).replace("{part}", part),
                        return_tensors="pt",
                        return_token_type_ids=False,
                    ),
                )
                for part in PARTS
            ]
            for text in TEXTS
        ]
    )
    assert float(alone.std()) > 0.02
    model = load(module, processor=tokenizer(end))
    for combine, wanted in (("max", alone.amax(1)), ("mean", alone.mean(1))):
        for size in (1, 3, "auto"):
            found = yes_relevance(
                model, TEXTS, PARTS, TEMPLATE, ("yes", "no"), combine, batch_size=size
            )
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    turned = yes_relevance(model, TEXTS, PARTS[:1], TEMPLATE, ("no", "yes"))
    torch.testing.assert_close(turned, 1 - alone[:, 0], rtol=1e-5, atol=1e-6)
    assert int(token_budget(turned, torch.full((4,), 9), 12).sum()) == 12


def picture(seed: int) -> Image.Image:
    """Return noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def reader_of_pictures(context: int) -> tuple[Any, Any]:
    """Return a small Llava and its processor."""
    torch.manual_seed(2)
    vision = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
              "num_attention_heads": 2, "image_size": 16, "patch_size": 8}  # fmt: skip
    config = tf.LlavaConfig(
        text_config=tf.LlamaConfig(**SIZES, max_position_embeddings=context),
        vision_config=tf.CLIPVisionConfig(**vision),
        image_token_index=SIGNS.index("<image>"), vision_feature_layer=-1,
    )  # fmt: skip
    cut = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor = tf.LlavaProcessor(
        cut, tokenizer(), patch_size=8, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip
    return tf.LlavaForConditionalGeneration(config).eval(), processor


@pytest.mark.truth("the processor and the model of transformers for each picture alone")
def test_batches_of_pictures_are_answered_as_each_alone():
    module, processor = reader_of_pictures(context=64)
    template = "<image> is the {part} here : answer :"
    frames = [picture(i) for i in range(5)]
    alone = torch.tensor(
        [
            [
                answered(
                    module,
                    processor(
                        images=frame, text=template.replace("{part}", part), return_tensors="pt"
                    ),
                )
                for part in PARTS
            ]
            for frame in frames
        ]
    )
    assert float(alone.std()) > 0.02
    model = load(module, processor=processor)
    found = yes_relevance(model, frames, PARTS, template, ("yes", "no"), batch_size=4)
    torch.testing.assert_close(found, alone.amax(1), rtol=1e-4, atol=1e-5)


def told(prompt, answer):
    """Return a GPT-2 whose next token depends on the position alone: it says an answer."""
    width, start = len(tokenizer()), len(tokenizer()(prompt)["input_ids"])
    config = tf.GPT2Config(
        vocab_size=width, n_positions=128, n_embd=width, n_layer=1, n_head=1, eos_token_id=3,
        bos_token_id=3, tie_word_embeddings=False,
    )  # fmt: skip
    module: Any = tf.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.fill_(float("ln" in name and name.endswith("weight")))
        for i, token in enumerate([*answer, 3]):
            module.transformer.wpe.weight[start - 1 + i, token] = 1.0
        module.lm_head.weight.copy_(torch.eye(width))
    return load(module, processor=tokenizer())


@pytest.mark.truth("parts that were written down as the model's answer")
def test_parts_are_split_at_commas():
    ids = tokenizer()("the red cup , a dog", add_special_tokens=False)["input_ids"]
    model = told("where is it :", ids)
    assert asked_parts(model, "where is it", "{question} :") == ["the red cup", "a dog"]
    assert asked_parts(model, "where is it", "{question} :", 2) == ["the red"]
    assert asked_parts(told("where is it :", []), "where is it", "{question} :") == ["where is it"]


@pytest.mark.truth("the likeliest tokens, one forward after another")
def test_the_parts_are_the_models_likeliest_tokens():
    torch.manual_seed(5)
    module, words = llama().eval(), tokenizer()
    ids = words("where is the dog :", return_tensors="pt")["input_ids"]
    start = ids.shape[1]
    with torch.no_grad():
        while ids.shape[1] < start + 6 and int(ids[0, -1]) != 3:
            ids = torch.cat([ids, module(ids).logits[:, -1:].argmax(2)], 1)
    written = words.decode(ids[0, start:], skip_special_tokens=True)
    for end in (False, True):
        model = load(module, processor=tokenizer(end))
        found = asked_parts(model, "where is the dog", "{question} :", 6)
        assert found == [part.strip() for part in written.split(",") if part.strip()]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"template": "{segment} is it :"}, r"\{part\} in the template"),
        ({"template": "is the {part} here :"}, r"\{segment\} in the template"),
        ({"template": 3}, r"\{part\} in the template, got 3"),
        ({"parts": "red cup"}, "a list of parts"),
        ({"parts": ["red cup", 3]}, "a list of parts"),
        ({"segments": []}, "0 segments"),
        ({"segments": "a dog"}, r"a list of segments, got one text. Pass \[text\]"),
        ({"segments": ["it", 2]}, "segments as texts"),
        ({"segments": [""], "parts": [""], "template": "{segment}{part}"}, "got an empty one"),
        ({"answers": ("yes", "yes it is")}, "different tokens"),
        ({"answers": "yes"}, "a pair of answers as texts, yes before no, got 'yes'"),
        ({"answers": ("yes", "no", "it")}, "a pair of answers"),
        ({"answers": ("yes", 6)}, "a pair of answers"),
        ({"answers": ("", "no")}, "a token or more, got '', which has none"),
        ({"combine": "sum"}, "combine as 'max' or 'mean', got 'sum'"),
        ({"answers": ("yes", "nowhere")}, "that the tokenizer knows, got 'nowhere'"),
        ({"segments": [1, 2]}, "segments as texts"),
    ],
)
def test_what_is_refused(change, said):
    given = {"segments": TEXTS, "parts": PARTS, "template": TEMPLATE, "answers": ("yes", "no")}
    untyped: Any = inspect.unwrap(yes_relevance)  # tests check types, users' calls do not
    with pytest.raises(InputError, match=f"yes_relevance: expected .*{said}"):
        untyped(load(llama().eval(), processor=tokenizer()), **(given | change))


@pytest.mark.parametrize(
    ("segments", "parts", "i", "j"),
    [(TEXTS, [*PARTS, "a " * 3000], 0, 2), ([*TEXTS, "a " * 3000], PARTS, 4, 0)],
)
def test_a_long_prompt_is_named_with_its_tokens(segments, parts, i, j):
    model = load(llama().eval(), processor=tokenizer())
    text = TEMPLATE.replace("{segment}", segments[i]).replace("{part}", parts[j])
    n = len(tokenizer()(text)["input_ids"])
    said = f"at most 2048 tokens.* got {n} for segment {i} with part {j}"
    with pytest.raises(InputError, match=said) as caught:
        yes_relevance(model, segments, parts, TEMPLATE, ("yes", "no"))
    assert "skip_bad" not in str(caught.value)
    assert "--long" not in str(caught.value)


def test_a_long_prompt_with_a_picture_is_named_too():
    module, processor = reader_of_pictures(context=20)
    model, template = load(module, processor=processor), "<image> is the {part} here : answer :"
    frames, long = [picture(0), picture(1)], "red " * 30
    assert len(yes_relevance(model, frames, PARTS, template, ("yes", "no"))) == 2
    made = processor(images=frames[0], text=template.replace("{part}", long), return_tensors="pt")
    n = made["input_ids"].shape[1]
    with pytest.raises(InputError, match=f"at most 20 tokens.* {n} for segment 0 with part 1"):
        yes_relevance(model, frames, [PARTS[0], long], template, ("yes", "no"))
    with pytest.raises(InputError, match="texts alone or as images alone, got 2 images among 3"):
        yes_relevance(model, [*frames, "a dog"], PARTS, f"{{segment}} {template}", ("yes", "no"))


@pytest.mark.truth("the model of transformers on the bytes of the prompt, written out")
def test_other_braces_stay():
    model = load("sonde:stdlib")
    template = '{"text": "{segment}", "has": "{part}", {x}: {}}'
    found = yes_relevance(model, ["{part} dog"], ["a {segment}"], template, ("y", "n"))
    ids = list(b'{"text": "{part} dog", "has": "a {segment}", {x}: {}}')
    with torch.no_grad():
        logits = model.module(torch.tensor([ids])).logits[0, -1, list(b"yn")]
    torch.testing.assert_close(found[0], logits.softmax(0)[0], rtol=1e-5, atol=1e-6)


def others() -> list[tuple[Any, str]]:
    """Return what is no causal model with its tokenizer, and what is said of it."""
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = tf.BertForMaskedLM(tf.BertConfig(**small, vocab_size=25, intermediate_size=16)).eval()
    vit = tf.ViTForImageClassification(
        tf.ViTConfig(**small, intermediate_size=16, image_size=16, patch_size=8)
    ).eval()
    causal = "a causal language model with its tokenizer"
    return [
        (Model(torch.nn.Linear(2, 2)), causal),
        (load(bert, processor=tokenizer()), causal),
        (load(vit, processor=CLIPImageProcessorPil()), causal),
        (load(llama().eval()), causal),
        ("gpt2", "a loaded model, got 'gpt2'. Pass what sonde.load returns"),
        (llama(), "a loaded model, got LlamaForCausalLM. Pass what sonde.load returns"),
    ]


def test_a_model_without_answers_is_refused():
    answers: Any = inspect.unwrap(yes_relevance)
    parts: Any = inspect.unwrap(asked_parts)
    for model, said in others():
        with pytest.raises(InputError, match=f"yes_relevance: expected {said}"):
            answers(model, TEXTS, PARTS, TEMPLATE)
        with pytest.raises(InputError, match=f"asked_parts: expected {said}"):
            parts(model, "where is it", "{question} :")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"template": "parts :"}, r"\{question\} in the template, got 'parts :'"),
        ({"question": ["where is it"]}, "a question as a text, got list"),
        ({"new_tokens": 0}, "new_tokens as a whole number of 1 or more, got 0"),
        ({"new_tokens": 2.5}, "new_tokens as a whole number of 1 or more, got 2.5"),
        ({"new_tokens": 124}, "124 new tokens into what the model reads, 128 tokens, got 5"),
        ({"question": "where " * 200}, "64 new tokens into .* 128 tokens, got 202"),
    ],
)
def test_what_is_not_asked(change, said):
    model = told("where is it :", [])
    given = {"question": "where is it", "template": "{question} :", "new_tokens": 64}
    assert asked_parts(model, **(given | {"new_tokens": 123})) == ["where is it"]
    untyped: Any = inspect.unwrap(asked_parts)
    with pytest.raises(InputError, match=f"asked_parts: expected .*{said}"):
        untyped(model, **(given | change))


def test_a_prompt_without_a_token_is_refused():
    with pytest.raises(InputError, match=r"of 1 token or more, got none .* Write a question"):
        asked_parts(load("sonde:stdlib"), "", "{question}")


def test_weights_that_are_not_numbers_are_an_error():
    module = llama().eval()
    with torch.no_grad():
        module.lm_head.weight.fill_(float("nan"))
    model = load(module, processor=tokenizer())
    with pytest.raises(InputError, match="finite logits"):
        yes_relevance(model, TEXTS, PARTS, TEMPLATE, ("yes", "no"))
    with pytest.raises(InputError, match="asked_parts: expected finite logits"):
        asked_parts(model, "where is the dog", "{question} :")
