"""States whose tokens lie otherwise: on one axis, in packed sequences, in windows filled up."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import LongformerConfig, LongformerModel, MixtralConfig, MixtralForCausalLM

import sonde
from sonde.core.edit import Scale
from sonde.core.errors import SiteError, SondeError
from sonde.tap import Tap, editing

LENGTHS = (9, 4, 6, 7, 3)


def _texts(pad: int = 0) -> tuple[Tensor, Tensor]:
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    ids = torch.randint(3, 40, mask.shape, generator=torch.Generator().manual_seed(1))
    return ids.masked_fill(~mask, pad), mask.long()


def _rows(model: nn.Module, data: dict, site: str, reducer: str = "tokens") -> Tensor:
    (batch,) = sonde.read(model, data, site, reducer)
    (key,) = batch.rows
    if reducer == "tokens":
        where = [(i, k) for i, n in enumerate(LENGTHS) for k in range(n)]
        found = zip(batch.example[key].tolist(), batch.position[key].tolist(), strict=True)
        assert [*found] == where
    return batch.rows[key]


def _mixture() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 5}
    return MixtralForCausalLM(MixtralConfig(vocab_size=40, **sizes, **heads)).eval()


def _at_each_text(model: nn.Module, module: nn.Module, port: str, ids: Tensor) -> list[Tensor]:
    """Return the states of each text alone, without padding, by a hook on a module."""
    found: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        found.append(args[0] if port else output[0] if isinstance(output, tuple) else output)

    handle = module.register_forward_hook(keep)
    with torch.no_grad():
        for row, n in zip(ids, LENGTHS, strict=True):
            model(input_ids=row[None, :n])
    handle.remove()
    return [x.flatten(0, -2)[:n] for x, n in zip(found, LENGTHS, strict=True)]


@pytest.mark.slow
@pytest.mark.truth("own hooks on each text alone")
@pytest.mark.parametrize("part", ["gate", "gate:in", "experts"])
def test_a_mixture_is_read_at_its_router_and_experts(part: str) -> None:
    mixture, (ids, mask) = _mixture(), _texts()
    site = f"model.layers.0.mlp.{part}"
    path, _, port = site.partition(":")
    alone = _at_each_text(mixture, mixture.get_submodule(path), port, ids)
    data = {"input_ids": ids, "attention_mask": mask}
    torch.testing.assert_close(_rows(mixture, data, site), torch.cat(alone))
    means = torch.stack([x.mean(0) for x in alone])
    torch.testing.assert_close(_rows(mixture, data, site, "mean"), means)
    with Tap(mixture, site, "mean") as tap, torch.no_grad():
        tap.run(**data)
    torch.testing.assert_close(next(iter(tap.rows.values())), means)


class _Sorting(nn.Module):
    """A model whose part sees all tokens in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.part = nn.Embedding(40, 6), nn.Linear(6, 5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.table(input_ids).flatten(0, 1)
        order = x[:, 0].argsort()
        return self.part(x[order])[order.argsort()].view(*input_ids.shape, -1)


def test_tokens_in_an_unknown_order_are_refused() -> None:
    torch.manual_seed(0)
    ids, mask = _texts()
    with pytest.raises(SiteError, match="in an unknown order"):
        _rows(_Sorting().eval(), {"input_ids": ids, "attention_mask": mask}, "part")


class _Packed(nn.Module):
    """Reads texts without their padding."""

    def __init__(
        self, kind: type[nn.RNNBase] = nn.LSTM, *, batch_first: bool = True, sorts: bool = False
    ) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 6)
        self.rnn = kind(6, 7, batch_first=batch_first)
        self.batch_first, self.sorts = batch_first, sorts

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.run(input_ids, attention_mask.sum(1))

    def run(self, ids: Tensor, lengths: Tensor) -> Tensor:
        x = self.table(ids)
        if self.sorts:
            lengths, order = lengths.sort(descending=True)
            x = x[order]
        x = x if self.batch_first else x.transpose(0, 1)
        packed = pack_padded_sequence(x, lengths, self.batch_first, enforce_sorted=self.sorts)
        out = pad_packed_sequence(self.rnn(packed)[0], self.batch_first)[0]
        return out if self.batch_first else out.transpose(0, 1)


class _ByLengths(_Packed):
    def forward(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        return self.run(input_ids, lengths)


def _alone(model: _Packed) -> list[Tensor]:
    """Return the states of each text, run alone and not packed."""
    rnn = type(model.rnn)(6, 7, batch_first=True)
    rnn.load_state_dict(model.rnn.state_dict())
    with torch.no_grad():
        rows = zip(_texts()[0], LENGTHS, strict=True)
        return [rnn(model.table(row[None, :n]))[0][0] for row, n in rows]


@pytest.mark.truth("the recurrent layer on each text alone, not packed")
@pytest.mark.parametrize(("kind", "batch_first"), [(nn.LSTM, True), (nn.GRU, False)])
def test_packed_states_are_read_in_the_order_of_the_texts(
    kind: type[nn.RNNBase], batch_first: bool
) -> None:
    torch.manual_seed(0)
    ids, mask = _texts()
    model = _Packed(kind, batch_first=batch_first).eval()
    data, alone = {"input_ids": ids, "attention_mask": mask}, _alone(model)
    torch.testing.assert_close(_rows(model, data, "rnn"), torch.cat(alone))
    last = torch.stack([x[-1] for x in alone])
    torch.testing.assert_close(_rows(model, data, "rnn", "last"), last)
    means = torch.stack([x.mean(0) for x in alone])
    with Tap(model, "rnn", "mean") as tap, torch.no_grad():
        tap.run(**data)
    torch.testing.assert_close(next(iter(tap.rows.values())), means)


@pytest.mark.truth("the recurrent layer on each text alone, not packed")
def test_lengths_of_packed_states_tell_what_is_real_without_a_mask() -> None:
    torch.manual_seed(0)
    model = _ByLengths().eval()
    data, alone = {"input_ids": _texts()[0], "lengths": torch.tensor(LENGTHS)}, _alone(model)
    torch.testing.assert_close(_rows(model, data, "rnn"), torch.cat(alone))
    means = torch.stack([x.mean(0) for x in alone])
    torch.testing.assert_close(_rows(model, data, "rnn", "mean"), means)


def test_packed_states_of_sorted_texts_are_refused() -> None:
    torch.manual_seed(0)
    ids, mask = _texts()
    for model, more in ((_Packed(sorts=True), {"attention_mask": mask}),
                        (_ByLengths(sorts=True), {"lengths": torch.tensor(LENGTHS)})):  # fmt: skip
        with pytest.raises(SondeError, match="enforce_sorted"):
            _rows(model.eval(), {"input_ids": ids, **more}, "rnn")


@pytest.mark.truth("an edit by hand of the packed data")
def test_an_edit_of_packed_states_goes_on_packed() -> None:
    torch.manual_seed(0)
    ids, mask = _texts()
    model = _Packed().eval()

    def by_hand(_: nn.Module, args: Any, output: Any) -> Any:
        packed, rest = output
        return packed._replace(data=packed.data * 3.0), rest

    handle = model.rnn.register_forward_hook(by_hand)
    expected = model(ids, mask)
    handle.remove()
    with editing(model, Scale(3.0), "rnn"):
        torch.testing.assert_close(model(input_ids=ids, attention_mask=mask), expected)
    last = model(ids, mask)
    for row, n in zip(last, LENGTHS, strict=True):
        row.data[n - 1] *= 3.0
    with editing(model, Scale(3.0), "rnn", where="last"):
        torch.testing.assert_close(model(input_ids=ids, attention_mask=mask), last)


def _longformer() -> LongformerModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 12, "intermediate_size": 10, "num_hidden_layers": 2}
    more = {"attention_window": [4, 4], "max_position_embeddings": 64, "pad_token_id": 1}
    config = LongformerConfig(vocab_size=40, num_attention_heads=2, **sizes, **more)
    return LongformerModel(config).eval()


@pytest.mark.slow
@pytest.mark.truth("own hooks on each text alone, cut at its own length")
def test_states_in_windows_are_read_at_the_own_length_of_the_texts() -> None:
    model = _longformer()
    ids, mask = _texts(pad=1)
    site, found = "encoder.layer.1.attention.self.query", list[Tensor]()

    def keep(_: nn.Module, args: Any, output: Tensor) -> None:
        found.append(output.transpose(0, 1).clone())  # it is changed in place later

    model.get_submodule(site).register_forward_hook(keep)
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask)
    assert found[0].shape[1] > max(LENGTHS)
    alone = [x[:n] for x, n in zip(found[0], LENGTHS, strict=True)]
    data = {"input_ids": ids, "attention_mask": mask}
    torch.testing.assert_close(_rows(model, data, site), torch.cat(alone))
    means = torch.stack([x.mean(0) for x in alone])
    torch.testing.assert_close(_rows(model, data, site, "mean"), means)


class _Fronted(LongformerModel):
    """Fills texts up at the front, against its own configuration."""

    def _pad_to_window_size(self, *args: Any, **kwargs: Any) -> Any:
        more, *rest = super()._pad_to_window_size(*args, **kwargs)
        return more, *(x.roll(more, 1) if isinstance(x, Tensor) else x for x in rest)


def test_states_in_windows_that_begin_elsewhere_are_refused() -> None:
    model = _Fronted(_longformer().config).eval()
    ids, mask = _texts(pad=1)
    with pytest.raises(SiteError, match="whole windows"):
        _rows(model, {"input_ids": ids, "attention_mask": mask}, "encoder.layer.1")


@pytest.mark.parametrize("embedded", [False, True])
def test_a_tap_refuses_windows_that_the_model_fills_up(embedded: bool) -> None:
    ids, _ = _texts(pad=1)
    model = _longformer()
    states = {"inputs_embeds": model.get_input_embeddings()(ids).detach()}
    with (
        pytest.raises(SiteError, match="pads texts itself"),
        Tap(model, "encoder.layer.1", "mean") as tap,
    ):
        tap.run(**(states if embedded else {"input_ids": ids}))
