"""Families of small nets: what reads the tensors of a task, and a trunk that answers."""

import random
from collections.abc import Callable
from typing import Any

import torch
from tools.faultgen.parts import (
    ACTIVATIONS,
    Attention,
    Codes,
    Drop,
    Flat,
    Pool,
    PoolKind,
    Standardise,
    Trunk,
    norm,
)
from tools.faultgen.tasks import Task
from torch import Tensor, nn

Maker = Callable[[Task, random.Random], nn.Module]
DIM = 32


def _front(x: Tensor, axis: int, draw: random.Random) -> nn.Module:
    """Return what standardises raw numbers; numbers that are standardised may go in as they are."""
    off = float(x.mean().abs()) > 0.3 or not 0.5 < float(x.std()) < 2
    if not off and draw.random() < 0.6:
        return nn.Identity()
    if axis == 1 and x.ndim == 2 and draw.random() < 0.4:
        return nn.BatchNorm1d(x.shape[1], affine=False)
    return Standardise(x, axis)


class TableNet(nn.Module):
    """A table of numbers to a trunk."""

    def __init__(self, task: Task, draw: random.Random) -> None:
        super().__init__()
        x = task.rows.tensors["features_in"]
        self.front_0 = _front(x, 1, draw)
        self.trunk_0 = Trunk(x.shape[1], DIM, task.n_out, draw)

    def forward(self, features_in: Tensor) -> Tensor:
        """Return answers."""
        return self.trunk_0(self.front_0(features_in))


class ColumnNet(nn.Module):
    """A transformer over the columns of a table."""

    def __init__(self, task: Task, draw: random.Random) -> None:
        super().__init__()
        x = task.rows.tensors["features_in"]
        self.front_0 = _front(x, 1, draw)
        self.column_weight = nn.Parameter(torch.randn(x.shape[1], 16) / 2)
        self.column_bias = nn.Parameter(torch.randn(x.shape[1], 16) / 2)
        act = draw.choice(list(ACTIVATIONS))
        self.layers_0 = nn.ModuleList([Attention(16, "layer", act) for _ in range(2)])
        self.pool_0 = Pool("mean")
        self.fc_out = nn.Linear(16, task.n_out)

    def forward(self, features_in: Tensor) -> Tensor:
        """Return answers."""
        x = self.front_0(features_in)[..., None] * self.column_weight + self.column_bias
        for layer in self.layers_0:
            x = layer(x)
        return self.fc_out(self.pool_0(x))


class MixedNet(nn.Module):
    """Numbers beside embeddings of codes, to a trunk."""

    def __init__(self, task: Task, draw: random.Random) -> None:
        super().__init__()
        x = task.rows.tensors["numbers_in"]
        sizes = task.specs["codes_in"].sizes
        self.front_0 = _front(x, 1, draw)
        self.codes_0 = Codes(sizes, 4)
        self.trunk_0 = Trunk(x.shape[1] + 4 * len(sizes), DIM, task.n_out, draw)

    def forward(self, numbers_in: Tensor, codes_in: Tensor) -> Tensor:
        """Return answers."""
        x = torch.cat([self.front_0(numbers_in), self.codes_0(codes_in).flatten(1)], 1)
        return self.trunk_0(x)


class MixedAttentionNet(nn.Module):
    """Numbers as one state beside a state for each code, to attention."""

    def __init__(self, task: Task, draw: random.Random) -> None:
        super().__init__()
        x = task.rows.tensors["numbers_in"]
        self.front_0 = _front(x, 1, draw)
        self.fc_numbers = nn.Linear(x.shape[1], 16)
        self.codes_0 = Codes(task.specs["codes_in"].sizes, 16)
        act = draw.choice(list(ACTIVATIONS))
        self.layers_0 = nn.ModuleList([Attention(16, "layer", act) for _ in range(2)])
        self.pool_0 = Pool(draw.choice(("mean", "first")))
        self.fc_out = nn.Linear(16, task.n_out)

    def forward(self, numbers_in: Tensor, codes_in: Tensor) -> Tensor:
        """Return answers."""
        first = self.fc_numbers(self.front_0(numbers_in))[:, None]
        x = torch.cat([first, self.codes_0(codes_in)], 1)
        for layer in self.layers_0:
            x = layer(x)
        return self.fc_out(self.pool_0(x))


class FiveNet(nn.Module):
    """Two tensors of numbers, two of codes, and which numbers are known, to a trunk."""

    def __init__(self, task: Task, draw: random.Random) -> None:
        super().__init__()
        given, specs = task.rows.tensors, task.specs
        self.codes_0 = Codes(specs["first_codes"].sizes, 4)
        self.codes_1 = Codes(specs["rest_codes"].sizes, 4)
        n_codes = len(self.codes_0.tables) + len(self.codes_1.tables)
        n = 2 * given["known_mask"].shape[1] + 4 * n_codes
        self.trunk_0 = Trunk(n, DIM, task.n_out, draw)

    def forward(
        self,
        first_numbers: Tensor,
        rest_numbers: Tensor,
        first_codes: Tensor,
        rest_codes: Tensor,
        known_mask: Tensor,
    ) -> Tensor:
        """Return answers."""
        codes = [self.codes_0(first_codes).flatten(1), self.codes_1(rest_codes).flatten(1)]
        numbers = [first_numbers, rest_numbers, known_mask.float()]
        return self.trunk_0(torch.cat([*numbers, *codes], 1))


class SetNet(nn.Module):
    """States of members_in, pooled under their mask."""

    def __init__(self, task: Task, draw: random.Random) -> None:
        super().__init__()
        n = task.rows.tensors["members_in"].shape[-1]
        act = draw.choice(list(ACTIVATIONS))
        self.fc_member = nn.Linear(n, DIM)
        self.act_member = ACTIVATIONS[act]()
        n_layers = draw.choice((0, 1, 2))
        self.layers_0 = nn.ModuleList([Attention(DIM, "layer", act) for _ in range(n_layers)])
        self.fc_state = nn.Linear(DIM, DIM)
        self.pool_0 = Pool(draw.choice(("mean", "max")))
        self.trunk_0 = Trunk(DIM, DIM, task.n_out, draw)

    def forward(self, members_in: Tensor, member_mask: Tensor) -> Tensor:
        """Return answers."""
        x = self.act_member(self.fc_member(members_in))
        for layer in self.layers_0:
            x = layer(x, member_mask)
        return self.trunk_0(self.pool_0(self.fc_state(x), member_mask))


class GraphNet(nn.Module):
    """Messages along bonds, pooled over the atoms of the mask."""

    def __init__(self, task: Task, draw: random.Random) -> None:
        super().__init__()
        n = task.rows.tensors["atom_values"].shape[-1]
        act, kind = draw.choice(("ReLU", "GELU", "SiLU")), draw.choice(("layer", "none"))
        self.fc_atom = nn.Linear(n, DIM)
        self.own_0 = nn.ModuleList([nn.Linear(DIM, DIM) for _ in range(3)])
        self.near_0 = nn.ModuleList([nn.Linear(DIM, DIM) for _ in range(3)])
        self.norm_0 = nn.ModuleList([norm(kind, DIM) for _ in range(3)])
        self.act_0 = ACTIVATIONS[act]()
        self.pool_0 = Pool(draw.choice(("mean", "max")))
        self.fc_out = nn.Linear(DIM, task.n_out)

    def forward(self, atom_values: Tensor, bond_matrix: Tensor, atom_mask: Tensor) -> Tensor:
        """Return answers."""
        x = self.fc_atom(atom_values)
        for own, near, normed in zip(self.own_0, self.near_0, self.norm_0, strict=True):
            x = x + self.act_0(normed(own(x) + near(bond_matrix @ x / 2)))
        return self.fc_out(self.pool_0(x, atom_mask))


class RecurrentNet(nn.Module):
    """LSTM or GRU over a series."""

    def __init__(self, task: Task, draw: random.Random, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        x = task.rows.tensors["signal_in"]
        self.front_0 = _front(x, 2, draw)
        both, n = draw.random() < 0.3, draw.choice((1, 2))
        layers: Any = kind
        self.rnn_0 = layers(x.shape[2], 24, n, batch_first=True, bidirectional=both)
        self.pool_0 = Pool(draw.choice(("last", "mean")))
        self.trunk_0 = Trunk(24 * (1 + both), DIM, task.n_out, draw)

    def forward(self, signal_in: Tensor) -> Tensor:
        """Return answers."""
        return self.trunk_0(self.pool_0(self.rnn_0(self.front_0(signal_in))[0]))


def _conv_stack(n_in: int, draw: random.Random, two: bool) -> nn.Sequential:
    """Return two convolutions with norms, of sequences or of pictures."""
    conv: Any = nn.Conv2d if two else nn.Conv1d
    batch: Any = nn.BatchNorm2d if two else nn.BatchNorm1d
    instance: Any = nn.InstanceNorm2d if two else nn.InstanceNorm1d
    kind, act = draw.choice(("batch", "group", "instance", "none")), draw.choice(list(ACTIVATIONS))
    layers: list[nn.Module] = []
    for a, b in ((n_in, 16), (16, 16)):
        normed = {
            "batch": lambda b=b: batch(b),
            "group": lambda b=b: nn.GroupNorm(4, b),
            "instance": lambda b=b: instance(b, affine=True),
            "none": nn.Identity,
        }[kind]()
        layers += [conv(a, b, 3, padding=1), normed, ACTIVATIONS[act]()]
    return nn.Sequential(*layers)


class ConvSeriesNet(nn.Module):
    """Convolutions over a series."""

    def __init__(self, task: Task, draw: random.Random) -> None:
        super().__init__()
        x = task.rows.tensors["signal_in"]
        self.front_0 = _front(x, 2, draw)
        self.conv_0 = _conv_stack(x.shape[2], draw, False)
        self.down_0 = nn.AvgPool1d(4)
        self.flat_0 = Flat()
        self.trunk_0 = Trunk(16 * (x.shape[1] // 4), DIM, task.n_out, draw)

    def forward(self, signal_in: Tensor) -> Tensor:
        """Return answers."""
        x = self.conv_0(self.front_0(signal_in).transpose(1, 2))
        return self.trunk_0(self.flat_0(self.down_0(x)))


class SeriesAttentionNet(nn.Module):
    """A transformer encoder of torch over a series, with learned positions."""

    def __init__(self, task: Task, draw: random.Random) -> None:
        super().__init__()
        x = task.rows.tensors["signal_in"]
        self.front_0 = _front(x, 2, draw)
        self.fc_step = nn.Linear(x.shape[2], 16)
        self.positions_0 = nn.Parameter(torch.randn(x.shape[1], 16) / 4)
        layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True, norm_first=True)
        self.encoder_0 = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.pool_0 = Pool("mean")
        self.fc_out = nn.Linear(16, task.n_out)

    def forward(self, signal_in: Tensor) -> Tensor:
        """Return answers."""
        x = self.fc_step(self.front_0(signal_in)) + self.positions_0
        return self.fc_out(self.pool_0(self.encoder_0(x)))


class History(nn.Module):
    """The past of a series as one state: GRU, convolutions, or all steps."""

    def __init__(self, x: Tensor, draw: random.Random, kind: str) -> None:
        super().__init__()
        self.front_0 = _front(x, 2, draw)
        self.body_0: nn.Module
        if kind == "gru":
            self.body_0, self.n_out = nn.GRU(x.shape[2], 24, batch_first=True), 24
        elif kind == "conv":
            self.body_0, self.n_out = _conv_stack(x.shape[2], draw, False), 16 * x.shape[1]
        else:
            self.body_0, self.n_out = nn.Identity(), x.shape[1] * x.shape[2]
        self.kind = kind
        self.flat_0 = Flat()
        self.pool_0 = Pool("last")

    def forward(self, history_in: Tensor) -> Tensor:
        """Return one state for each row."""
        x = self.front_0(history_in)
        if self.kind == "gru":
            return self.pool_0(self.body_0(x)[0])
        return self.flat_0(self.body_0(x.transpose(1, 2)))


class HistoryNet(nn.Module):
    """The past of a series to its next values."""

    def __init__(self, task: Task, draw: random.Random, kind: str) -> None:
        super().__init__()
        self.past_0 = History(task.rows.tensors["history_in"], draw, kind)
        self.trunk_0 = Trunk(self.past_0.n_out, DIM, task.n_out, draw)

    def forward(self, history_in: Tensor) -> Tensor:
        """Return answers."""
        return self.trunk_0(self.past_0(history_in))


class CalendarNet(nn.Module):
    """The past of a series and its hour and day, to its next values."""

    def __init__(self, task: Task, draw: random.Random, kind: str) -> None:
        super().__init__()
        sizes = task.specs["calendar_in"].sizes
        self.past_0 = History(task.rows.tensors["history_in"], draw, kind)
        self.codes_0 = Codes(sizes, 4)
        n = self.past_0.n_out + 4 * len(sizes)
        self.trunk_0 = Trunk(n, DIM, task.n_out, draw)

    def forward(self, history_in: Tensor, calendar_in: Tensor) -> Tensor:
        """Return answers."""
        codes = self.codes_0(calendar_in).flatten(1)
        return self.trunk_0(torch.cat([self.past_0(history_in), codes], 1))


class ConvNet(nn.Module):
    """Convolutions over pictures."""

    def __init__(self, task: Task, draw: random.Random) -> None:
        super().__init__()
        x = task.rows.tensors["pixels_in"]
        self.front_0 = _front(x, 1, draw)
        self.conv_0 = _conv_stack(x.shape[1], draw, True)
        self.down_0 = nn.AvgPool2d(2) if draw.random() < 0.5 else nn.MaxPool2d(2)
        self.flat_0 = Flat()
        n = 16 * (x.shape[2] // 2) * (x.shape[3] // 2)
        self.trunk_0 = Trunk(n, DIM, task.n_out, draw)

    def forward(self, pixels_in: Tensor) -> Tensor:
        """Return answers."""
        x = self.down_0(self.conv_0(self.front_0(pixels_in)))
        return self.trunk_0(self.flat_0(x))


class PatchNet(nn.Module):
    """A transformer over patches of pictures."""

    def __init__(self, task: Task, draw: random.Random) -> None:
        super().__init__()
        x = task.rows.tensors["pixels_in"]
        self.front_0 = _front(x, 1, draw)
        cut = max(2, x.shape[2] // 4)
        self.patch_0 = nn.Conv2d(x.shape[1], DIM, cut, cut)
        n = (x.shape[2] // cut) * (x.shape[3] // cut)
        self.positions_0 = nn.Parameter(torch.randn(n, DIM) / 4)
        act = draw.choice(list(ACTIVATIONS))
        self.layers_0 = nn.ModuleList([Attention(DIM, "layer", act) for _ in range(2)])
        self.pool_0 = Pool("mean")
        self.fc_out = nn.Linear(DIM, task.n_out)

    def forward(self, pixels_in: Tensor) -> Tensor:
        """Return answers."""
        x = self.patch_0(self.front_0(pixels_in)).flatten(2).transpose(1, 2) + self.positions_0
        for layer in self.layers_0:
            x = layer(x)
        return self.fc_out(self.pool_0(x))


class MapNet(nn.Module):
    """A small U-net: pictures to a map of classes."""

    def __init__(self, task: Task, draw: random.Random) -> None:
        super().__init__()
        x = task.rows.tensors["pixels_in"]
        self.down_0 = _conv_stack(x.shape[1], draw, True)
        self.down_1 = _conv_stack(16, draw, True)
        self.up_0 = nn.ConvTranspose2d(16, 16, 2, 2)
        self.mix_0 = nn.Conv2d(32, 16, 3, padding=1)
        self.act_0 = nn.ReLU()
        self.fc_out = nn.Conv2d(16, task.n_out, 1)

    def forward(self, pixels_in: Tensor) -> Tensor:
        """Return logits (row, class, height, width)."""
        wide = self.down_0(pixels_in)
        deep = self.down_1(nn.functional.max_pool2d(wide, 2))
        both = torch.cat([wide, self.up_0(deep)], 1)
        return self.fc_out(self.act_0(self.mix_0(both)))


class TokenNet(nn.Module):
    """Embeddings of tokens, through attention or without, pooled under the mask."""

    def __init__(self, task: Task, draw: random.Random, n_layers: int) -> None:
        super().__init__()
        n, most = task.specs["input_ids"].sizes[0], task.rows.tensors["input_ids"].shape[1]
        self.table_0 = nn.Embedding(n, DIM)
        self.positions_0 = nn.Embedding(most, DIM) if n_layers else None
        act = draw.choice(list(ACTIVATIONS))
        kinds = draw.choice(("layer", "rms"))
        self.layers_0 = nn.ModuleList([Attention(DIM, kinds, act) for _ in range(n_layers)])
        self.drop_0 = Drop(draw.choice((0.0, 0.2)))
        kind: PoolKind = draw.choice(("mean", "max", "first")) if n_layers else "mean"
        self.pool_0 = Pool(kind)
        self.trunk_0 = Trunk(DIM, DIM, task.n_out, draw)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return answers."""
        x = self.table_0(input_ids)
        if self.positions_0 is not None:
            x = x + self.positions_0(torch.arange(input_ids.shape[1]))
        for layer in self.layers_0:
            x = layer(x, attention_mask)
        return self.trunk_0(self.pool_0(self.drop_0(x), attention_mask))


class TaggerNet(nn.Module):
    """Tokens to a class for each: LSTM, or attention."""

    def __init__(self, task: Task, draw: random.Random, kind: str) -> None:
        super().__init__()
        n, most = task.specs["input_ids"].sizes[0], task.rows.tensors["input_ids"].shape[1]
        self.table_0 = nn.Embedding(n, DIM)
        self.positions_0 = None if kind == "lstm" else nn.Embedding(most, DIM)
        self.rnn_0 = nn.LSTM(DIM, DIM, batch_first=True) if kind == "lstm" else None
        self.layers_0 = nn.ModuleList(
            [Attention(DIM, "layer", "GELU") for _ in range(0 if kind == "lstm" else 2)]
        )
        self.fc_out = nn.Linear(DIM, task.n_out)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return logits (row, token, class)."""
        x = self.table_0(input_ids)
        if self.rnn_0 is not None or self.positions_0 is None:
            return self.fc_out(x if self.rnn_0 is None else self.rnn_0(x)[0])
        x = x + self.positions_0(torch.arange(input_ids.shape[1]))
        for layer in self.layers_0:
            x = layer(x, attention_mask)
        return self.fc_out(x)


class TowersNet(nn.Module):
    """A tower for the query and one for candidates; their scores are the answers."""

    def __init__(self, task: Task, draw: random.Random) -> None:
        super().__init__()
        a = task.rows.tensors["query_in"].shape[1]
        b = task.rows.tensors["candidates_in"].shape[2]
        act = draw.choice(list(ACTIVATIONS))
        self.query_0 = nn.Sequential(nn.Linear(a, DIM), ACTIVATIONS[act](), nn.Linear(DIM, DIM))
        self.item_0 = nn.Sequential(nn.Linear(b, DIM), ACTIVATIONS[act](), nn.Linear(DIM, DIM))

    def forward(self, query_in: Tensor, candidates_in: Tensor) -> Tensor:
        """Return a score for each candidate."""
        left = nn.functional.normalize(self.query_0(query_in), dim=-1)
        right = nn.functional.normalize(self.item_0(candidates_in), dim=-1)
        return 10 * (right @ left[..., None])[..., 0]


def bert(task: Task, draw: random.Random) -> nn.Module:
    """Return a small BERT of transformers with the task's own names of tensors."""
    from transformers import BertConfig, BertForSequenceClassification

    config: Any = BertConfig(
        vocab_size=task.specs["input_ids"].sizes[0],
        hidden_size=DIM,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * DIM,
        max_position_embeddings=64,
        hidden_dropout_prob=draw.choice((0.0, 0.1)),
    )
    config.num_labels = task.n_out
    return BertForSequenceClassification(config)


FAMILIES: dict[str, dict[str, Maker]] = {
    "table": {"mlp": TableNet, "column transformer": ColumnNet},
    "several numbers": {"mlp": TableNet, "column transformer": ColumnNet},
    "mixed": {"mlp with embeddings": MixedNet, "mixed transformer": MixedAttentionNet},
    "five inputs": {"five inputs": FiveNet},
    "set": {"set net": SetNet},
    "graphs": {"graph net": GraphNet},
    "series": {
        "lstm": lambda t, d: RecurrentNet(t, d, nn.LSTM),
        "gru": lambda t, d: RecurrentNet(t, d, nn.GRU),
        "conv 1-d": ConvSeriesNet,
        "series transformer": SeriesAttentionNet,
    },
    "forecast": {
        "forecast gru": lambda t, d: _history(t, d, "gru"),
        "forecast conv": lambda t, d: _history(t, d, "conv"),
        "forecast mlp": lambda t, d: _history(t, d, "flat"),
    },
    "pictures": {"conv 2-d": ConvNet, "patch transformer": PatchNet},
    "maps": {"u-net": MapNet},
    "texts": {
        "bag of embeddings": lambda t, d: TokenNet(t, d, 0),
        "text transformer": lambda t, d: TokenNet(t, d, 2),
        "bert": bert,
    },
    "tagging": {
        "tagger lstm": lambda t, d: TaggerNet(t, d, "lstm"),
        "tagger transformer": lambda t, d: TaggerNet(t, d, "attention"),
    },
    "retrieval": {"two towers": TowersNet},
}


def _history(task: Task, draw: random.Random, kind: str) -> nn.Module:
    made = CalendarNet if "calendar_in" in task.specs else HistoryNet
    return made(task, draw, kind)
