"""Tiny checkpoints, saved once per session."""

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.utils import logging

from image_recipe import RECIPE

logging.disable_progress_bar()
logging.set_verbosity_error()

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefgh", "cat", "dog", "sat", "on", "the", "mat"]
NAMES = ["input_ids", "token_type_ids", "attention_mask"]


def byte_tokenizer():
    letters = pre_tokenizers.ByteLevel.alphabet()
    order = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in order]
    names = {**{chr(b): b for b in order}, **{chr(256 + i): b for i, b in enumerate(rest)}}
    assert set(names) == set(letters)
    tokenizer = Tokenizer(models.BPE(vocab=names, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def word_tokenizer(**options):
    vocabulary = {w: i for i, w in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        **options,
    )


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory):
    """A byte-level causal model with a context of 16."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("gpt2")
    config = GPT2Config(
        vocab_size=256,
        n_positions=16,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=None,
        eos_token_id=None,
    )
    GPT2LMHeadModel(config).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    """A classifier of words with [CLS] and [SEP], a context of 8, and named classes."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("bert")
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=8,
        id2label={0: "Bad", 1: "Good"},
        label2id={"Bad": 0, "Good": 1},
    )
    BertForSequenceClassification(config).save_pretrained(path)
    word_tokenizer(padding_side="left", model_input_names=NAMES).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def t5(tmp_path_factory):
    """An encoder-decoder model."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("t5")
    config = T5Config(
        vocab_size=len(WORDS),
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,  # pyright: ignore[reportCallIssue]
    )
    T5ForConditionalGeneration(config).save_pretrained(path)
    word_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def vit(tmp_path_factory):
    """An image classifier of 8 x 8 RGB images in patches of 2 x 2."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vit")
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=8,
        patch_size=2,
        num_channels=3,
        id2label={0: "cat", 1: "dog"},
        label2id={"cat": 0, "dog": 1},
    )
    ViTForImageClassification(config).save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps(RECIPE))
    return path
