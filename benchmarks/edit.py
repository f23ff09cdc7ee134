"""What changes of a model cost."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.against import seconds_note
from benchmarks.generating import language_model
from benchmarks.nets import VOCABULARY
from benchmarks.protocol import AGAIN, PLAIN, interleaved, ratio_of
from benchmarks.rows import Row, not_measured
from benchmarks.size import Size
from sonde.core.edit import Add, Edit
from sonde.core.inputs import Model
from sonde.data import open_inputs
from sonde.edit import Ablate, ContrastiveDecode, EmulatedFinetune, OverTrustDecode
from sonde.tap import editing, squared_gradients

ROWS_BUDGET, TEXT_BUDGET = 0.25, 0.8
MERGE_BUDGET = 0.5
DECODING_BUDGET, BEAM_BUDGET = 1.10, 1.25
STEERING_BUDGET, WRITERS_BUDGET = 1.03, 1.06


@dataclass(frozen=True)
class _Case:
    """A net, its examples, and the loss of one of them."""

    model: Model
    items: list[dict[str, Any]]
    loss: Callable[[dict[str, Any]], Tensor]
    budget: float

    def by_rows(self) -> dict[str, Tensor]:
        """Return sums of squares, as a loop of one backward for each example gives them."""
        named = dict(self.model.module.named_parameters())
        sums = {name: torch.zeros_like(p) for name, p in named.items()}
        for item in self.items:
            found = torch.autograd.grad(self.loss(item), list(named.values()), allow_unused=True)
            for name, gradient in zip(named, found, strict=True):
                if gradient is not None:
                    sums[name] += gradient.square()
        return sums


def fisher_rows(size: Size) -> list[Row]:
    """Time of a Fisher diagonal against one backward for each example."""
    found: list[Row] = []
    for what, case in _cases(size).items():
        inputs = open_inputs(case.model, case.items, batch_size=32)
        arms: dict[str, Callable[[], object]] = {
            PLAIN: case.by_rows,
            "ours": lambda case=case, inputs=inputs: squared_gradients(
                case.model, inputs, progress=False
            ),
            AGAIN: case.by_rows,
        }
        ratio = ratio_of(interleaved(arms, size.rounds, warm_ups=1), "ours")
        found.append(
            Row(
                "fisher",
                f"Fisher diagonal, {what}, against one backward for each",
                ratio.median,
                budget=case.budget,
                spread=ratio.spread,
                rounds=ratio.rounds,
                note=ratio.noise,
            )
        )
    return found


def steering_rows(size: Size) -> list[Row]:
    """Time of generation with edited states, against plain generation."""
    depth, width, new = size.pick((12, 768, 48), (2, 64, 4))
    net: Any = language_model(depth, width)
    blocks = [f"transformer.h.{i}" for i in range(depth)]
    writers = ["transformer.wte", *(f"{b}.{part}" for b in blocks for part in ("attn", "mlp"))]
    direction = torch.randn(width, generator=torch.Generator().manual_seed(0))
    ablate = Ablate(direction[:, None])
    edits = {
        "a steering vector at one block": (Add(direction, 0.01), blocks[:1], STEERING_BUDGET),
        f"directional ablation at {depth} blocks": (ablate, blocks, STEERING_BUDGET),
        f"directional ablation at {len(writers)} writers": (ablate, writers, WRITERS_BUDGET),
    }
    ids = torch.randint(1, VOCABULARY, (4, 32), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)

    def plain() -> None:
        net.generate(
            ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=False
        )

    def edited(edit: Edit, sites: list[str]) -> None:
        with editing(net, edit, sites):
            plain()

    arms: dict[str, Callable[[], object]] = {PLAIN: plain}
    arms |= {name: partial(edited, edit, sites) for name, (edit, sites, _) in edits.items()}
    taken = interleaved({**arms, AGAIN: plain}, 3 * size.rounds, warm_ups=1)
    found: list[Row] = []
    for name, (_, _, budget) in edits.items():
        ratio = ratio_of(taken, name)
        what = f"{new} tokens after 4 prompts with {name}, against plain"
        found.append(
            Row("steer", what, ratio.median, "x", budget, ratio.spread, ratio.rounds, ratio.noise)
        )
    return found


def decoding_rows(size: Size) -> list[Row]:
    """Time of decoding rules that run other models, against these models' own generation."""
    depth, width, new = size.pick((12, 768, 48), (2, 64, 4))
    large, tuned, untuned = (
        language_model(*shape) for shape in ((depth, width), *[(depth // 2, width // 2)] * 2)
    )
    rules = {
        "contrastive decoding": (ContrastiveDecode(tuned), (large, tuned)),
        "emulated tuning": (EmulatedFinetune(tuned, untuned), (large, tuned, untuned)),
    }
    ids = torch.randint(1, VOCABULARY, (4, 32), generator=torch.Generator().manual_seed(0))
    greedy = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}

    def run(net: Any, processors: list[Any]) -> None:
        net.generate(
            ids, attention_mask=torch.ones_like(ids), logits_processor=processors, **greedy
        )

    found: list[Row] = []
    for what, (rule, models) in rules.items():
        arms: dict[str, Callable[[], object]] = {
            PLAIN: lambda models=models: [run(net, []) for net in models],
            "ours": lambda rule=rule: run(large, [rule.bind(large)]),
            AGAIN: lambda models=models: [run(net, []) for net in models],
        }
        ratio = ratio_of(interleaved(arms, size.rounds, warm_ups=1), "ours")
        told = f"{what}, {new} tokens after 4 prompts, against the sum of its models' own"
        noise = ratio.noise
        found.append(
            Row(
                "decode",
                told,
                ratio.median,
                "x",
                DECODING_BUDGET,
                ratio.spread,
                ratio.rounds,
                noise,
            )
        )
    return found


def beam_rows(size: Size) -> list[Row]:
    """Time of a beam search that reads its candidates, against one with as many beams."""
    depth, width, new = size.pick((6, 384, 48), (2, 64, 4))
    net: Any = language_model(depth, width)
    rule = OverTrustDecode(retries=0)
    rows = rule.beams * rule.candidates
    ids = torch.randint(1, VOCABULARY, (1, 32), generator=torch.Generator().manual_seed(0))
    common = {"attention_mask": torch.ones_like(ids), "max_new_tokens": new, "do_sample": False}

    def plain() -> object:
        return net.generate(ids, num_beams=rows, min_new_tokens=new, **common)

    arms: dict[str, Callable[[], object]] = {
        PLAIN: plain,
        "ours": lambda: net.generate(ids, custom_generate=rule, **common),
        AGAIN: plain,
    }
    ratio = ratio_of(interleaved(arms, size.rounds, warm_ups=1), "ours")
    what = f"OverTrustDecode, {rule.beams} beams of {rule.candidates} candidates, {new} tokens"
    told = f"{what}, {depth} x {width}, against beam search with {rows} beams"
    numbers = (ratio.median, "x", BEAM_BUDGET, ratio.spread, ratio.rounds, ratio.noise)
    return [Row("beams", told, *numbers)]


def _cases(size: Size) -> dict[str, _Case]:
    n = size.pick(256, 8)
    cases = {"single rows": _rows(n, size.pick(512, 16)), "images of 17 patches": _images(n, size)}
    for length in (32, 64):
        cases[f"texts of {length} tokens"] = _texts(n // 2, length, size)
    return cases


def _rows(n: int, width: int) -> _Case:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    ).eval()
    items = [{"x": x, "label": i % 10, "id": str(i)} for i, x in enumerate(torch.randn(n, 64))]
    return _Case(Model(net), items, lambda i: _cross_entropy(net(i["x"][None]), i), ROWS_BUDGET)


def _images(n: int, size: Size) -> _Case:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    width = size.pick(192, 32)
    config: Any = ViTConfig(
        hidden_size=width,
        num_hidden_layers=size.pick(6, 2),
        num_attention_heads=width // 32,
        intermediate_size=4 * width,
        image_size=32,
        patch_size=8,
    )
    config.num_labels = 10
    net = ViTForImageClassification(config).eval()
    images = torch.randn(n, 3, 32, 32)
    items = [{"pixel_values": x, "label": i % 10, "id": str(i)} for i, x in enumerate(images)]
    model = Model(net, config=config, task="image_classifier")
    return _Case(
        model, items, lambda i: _cross_entropy(net(i["pixel_values"][None]).logits, i), ROWS_BUDGET
    )


def _texts(n: int, length: int, size: Size) -> _Case:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=size.pick(4, 2),
        n_embd=size.pick(256, 32),
        n_head=size.pick(4, 1),
        vocab_size=VOCABULARY,
        n_positions=length,
        bos_token_id=0,
        eos_token_id=0,
    )
    net = GPT2LMHeadModel(config).eval()
    texts = torch.randint(VOCABULARY, (n, length))
    items = [{"input_ids": ids, "id": str(i)} for i, ids in enumerate(texts)]

    def loss(item: dict[str, Any]) -> Tensor:
        logits: Any = net(input_ids=item["input_ids"][None]).logits
        target = item["input_ids"][1:]
        return nn.functional.cross_entropy(logits[0, :-1], target, reduction="sum")

    return _Case(Model(net, config=config, task="causal"), items, loss, TEXT_BUDGET)


def _cross_entropy(logits: Tensor, item: dict[str, Any]) -> Tensor:
    return nn.functional.cross_entropy(logits, torch.tensor([item["label"]]))


def merge_models_rows(size: Size) -> list[Row]:
    """Time and memory of merging three models from disk to disk, against mergekit."""
    from benchmarks.environments import PeerError
    from benchmarks.peers import in_peer

    name = "merge-models"
    try:
        ask = in_peer("merge_runner", size.offline)
    except PeerError as error:
        return [not_measured(name, "merging three models from disk to disk", str(error))]
    options = {"tiny": size.tiny, "rounds": size.pick(3, 1)}
    found = ask("merges", steady=True, **options)
    rows: list[Row] = []
    for rule, one in found["rules"].items():
        what = f"{rule} of three models of {found['model_mib']:.0f} MiB, disk to disk"
        apart = f"; weights apart {one['apart']:.1g}" if rule == "TIES" else ""
        rows += [
            Row(
                name,
                f"{what}, against mergekit",
                one["median"],
                budget=MERGE_BUDGET,
                spread=one["spread"],
                rounds=one["rounds"],
                note=f"{seconds_note(one)}{apart}; {found['peer']}",
            ),
            Row(
                name,
                f"{what}, memory without mapped files",
                one["mib"]["ours"],
                unit="MiB",
                budget=found["model_mib"] + 256,
                note=f"the peer {one['mib']['theirs']:.0f} MiB",
            ),
        ]
    return rows
