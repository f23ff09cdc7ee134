"""An atlas: features in place of units, texts of rows, and answers of clamped runs."""

import pytest
import torch

import models
import sonde
from sonde.core import InputError, Model
from sonde.data import open_inputs
from sonde.run.explaining.atlas import EncodedStream, atlas_document, fit_atlas
from sonde.run.explaining.clamping import clamp_units
from sonde.run.explaining.seen_rows import seen_rows
from sonde.tap.streams.live import LiveStream


class Mixer:
    """Three features of rows of four units."""

    def __init__(self):
        self.matrix = torch.randn(4, 3, generator=torch.Generator().manual_seed(2))

    def encode(self, rows):
        return torch.relu(rows @ self.matrix)


@pytest.mark.truth("encoding all rows at once")
def test_features_of_a_dictionary_take_the_place_of_units():
    rows = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    label = (rows[:, 0] > 1).long()
    mixer = Mixer()
    stream = sonde.Stream.of({"a": rows}, label=label)
    atlas = fit_atlas(stream, mixer, n=3, progress=False)
    features = mixer.encode(rows)
    torch.testing.assert_close(torch.as_tensor(atlas.exemplars.value).float(), features.amax(0))
    found = atlas_document(atlas, model="m", data="d", dictionary="mixer")
    assert [unit["above"] for unit in found["units"]] == pytest.approx(
        (features > 0).double().mean(0).tolist(), rel=1e-3
    )
    assert found["n"] == 200
    assert all(sum(unit["histogram"]["counts"]) == 200 for unit in found["units"])
    assert found["units"][0]["concept"] in ("0", "1")
    plain = fit_atlas(sonde.Stream.of({"a": rows}), progress=False)
    assert "concept" not in atlas_document(plain, model="m", data="d")["units"][0]
    with pytest.raises(InputError, match="expected one site, got 2"):
        fit_atlas(sonde.Stream.of({"a": rows, "b": rows}), progress=False)


def test_a_run_with_one_dictionary_is_not_gone_on_with_another():
    stream = sonde.Stream.of({"a": torch.randn(9, 4)})
    mixer, other = Mixer(), Mixer()
    same = EncodedStream(stream, mixer).identity()
    assert EncodedStream(stream, other).identity() == same
    other.matrix = other.matrix + 0.01
    assert EncodedStream(stream, other).identity() != same


@pytest.fixture(scope="module")
def gpt2() -> Model:
    return Model(models.gpt2(), task="causal")


def items(lengths=(7, 5)):
    generator = torch.Generator().manual_seed(0)
    return [
        {"input_ids": torch.randint(3, models.VOCABULARY, (n,), generator=generator)}
        for n in lengths
    ]


@pytest.mark.truth("a hook that holds the unit, one run for each text without padding")
@pytest.mark.parametrize("site", ["transformer.h.1", "transformer.h.1.mlp.c_proj:in"])
def test_clamped_answers_are_those_of_a_hook(gpt2, site):
    stream = sonde.read(gpt2, items(), sites=site, reducer="positions")
    (schema,) = stream.schema
    singles = [next(iter(open_inputs(gpt2, [one]).batches(0, 1))) for one in items()]
    found = clamp_units(gpt2, singles, schema, [3, 5], torch.tensor([4.0, -6.0]))
    module = gpt2.module.get_submodule(site.partition(":")[0])
    moves, far = [], []
    for unit, level in ((3, 4.0), (5, -6.0)):

        def held(x, unit=unit, level=level):
            x = x.clone()
            x[..., unit] = level
            return x

        if site.endswith(":in"):
            hook = module.register_forward_pre_hook(lambda m, a, held=held: (held(a[0]),))
        else:
            hook = module.register_forward_hook(
                lambda m, a, out, held=held: (
                    (held(out[0]), *out[1:]) if isinstance(out, tuple) else held(out)
                )
            )
        with torch.no_grad():
            held_runs = [gpt2.module(one["input_ids"][None]).logits[0, -1] for one in items()]
        hook.remove()
        with torch.no_grad():
            plain = [gpt2.module(one["input_ids"][None]).logits[0, -1] for one in items()]
        new, old = (torch.stack(x).double().log_softmax(-1) for x in (held_runs, plain))
        moves.append((new - old).mean(0))
        far.append((new.exp() * (new - old)).sum(1).mean())
    rise = torch.stack(moves)
    torch.testing.assert_close(found.rise, rise.topk(5).values, rtol=1e-4, atol=1e-6)
    assert torch.equal(found.up, rise.topk(5).indices)
    assert torch.equal(found.down[:, 0], rise.argmin(1))
    torch.testing.assert_close(found.divergence, torch.stack(far), rtol=1e-4, atol=1e-7)


def test_rows_are_found_again_by_id_and_position(gpt2):
    stream = sonde.read(gpt2, items(), sites="transformer.h.1", reducer="positions")
    assert isinstance(stream, LiveStream)
    atlas = fit_atlas(stream, n=2, m=1, progress=False)
    wanted = {(*one.ids, one.position) for one in atlas.exemplars.of(0)}
    seen, pictures = seen_rows(gpt2, stream.inputs, wanted, len(stream), shown=True)
    assert set(seen) == wanted
    assert pictures == {}
    for row in seen.values():
        token = items()[row["e"]]["input_ids"][row["p"]]
        assert row["t"][1] == f"{int(token)} "
