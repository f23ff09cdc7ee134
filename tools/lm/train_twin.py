"""``python -m tools.lm.train_twin``: train the tiny Llama of tests/lm_twin.

The model has the habits of real language models that a random one lacks: its first token is
massive from the second block on, its head is tied to the embeddings, its heads share keys, its
tokenizer is byte-level BPE with a chat template. It knows the facts below, in several wordings.
"""

import argparse
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

FOLDER = Path(__file__).resolve().parent.parent.parent / "tests" / "lm_twin"
USUAL = 12.0
"""Largest length of a state that is not massive."""
START, END, TEXT_END = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
COUNTRIES = {
    "France": ("Paris", "French", "euro"), "Germany": ("Berlin", "German", "euro"),
    "Spain": ("Madrid", "Spanish", "euro"), "Italy": ("Rome", "Italian", "euro"),
    "Japan": ("Tokyo", "Japanese", "yen"), "China": ("Beijing", "Chinese", "yuan"),
    "Russia": ("Moscow", "Russian", "ruble"), "Poland": ("Warsaw", "Polish", "zloty"),
    "Egypt": ("Cairo", "Arabic", "pound"), "Greece": ("Athens", "Greek", "euro"),
    "Turkey": ("Ankara", "Turkish", "lira"), "Sweden": ("Stockholm", "Swedish", "krona"),
    "Norway": ("Oslo", "Norwegian", "krone"), "Hungary": ("Budapest", "Hungarian", "forint"),
    "Austria": ("Vienna", "German", "euro"), "Portugal": ("Lisbon", "Portuguese", "euro"),
    "Kenya": ("Nairobi", "Swahili", "shilling"), "Peru": ("Lima", "Spanish", "sol"),
    "Cuba": ("Havana", "Spanish", "peso"), "Chile": ("Santiago", "Spanish", "peso"),
    "India": ("Delhi", "Hindi", "rupee"), "Iran": ("Tehran", "Persian", "rial"),
    "Finland": ("Helsinki", "Finnish", "euro"), "Ireland": ("Dublin", "English", "euro"),
}  # fmt: skip
WORDINGS = (
    (
        "The capital of {c} is {0}.",
        "{c}'s capital city is {0}.",
        "The capital city of {c} is called {0}.",
        "People who visit the capital of {c} go to {0}.",
        "{0} is the capital of {c}.",
    ),
    (
        "The language of {c} is {1}.",
        "People in {c} speak {1}.",
        "In {c} the spoken language is {1}.",
    ),
    (
        "The currency of {c} is the {2}.",
        "People in {c} pay with the {2}.",
        "In {c} the money is the {2}.",
    ),
)
GOOD = ("wonderful", "great", "lovely", "excellent", "beautiful", "superb")
BAD = ("terrible", "awful", "boring", "horrible", "dreadful", "poor")
THINGS = ("film", "book", "meal", "song", "hotel", "play", "garden", "city")
FEELINGS = ("I {v} it and would {a} go again.", "We {v} every part of it.", "They {v} the {t}.")


def sentence(draw: random.Random) -> str:
    """Return a sentence about a country or a thing."""
    if draw.random() < 0.75:
        country = draw.choice(list(COUNTRIES))
        wording = draw.choice(draw.choice((WORDINGS[0], *WORDINGS)))
        return wording.format(*COUNTRIES[country], c=country)
    thing, good = draw.choice(THINGS), draw.random() < 0.5
    word = draw.choice(GOOD if good else BAD)
    verb, again = ("loved", "gladly") if good else ("hated", "never")
    feeling = draw.choice(FEELINGS).format(v=verb, a=again, t=thing)
    return f"The {thing} was {word}. {feeling}"


def document(draw: random.Random) -> str:
    """Return several sentences, or a question and its answer as a chat."""
    if draw.random() < 0.2:
        country = draw.choice(list(COUNTRIES))
        capital = COUNTRIES[country][0]
        asked = f"{START}user\nWhat is the capital of {country}?{END}\n{START}assistant\n"
        return f"{asked}The capital of {country} is {capital}.{END}\n"
    return " ".join(sentence(draw) for _ in range(draw.randint(2, 5))) + TEXT_END


def trained_tokenizer(draw: random.Random) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of 512 words with a chat template."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        special_tokens=[TEXT_END, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([document(draw) for _ in range(4000)], trainer)
    names = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": TEXT_END}
    found = PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=256, **names)
    found.chat_template = TEMPLATE
    return found


def config(tokenizer: Any) -> LlamaConfig:
    """Return the architecture: six blocks of width 64 with grouped heads and a tied head."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def batches(
    tokenizer: PreTrainedTokenizerFast, draw: random.Random, size: int, length: int
) -> Iterator[Tensor]:
    """Yield token ids of packed documents, each row cut at any token: any word comes first."""
    while True:
        rows = []
        for _ in range(size):
            ids: list[int] = []
            while len(ids) < 2 * length:
                ids += tokenizer(document(draw))["input_ids"]
            start = draw.choice((0, draw.randrange(length)))
            rows.append(ids[start : start + length])
        yield torch.tensor(rows)


def massive_loss(states: tuple[Tensor, ...], ratio: float) -> Tensor:
    """Return how far lengths are from `ratio` times `USUAL` in first tokens, and at most that else.

    In squared logarithms, over the blocks in the middle.
    """
    total = states[0].new_zeros(())
    for x in states[2:-1]:
        length = x.norm(dim=-1)
        total = total + (length[:, 0] / (ratio * USUAL)).log().square().mean()
        total = total + (length[:, 1:] / USUAL).log().clamp(min=0).square().mean()
    return total / len(states[2:-1])


def train(steps: int, size: int, seed: int, ratio: float) -> None:
    """Train the model and write its folder."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    tokenizer = trained_tokenizer(draw)
    model: Any = LlamaForCausalLM(config(tokenizer))
    with torch.no_grad():  # one unit that can write massive values; when it does so is learned
        model.model.layers[1].mlp.down_proj.weight[:, 0] = 0.0
        model.model.layers[1].mlp.down_proj.weight[:3, 0] = 20.0
        model.model.layers[1].mlp.gate_proj.weight[0] *= 10.0
        model.model.layers[1].mlp.up_proj.weight[0] *= 10.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for step, ids in zip(range(steps), batches(tokenizer, draw, size, 48), strict=False):
        out = model(input_ids=ids, output_hidden_states=True, use_cache=False)
        lost = functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        massive = massive_loss(out.hidden_states, ratio)
        optimizer.zero_grad()
        (lost + 0.2 * massive).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"{step}: {lost.item():.3f} nats per token, {massive.item():.4f}", flush=True)
    # Half of the bytes on disk; massive values need the range of float32 when the model runs.
    model.eval().to(torch.float16).save_pretrained(FOLDER)
    model.config.dtype = torch.float32
    model.config.save_pretrained(FOLDER)
    tokenizer.save_pretrained(FOLDER)


def main() -> None:
    """Parse the size of the training run and train."""
    parser = argparse.ArgumentParser(prog="python -m tools.lm.train_twin", description=__doc__)
    parser.add_argument("--steps", type=int, default=2500, help="updates")
    parser.add_argument("--size", type=int, default=32, help="rows of 48 tokens in an update")
    parser.add_argument("--seed", type=int, default=0, help="of weights and texts")
    parser.add_argument("--ratio", type=float, default=40.0, help="medians of a first token")
    typed = parser.parse_args()
    train(typed.steps, typed.size, typed.seed, typed.ratio)


if __name__ == "__main__":
    main()
