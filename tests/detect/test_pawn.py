"""PAWN: its network against modules of torch, its training, and texts through a language model."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sonde
from detect.bigrams import model
from sonde.core.errors import InputError, ShapeError, StateError
from sonde.core.state import map_tensors
from sonde.detect import PAWN
from sonde.detect._token_net import NetShape, TextTokens, text_logits, token_logits
from sonde.engine.running import Running
from sonde.metrics import auroc
from sonde.store import Store, write_store
from sonde.tap import live_stream
from tap_inputs import Texts as TextInputs

SHAPE = NetShape(dim=6, features=8, gates=4, hidden=10, depth=2)
SMALL: dict[str, Any] = {
    "features": 8,
    "gates": 4,
    "hidden": 10,
    "depth": 2,
    "batch": 8,
    "rate": 5e-3,
}


class Module(nn.Module):
    """The network on padded texts, in modules of torch: gates at -inf where a text is over."""

    def __init__(self, shape: NetShape, values) -> None:
        super().__init__()
        self.shape = shape
        self.metric, self.gate, self.head = (self.part(widths) for widths in shape.parts())
        with torch.no_grad():
            for mine, value in zip(self.parameters(), values, strict=True):
                mine.copy_(value)

    def part(self, widths):
        layers = []
        for n_in, n_out in itertools.pairwise(widths[:-1]):
            layers += [nn.Linear(n_in, n_out), nn.LayerNorm(n_out, bias=False), nn.GELU()]
        return nn.Sequential(*layers, nn.Linear(*widths[-2:]))

    def forward(self, states: Tensor, metrics: Tensor, mask: Tensor, max_length: int) -> Tensor:
        before = torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], dim=1)
        place = torch.arange(states.shape[1]).expand(len(states), -1)[..., None] / max_length
        gates = self.gate(torch.cat([before, states, place.to(states)], dim=2))
        weights = gates.masked_fill(~mask[..., None], -math.inf).softmax(dim=1)
        weights = weights.repeat_interleave(self.shape.features // self.shape.gates, dim=2)
        return self.head((weights * self.metric(metrics)).sum(1))[:, 0]


def made_up(lengths, seed=0, dim=6, extra=3):
    """Return padded states, metrics and mask, and the same rows text after text."""
    rng = torch.Generator().manual_seed(seed)
    shape = len(lengths), max(lengths) + extra
    states = torch.randn(*shape, dim, generator=rng, dtype=torch.float64)
    metrics = torch.randn(*shape, 7, generator=rng, dtype=torch.float64)
    mask = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
    text, position = mask.nonzero().T
    return (states, metrics, mask), (states[mask], metrics[mask], text, position + 1)


def weights(seed=3, shape=SHAPE):
    return [v.double() for v in shape.weights(seed)]


@pytest.mark.parametrize(("dim", "expected"), [(768, 989_953), (2048, 1_645_313)])
@pytest.mark.truth("the published sizes of the head, 989K and 1.6M")
def test_number_of_weights(dim, expected):
    training: Any = PAWN().reads()["trained"]
    shape = training.start(dim).shape
    assert sum(v.numel() for v in shape.weights(0)) == expected
    module = Module(shape, shape.weights(0))
    assert sum(p.numel() for p in module.parameters()) == expected


@pytest.mark.parametrize("gates", [1, 4, 8])
@pytest.mark.truth("modules of torch on padded texts")
def test_the_network(gates):
    shape = NetShape(6, 8, gates, 10, 2)
    padded, rows = made_up([5, 1, 9])
    expected = Module(shape, weights(shape=shape)).double()(
        padded[0], padded[1][..., :5], padded[2], 12
    )
    x, y, text, position = rows
    found = text_logits(weights(shape=shape), shape, TextTokens.of(x, y[:, :5], text, position, 12))
    torch.testing.assert_close(found, expected.detach(), rtol=1e-9, atol=1e-9)


def test_order_of_rows_and_other_texts_do_not_matter():
    _, (x, y, text, position) = made_up([5, 1, 9])
    whole = text_logits(weights(), SHAPE, TextTokens.of(x, y[:, :5], text, position, 12))
    mix = torch.randperm(15, generator=torch.Generator().manual_seed(0))
    mixed = TextTokens.of(x[mix], y[mix, :5], text[mix], position[mix], 12)
    torch.testing.assert_close(text_logits(weights(), SHAPE, mixed), whole)
    for i in range(3):
        mine = text == i
        alone = TextTokens.of(x[mine], y[mine, :5], text[mine] * 0, position[mine], 12)
        torch.testing.assert_close(text_logits(weights(), SHAPE, alone), whole[i : i + 1])


@pytest.mark.truth("the head on the plain mean of the metric features")
def test_equal_gates_are_the_plain_mean():
    values = weights()
    last = len(values) - 8 - 2  # the gate net ends before the head's 8 tensors
    values[last], values[last + 1] = values[last] * 0, values[last + 1] * 0 + 0.7
    _, (x, y, text, position) = made_up([5, 3])
    found = text_logits(values, SHAPE, TextTokens.of(x, y[:, :5], text, position, 12))
    module = Module(SHAPE, values).double()
    means = torch.stack([module.metric(y[text == i, :5]).mean(0) for i in range(2)])
    torch.testing.assert_close(found, module.head(means)[:, 0].detach())


def test_only_the_first_tokens_of_a_text_count():
    _, (x, y, text, position) = made_up([9, 4])
    first = position <= 5
    cut = TextTokens.of(x[first], y[first, :5], text[first], position[first], 5)
    full = TextTokens.of(x, y[:, :5], text, position, 5)
    assert torch.equal(text_logits(weights(), SHAPE, full), text_logits(weights(), SHAPE, cut))


@pytest.mark.truth("texts one by one")
def test_chunks_are_whole_texts(monkeypatch):
    _, (x, y, text, position) = made_up([3, 4, 1, 2, 8, 1])
    texts = TextTokens.of(x, y[:, :5], text, position, 12)
    monkeypatch.setattr("sonde.detect._token_net.CHUNK", 6)
    parts = list(texts.chunks(3))
    assert [p.counts.tolist() for p in parts] == [[3], [4, 1], [2], [8], [1]]
    joined = torch.cat([text_logits(weights(), SHAPE, p) for p in parts])
    torch.testing.assert_close(joined, text_logits(weights(), SHAPE, texts))


def test_dropout_leaves_every_text_a_token():
    _, (x, y, text, position) = made_up([1, 40, 200])
    texts = TextTokens.of(x, y[:, :5], text, position, 300)
    source = torch.Generator().manual_seed(0)
    assert len(texts.dropped(0.999, source)) <= 8
    for _ in range(20):
        kept = texts.dropped(0.9, source)
        assert torch.unique(texts.text[kept]).tolist() == [0, 1, 2]
    share = 1 - len(texts.dropped(0.15, source)) / 241
    assert share == pytest.approx(0.15, abs=0.08)


@pytest.mark.truth("AdamW, clipped gradients and weighted cross-entropy of torch on padded texts")
def test_one_walk_is_that_of_torch():
    lengths = [4, 2, 7, 3, 5, 1, 6]
    padded, (x, y, text, position) = made_up(lengths)
    kind = torch.tensor([1, 0, 0, 1, 0, 0, 0])
    detector = PAWN(**{**SMALL, "batch": 3, "dropout": 0.0, "epochs": 1, "clip": 0.05})
    scorer = detector.fit(
        {"states": x.float(), "metrics": y.float()},
        kind[text],
        ids=[f"text {i}" for i in text.tolist()],
        position=position,
    )
    module = Module(SHAPE, SHAPE.weights(0))
    optimizer = torch.optim.AdamW(module.parameters(), 5e-3, weight_decay=1e-2)
    losses = []
    _, order = torch.unique(_words(scorer, text, x, y, position), dim=0, return_inverse=True)
    arrival = torch.zeros(7, dtype=torch.int64).scatter_(0, order, text)
    for part in arrival.split(3):
        found = module(
            padded[0][part].float(), padded[1][part, :, :5].float(), padded[2][part], 512
        )
        target = kind[part].float() * 0.8 + 0.1
        loss = nn.functional.binary_cross_entropy_with_logits(
            found, target, pos_weight=torch.tensor(5 / 2)
        )
        losses += [float(loss.detach()) * len(part)]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 0.05)
        optimizer.step()
    shift = module.gate[-1].bias  # a softmax does not see it: its gradient is rounding alone
    for mine, theirs in zip(scorer.values, module.parameters(), strict=True):
        if theirs is not shift:
            torch.testing.assert_close(mine, theirs.detach(), rtol=1e-3, atol=2e-5)
    assert float(scorer) == pytest.approx(sum(losses) / 7, rel=1e-4)
    assert scorer.n == 7


def _words(scorer, text, x, y, position):
    stream = sonde.Stream.of(x, ids=[f"text {i}" for i in text.tolist()], position=position)
    (batch,) = stream.batches(0, len(x))
    return torch.column_stack([batch.column("ids", "x"), batch.column("occurrence", "x")])


def attended(n, seed):
    """Texts whose kind shows at the tokens that a state marks, and is hidden at the others."""
    rng = torch.Generator().manual_seed(seed)
    kind = torch.arange(n) % 2
    length = 12
    marked = torch.rand(n, length, generator=rng) < 0.25
    marked[:, 0] = True
    signal = torch.randn(n, length, generator=rng) * 0.5
    shift = (2.0 * kind - 1.0)[:, None].expand(n, length)
    signal = signal + torch.where(marked, shift, -0.5 * shift)
    metrics = torch.randn(n, length, 7, generator=rng) * 0.1
    metrics[..., 0] = signal
    states = torch.randn(n, length, 4, generator=rng) * 0.1
    states[..., 0] = marked.float()
    text = torch.arange(n).repeat_interleave(length)
    position = torch.arange(1, length + 1).repeat(n)
    return states.flatten(0, 1), metrics.flatten(0, 1), text, position, kind


def scored(scorer, states, metrics, text, position):
    x = (states, metrics)
    return scorer.reduced(scorer.score(x, position), text, "own", x, position).score


@pytest.mark.slow
def test_weights_learn_where_to_look():
    states, metrics, text, position, kind = attended(160, 0)
    detector = PAWN(features=16, gates=16, hidden=16, depth=1, epochs=8, batch=16, rate=1.5e-2)
    ids = [f"text {i}" for i in text.tolist()]
    scorer = detector.fit({"a": states, "b": metrics}, kind[text], ids=ids, position=position)
    states, metrics, text, position, kind = attended(120, 1)
    found = scored(scorer, states, metrics, text, position)
    mean = torch.zeros(120).index_add_(0, text, metrics[:, 0]) / 12
    figures = [auroc(s, kind).value for s in (found, mean.double())]
    assert figures[0] > 0.95
    assert figures[0] > figures[1] + 0.03


@pytest.mark.truth("the network on a text of one token")
def test_a_token_scores_as_a_text_of_its_own():
    _, (x, y, text, position) = made_up([5, 3])
    kind = torch.tensor([0, 1])[text]
    ids = [f"text {i}" for i in text.tolist()]
    scorer = PAWN(**SMALL, epochs=1).fit({"a": x, "b": y}, kind, ids=ids, position=position)
    scores = scorer.score((x, y), position)
    each = torch.arange(8)
    torch.testing.assert_close(scored(scorer, x, y, each, position), scores)
    values = [v.double() for v in scorer.values]
    torch.testing.assert_close(token_logits(values, scorer.shape, y[:, :5]), scores)
    largest = scorer.reduced(scores, text, "max", (x, y), position).score
    assert largest.tolist() == [float(scores[:5].max()), float(scores[5:].max())]


def test_a_token_that_is_not_finite_makes_its_text_infinite():
    _, (x, y, text, position) = made_up([5, 3])
    kind, ids = torch.tensor([0, 1])[text], [f"text {i}" for i in text.tolist()]
    scorer = PAWN(**SMALL, epochs=1).fit({"a": x, "b": y}, kind, ids=ids, position=position)
    plain = scored(scorer, x, y, text, position)
    x = x.clone()
    x[1, 2] = math.nan
    found = scored(scorer, x, y, text, position)
    assert found[0] == math.inf
    assert torch.equal(found[1:], plain[1:])


# through a language model ------------------------------------------------------------------------


def human_and_machine(n, seed):
    """Texts that go on by 1, as the machine writes, and texts that jump about."""
    rng = torch.Generator().manual_seed(seed)
    items = []
    for i in range(n):
        length = 6 + i % 5
        start = int(torch.randint(3, 40, (1,), generator=rng))
        jumps = torch.randint(3, 60, (length,), generator=rng).tolist()
        items.append([start + k for k in range(length)] if i % 2 else jumps)
    return items, [i % 2 for i in range(n)]


def opened(items, labels=None, side="right"):
    inputs = TextInputs(items, special=False, side=side, labels=labels)
    return live_stream(model(), inputs, **PAWN().reading(), logits=False)


@pytest.mark.slow
def test_machine_texts_score_high(tmp_path):
    items, labels = human_and_machine(96, 0)
    detector = PAWN(**{**SMALL, "rate": 2e-2}, epochs=4)
    write_store(opened(items, labels), tmp_path / "rows")
    fitted = sonde.fit(detector, Store(tmp_path / "rows"), progress=False)
    live = sonde.fit(detector, opened(items, labels), progress=False)
    fitted.save(tmp_path / "probe.sonde")
    loaded = sonde.Fitted.load(tmp_path / "probe.sonde")
    items, labels = human_and_machine(60, 1)
    tables = [
        sonde.score(loaded, opened(items), progress=False),
        sonde.score(live, opened(items), progress=False),
    ]
    scores = [torch.tensor(t.column("score").to_pylist()) for t in tables]
    assert len(scores[0]) == 60
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-3, atol=1e-3)
    machine = torch.tensor(labels) == 1
    assert auroc(scores[0], labels).value > 0.9
    p = torch.tensor(tables[0].column("p").to_pylist())
    assert float(p[machine].median()) < 0.1


def test_more_sites_or_other_sites_are_refused():
    items, labels = human_and_machine(12, 0)
    inputs = TextInputs(items, special=False, labels=labels)
    stream = live_stream(model(), inputs, ["transformer.h.*"], "tokens", logits=False)
    with pytest.raises(ShapeError, match=r"7 token metrics at a second, got rows of width 32"):
        sonde.fit(PAWN(**SMALL, epochs=1), stream, progress=False, calibrate=0)


# refusals ----------------------------------------------------------------------------------------


def test_texts_of_one_kind_are_refused():
    _, (x, y, text, position) = made_up([5, 3])
    ids = [f"text {i}" for i in text.tolist()]
    with pytest.raises(InputError, match=r"label 1 and of another, got 0 and 2"):
        PAWN(**SMALL).fit({"a": x, "b": y}, text * 0, ids=ids, position=position)
    with pytest.raises(InputError, match=r"label 1 and of another, got 0 and 0"):
        PAWN(**SMALL).fit({"a": x, "b": y}, ids=ids, position=position)


def test_texts_whose_tokens_lie_apart_are_refused():
    text, place = torch.arange(600) // 10, torch.arange(600) % 10
    rows = {"states": torch.zeros(600, 3), "metrics": torch.randn(600, 7)}
    order = torch.randperm(600, generator=torch.Generator().manual_seed(0))

    def columns(rows_in: Tensor) -> dict[str, Any]:
        names = [str(t) for t in text[rows_in].tolist()]
        return {"label": text[rows_in] % 2, "ids": names, "position": place[rows_in]}

    small = PAWN(features=4, gates=2, hidden=8, depth=1, epochs=1)
    assert small.fit(rows, **columns(torch.arange(600))).n == 60
    apart = {name: x[order] for name, x in rows.items()}
    with pytest.raises(InputError, match="Sort the rows by their ids"):
        small.fit(apart, **columns(order))
    stream = sonde.Stream.of(apart, **columns(order))
    with pytest.raises(InputError, match="Sort the rows by their ids"):
        sonde.fit(small, stream, calibrate=0, progress=False)


def test_rows_seen_once_are_not_enough():
    _, (x, y, text, position) = made_up([5, 3])
    running = Running(PAWN(**SMALL))
    running.update({"a": x, "b": y}, text, position=position)
    with pytest.raises(StateError, match="expected a trained net"):
        running.result()


def test_weights_that_are_not_finite_are_refused():
    training: Any = PAWN(**SMALL).reads()["trained"]
    state = training.close_pass(map_tensors(_counted(training), lambda t: t * math.nan))
    with pytest.raises(StateError, match="diverged"):
        PAWN(**SMALL).result(training._stepped(state))


def _counted(training):
    return replace(training.start(4), n_positive=1, n_other=1, pending=1)


def test_scorers_refuse_other_rows():
    _, (x, y, text, position) = made_up([5, 3])
    ids = [f"text {i}" for i in text.tolist()]
    scorer = PAWN(**SMALL, epochs=1).fit({"a": x, "b": y}, text, ids=ids, position=position)
    with pytest.raises(ShapeError, match=r"expected dim=6 \(as fitted\), got dim=5"):
        scorer.score((x[:, :5], y), position)
    with pytest.raises(ShapeError, match="7 token metrics at a second"):
        scorer.score((x, x), position)
    with pytest.raises(ShapeError, match="got 1 site"):
        scorer.score((x,), position)


@pytest.mark.parametrize(
    "wrong",
    [
        {"features": 8, "gates": 3},
        {"epochs": 0},
        {"dropout": 1.0},
        {"smoothing": -0.1},
        {"rate": 0.0},
        {"decay": -1.0},
    ],
)
def test_parameters_are_checked(wrong):
    with pytest.raises(InputError, match="PAWN: expected"):
        PAWN(**wrong)
