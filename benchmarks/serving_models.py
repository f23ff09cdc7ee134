"""The models that are served: a net of five layers, and text classifiers of two sizes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

N_INPUTS, N_CLASSES, MOST = 64, 10, 32
SITES = ["1", "3", "5", "7", "9"]
"""Sites of the probe of the net: the five hidden layers."""
SMALL_TEXT = {"vocab_size": 2000, "hidden_size": 96, "num_hidden_layers": 3,
              "num_attention_heads": 4, "intermediate_size": 384}  # fmt: skip
TEXT = {"vocab_size": 30_522, "hidden_size": 768, "num_hidden_layers": 12,
        "num_attention_heads": 12, "intermediate_size": 3072}  # fmt: skip
TINY_TEXT = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2,
             "num_attention_heads": 2, "intermediate_size": 64}  # fmt: skip
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
Answers = Callable[[Sequence[Any]], list[dict[str, Any]]]


def text_sites(sizes: dict[str, int]) -> list[str]:
    """Return at most five sites of a text model: blocks, and attention if these are too few."""
    n = sizes["num_hidden_layers"]
    blocks = sorted({round(i * (n - 1) / 4) for i in range(5)}) if n > 5 else range(n)
    found = [f"bert.encoder.layer.{i}" for i in blocks]
    return [*found, *(f"bert.encoder.layer.{i}.attention.output" for i in range(1, n))][:5]


def net(width: int) -> nn.Sequential:
    """Return the served net; the same weights each time."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(N_INPUTS, width), nn.ReLU()]
    for _ in range(4):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, N_CLASSES)).eval()


def write_text_model(folder: Path, sizes: dict[str, int]) -> None:
    """Write a text classifier with random weights, and its tokenizer of words, to a folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    words = [*SPECIAL, *(f"w{i}" for i in range(sizes["vocab_size"] - len(SPECIAL)))]
    known = {word: i for i, word in enumerate(words)}
    tokens = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokens.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    torch.manual_seed(0)
    options: dict[str, Any] = dict(sizes)
    BertForSequenceClassification(BertConfig(**options)).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=128,
    ).save_pretrained(folder)


def rows(n: int, seed: int, shift: float = 0.0) -> list[list[float]]:
    """Return inputs of the net."""
    drawn = torch.randn(n, N_INPUTS, generator=torch.Generator().manual_seed(seed))
    return (drawn + shift).tolist()


def texts(n: int, seed: int, sizes: dict[str, int]) -> list[str]:
    """Return texts of 24 to 40 words."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(24, 41, (n,), generator=generator).tolist()
    most = sizes["vocab_size"] - len(SPECIAL)
    return [
        " ".join(f"w{i}" for i in torch.randint(0, most, (k,), generator=generator).tolist())
        for k in lengths
    ]


def answering(what: str) -> Answers:
    """Return a function from inputs to answers: of the net of a width, or the model of a folder."""
    if what.isdigit():
        return _of_net(net(int(what)))
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(what).eval()
    tokenizer = AutoTokenizer.from_pretrained(what)

    def answers(inputs: Sequence[Any]) -> list[dict[str, Any]]:
        with torch.inference_mode():
            given = tokenizer(list(inputs), padding=True, truncation=True, return_tensors="pt")
            return _said(model(**given).logits)

    return answers


def _of_net(model: nn.Module) -> Answers:
    def answers(inputs: Sequence[Any]) -> list[dict[str, Any]]:
        with torch.inference_mode():
            return _said(model(torch.tensor(list(inputs))))

    return answers


def _said(logits: Tensor) -> list[dict[str, Any]]:
    most = logits.softmax(1).max(1)
    pairs = zip(most.indices.tolist(), most.values.tolist(), strict=True)
    return [{"answer": i, "probability": p} for i, p in pairs]
