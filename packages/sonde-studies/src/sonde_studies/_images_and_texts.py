"""A small CLIP trained here on digits and their names, eight names for each digit."""

from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, pad

from sonde import Model, load
from sonde.explain import ConceptMarginal, concept_bank, shared_rows
from sonde_studies.worlds.learning import drawn, minimise

CLASSES, NAMES, WIDTH, CONTEXT, WRONG = 10, 8, 32, 4, 0.3
"""``WRONG``: share of captions that name another digit."""
MOVES = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]
VIEWS = len(MOVES)
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>"]


def names_of(digit: int) -> list[str]:
    """Return the names of a digit, the most frequent first."""
    return [f"d{digit}n{i}" for i in range(NAMES)]


def trained_clip(x: Tensor, label: Tensor, seed: int, steps: int) -> Model:
    """Return a CLIP trained on digits (row, pixel), each captioned by a name of its digit.

    The i-th name of a digit is drawn in proportion to ``2^-i``.
    """
    words = [name for digit in range(CLASSES) for name in names_of(digit)]
    module: Any = drawn(lambda: _module(len(words)), seed)
    model = load(module, processor=_processor(words))
    draw = torch.Generator().manual_seed(seed)
    often = 0.5 ** torch.arange(NAMES)
    pictures = model.processor.image_processor(images_of(x), return_tensors="pt")["pixel_values"]

    def loss(rows: Tensor) -> Tensor:
        digit = label[rows]
        wrong = torch.rand(len(rows), generator=draw) < WRONG
        digit = torch.where(wrong, torch.randint(CLASSES, digit.shape, generator=draw), digit)
        name = torch.multinomial(often, len(rows), True, generator=draw)
        word = len(SPECIAL) + NAMES * digit + name
        ends = [torch.full_like(word, i) for i in (2, 3, 0)]
        ids = torch.stack([ends[0], word, ends[1], ends[2]], 1)
        seen = (ids != 0).long()
        found = module(pixel_values=pictures[rows], input_ids=ids, attention_mask=seen)
        own = torch.arange(len(rows))
        return cross_entropy(found.logits_per_image, own) + cross_entropy(
            found.logits_per_text, own
        )

    module.train()
    minimise(loss, module.parameters(), len(x), steps=steps, seed=seed, rate=2e-3)
    module.eval()
    return model


def images_of(x: Tensor) -> list[Image.Image]:
    """Return digits as pictures of eight by eight pixels."""
    grey = (x.clamp(0, 1) * 255).round().byte().reshape(-1, 8, 8, 1).expand(-1, -1, -1, 3)
    return [Image.fromarray(one.numpy()) for one in grey.contiguous()]


def shifted(x: Tensor) -> Tensor:
    """Return digits moved by half a pixel in eight directions, (row, view, pixel)."""
    wide = pad(x.reshape(-1, 8, 8), (1, 1, 1, 1))
    each = [wide[:, 1 + i : 9 + i, 1 + j : 9 + j].flatten(1) for i, j in MOVES]
    return (x.unsqueeze(1) + torch.stack(each, 1)) / 2


def by_texts(
    x: Tensor, label: Tensor, n: int, choose: int, seed: int, steps: int
) -> dict[str, float]:
    """Return the accuracies of a bank of names, their mean, single names and the best of them.

    The bank is read with each likelihood, and with views of the images.

    Parameters
    ----------
    x : Float[Tensor, "row pixel"]
    label : Int[Tensor, "row"]
    n, choose : int
        Rows to train on, and then to choose the best name.
    seed, steps : int
    """
    model = trained_clip(x[:n], label[:n], seed, steps)
    bank = concept_bank(model, {str(digit): names_of(digit) for digit in range(CLASSES)})
    rows = shared_rows(model, [{"image": image} for image in images_of(x[n:])])
    each = normalize(bank.rows, dim=1).reshape(CLASSES, NAMES, -1).transpose(0, 1)
    right = torch.stack([(rows @ one.T).argmax(1) == label[n:] for one in each]).double()
    best = int(right[:, :choose].mean(1).argmax())
    mean = (rows[choose:] @ normalize(each.mean(0), dim=1).T).argmax(1)
    fresh = shifted(x[n + choose :])
    seen = shared_rows(model, [{"image": image} for image in images_of(fresh.flatten(0, 1))])
    views = seen.unflatten(0, fresh.shape[:2])

    def accuracy(likelihood: Any, views: Tensor | None = None) -> float:
        kind = ConceptMarginal(likelihood=likelihood)
        found = kind.fit(rows[choose:], bank.rows, bank.owner, views=views).predicted
        return float((found == label[n + choose :]).double().mean())

    return {
        "marginal": accuracy("mixture"),
        "average": accuracy("average"),
        "confidence": accuracy("confidence"),
        "views": accuracy("confidence", views),
        "marginal over views": accuracy("mixture", views),
        "mean of names": float((mean == label[n + choose :]).double().mean()),
        "single names": float(right[:, choose:].mean()),
        "best name": float(right[best, choose:].mean()),
    }


def _module(n_words: int) -> Any:
    from transformers import CLIPConfig, CLIPModel

    sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 1}
    sizes["num_attention_heads"] = 2
    text = {"vocab_size": len(SPECIAL) + n_words, "max_position_embeddings": CONTEXT, **sizes}
    text |= {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    vision = {"image_size": 8, "patch_size": 2, **sizes}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))


def _processor(words: list[str]) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPProcessor, PreTrainedTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    known = {word: i for i, word in enumerate([*SPECIAL, *words])}
    inner = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    tokens = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", bos_token="<s>",
        eos_token="</s>", model_max_length=CONTEXT,
    )  # fmt: skip
    square = {"height": 8, "width": 8}
    return CLIPProcessor(CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size=square), tokens)
