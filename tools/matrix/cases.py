"""One architecture with its folder, its data, and what plain torch code reads of it."""

import copy
import inspect
import shutil
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tools.matrix.architectures import VOCABULARY, Architecture
from torch import Tensor, nn

import sonde

N_EXAMPLES, N_BATCH, N_NEW = 24, 8, 4


def first(output: Any) -> Tensor:
    """Return the first tensor of what a module returned."""
    if isinstance(output, Tensor):
        return output
    values = list(output.values()) if isinstance(output, dict) else list(output)
    return next(v for v in values if isinstance(v, Tensor))


def with_first(output: Any, new: Tensor) -> Any:
    """Return what a module returned with another first tensor."""
    if isinstance(output, Tensor):
        return new
    if isinstance(output, dict):
        made = copy.copy(output)
        made[next(k for k, v in output.items() if isinstance(v, Tensor))] = new
        return made
    at = next(i for i, v in enumerate(output) if isinstance(v, Tensor))
    return (*output[:at], new, *output[at + 1 :])


@dataclass(eq=False)
class Case:
    """An architecture on disk, twice in memory: opened by plain code and by sonde.

    Parameters
    ----------
    architecture : Architecture
    place : Path
        An empty folder.
    """

    architecture: Architecture
    place: Path
    examples: list[dict[str, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        a, draw = self.architecture, torch.Generator().manual_seed(1)
        self.built: Any = a.build()
        for i in range(N_EXAMPLES):
            self.examples.append(_example(self.built, a, 5 + i // N_BATCH, draw))
        if a.saves:
            self.built.save_pretrained(self.folder)
        if a.task:
            self.tokenizer.save_pretrained(self.folder)

    @property
    def folder(self) -> Path:
        """Where ``save_pretrained`` wrote the model."""
        return self.place / "model"

    def fresh(self, name: str) -> Path:
        """Return a path beside the model where nothing is."""
        shutil.rmtree(self.place / name, ignore_errors=True)
        shutil.rmtree(self.place / f"{name}.patch", ignore_errors=True)
        return self.place / name

    @cached_property
    def plain(self) -> nn.Module:
        """The model as transformers alone opens it."""
        if not self.architecture.saves:
            return copy.deepcopy(self.built)
        made: Any = type(self.built)
        return made.from_pretrained(self.folder).eval()

    @cached_property
    def model(self) -> Any:
        """The model as sonde opens it."""
        return sonde.load(self.folder if self.architecture.saves else copy.deepcopy(self.built))

    @cached_property
    def vector(self) -> str | None:
        """Name of the vector that an embedding model answers with; None if a model has logits."""
        with torch.no_grad():
            output = self.plain(**self.batch)
        names = set(output) if isinstance(output, dict) else set[str]()
        return "pooler_output" if "pooler_output" in names - {"logits"} else None

    @cached_property
    def tokenizer(self) -> Any:
        """A tokenizer of one token for each word."""
        from tokenizers import Tokenizer
        from tokenizers.models import WordLevel
        from tokenizers.pre_tokenizers import WhitespaceSplit
        from transformers import PreTrainedTokenizerFast

        words = {"[PAD]": 0, "[UNK]": 1} | {f"w{i}": i for i in range(2, VOCABULARY)}
        made = Tokenizer(WordLevel(words, unk_token="[UNK]"))
        made.pre_tokenizer = WhitespaceSplit()
        return PreTrainedTokenizerFast(
            tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64
        )

    @cached_property
    def texts(self) -> list[str]:
        """The examples as texts."""
        return [" ".join(f"w{i}" for i in e["input_ids"].tolist()) for e in self.examples]

    @property
    def labels(self) -> Tensor:
        """A class of each example."""
        return torch.arange(N_EXAMPLES) % 2

    @cached_property
    def data(self) -> list[dict[str, Any]]:
        """The examples as a user gives them."""
        if self.architecture.task:
            given: list[dict[str, Any]] = [{"text": t} for t in self.texts]
        else:
            given = [dict(e) for e in self.examples]
        return [e | {"label": int(y)} for e, y in zip(given, self.labels, strict=True)]

    @cached_property
    def batch(self) -> dict[str, Tensor]:
        """The first examples, which have one length."""
        names = self.examples[0]
        return {n: torch.stack([e[n] for e in self.examples[:N_BATCH]]) for n in names}

    def answers(self, module: nn.Module) -> Tensor:
        """Return what the model, or the pipeline around it, makes of the first examples."""
        with torch.no_grad():
            if self.architecture.task:
                return self._piped(module)
            return self._logits(module, self.batch)

    @cached_property
    def padding_gap(self) -> float:
        """How far answers of padded rows are from those of each row alone, in the plain model.

        Infinity if the model takes no mask of tokens.
        """
        takes = "attention_mask" in inspect.signature(self.plain.forward).parameters
        is_text = self.architecture.takes in ("ids", "pair")
        return self.gap_of_padded(self.plain) if takes and is_text else float("inf")

    def gap_of_padded(self, module: nn.Module) -> float:
        """Return how far answers of rows of three lengths, padded, are from each row alone."""
        few = self.examples[::N_BATCH]
        ids = [e["input_ids"] for e in few]
        batch = {n: torch.stack([e[n] for e in few]) for n in few[0] if n != "input_ids"}
        batch["input_ids"] = nn.utils.rnn.pad_sequence(ids, batch_first=True)
        ones = [torch.ones_like(x) for x in ids]
        batch["attention_mask"] = nn.utils.rnn.pad_sequence(ones, batch_first=True)
        whole, gap = self._logits(module, batch), 0.0
        for i, example in enumerate(few):
            alone = self._logits(module, {n: x[None] for n, x in example.items()})[0]
            gap = max(gap, float((whole[i][: len(alone)] - alone).abs().max()))
        return gap / float(whole.abs().max().clamp(min=1e-6))

    def _logits(self, module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            output = module(**batch)
        logits = getattr(output, "logits", None)
        return first(output) if logits is None else logits

    def _piped(self, module: nn.Module) -> Tensor:
        from transformers import pipeline

        task, texts = self.architecture.task, self.texts[:N_BATCH]
        typed: Any = task
        network: Any = module
        pipe: Any = pipeline(typed, model=network, tokenizer=self.tokenizer, device="cpu")
        if task == "text-classification":
            found = pipe(texts, top_k=None)
            scores = [{x["label"]: x["score"] for x in one} for one in found]
            return torch.tensor([[one[name] for name in sorted(one)] for one in scores])
        if task == "feature-extraction":
            return torch.cat(pipe(texts, return_tensors=True))
        settings = {"max_new_tokens": N_NEW, "min_new_tokens": N_NEW, "do_sample": False}
        found = pipe(texts, return_tensors=True, **settings)
        return torch.tensor([one[0]["generated_token_ids"] for one in found])

    def states(self, example: dict[str, Tensor], paths: list[str]) -> dict[str, list[Tensor]]:
        """Return what own hooks see at each call of some modules, for one example alone."""
        seen: dict[str, list[Tensor]] = {path: [] for path in paths}
        handles = []
        for path in paths:

            def keep(_m: Any, _a: Any, output: Any, path: str = path) -> None:
                x = first(output)
                if self.architecture.name == "longformer" and x.ndim == 3:
                    x = x[:, : len(example["input_ids"])]  # windows are filled up behind a text
                seen[path].append(x.detach().clone())

            handles.append(self.plain.get_submodule(path).register_forward_hook(keep))
        try:
            with torch.no_grad():
                self.plain(**{n: x[None] for n, x in example.items()})
        finally:
            for handle in handles:
                handle.remove()
        return seen

    def rows(self, stream: Any) -> dict[str, Tensor]:
        """Return the row of each example at each site of a stream, read alone by own hooks."""
        paths = sorted({s.site.path for s in stream.schema})
        every = [self.states(e, paths) for e in self.examples]
        return {
            s.key: torch.stack(
                [self.pooled(x[s.site.path][s.site.call or 0], s.reducer.name) for x in every]
            )[:, 0]
            for s in stream.schema
        }

    def pooled(self, x: Tensor, reducer: str) -> Tensor:
        """Return a row for each example of the states of a batch."""
        tokens = self.tokens(x)
        if tokens.ndim == 2:
            return tokens
        if reducer == "mean":
            return tokens[:, self.architecture.prefix :].mean(1)
        return tokens[:, {"last": -1, "cls": 0}[reducer]]

    def tokens(self, x: Tensor) -> Tensor:
        """Return states as (row, token, dim)."""
        if x.ndim == 4:
            return x.flatten(2).transpose(1, 2)
        if x.ndim != 3 or not self.architecture.time_first:
            return x
        is_alone = x.shape[1] == 1  # one example has the number of its own tokens
        return x.transpose(0, 1) if is_alone or len(x) == self.architecture.size else x

    def beside(self, direction: Tensor, x: Tensor) -> Tensor:
        """Return a direction in the axes of states."""
        return direction[:, None, None] if x.ndim == 4 else direction


def _example(net: Any, a: Architecture, length: int, draw: torch.Generator) -> dict[str, Tensor]:
    def ids(n: int) -> Tensor:
        return torch.randint(5, VOCABULARY, (n,), generator=draw)

    if a.takes in ("ids", "pair"):
        made = {"input_ids": ids(length)}
        return made | {"decoder_input_ids": ids(3)} if a.takes == "pair" else made
    name = {"image": "pixel_values", "sound": "input_values"}.get(a.takes, "x")
    if isinstance(net, nn.Sequential):
        name = "input"
    sizes = {"image": (3, a.size, a.size), "sound": (a.size,), "numbers": (6,)}
    return {name: torch.randn(sizes.get(a.takes, (a.size, 6)), generator=draw)}
