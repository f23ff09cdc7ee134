"""Tokens with massive states: found once, named, left out of variances, kept in lengths."""

from pathlib import Path

import pytest
import torch
from tests.lm_twin_case import TEXTS, twin
from tests.models import llama
from torch import Tensor

import sonde
from sonde.core.errors import InputError
from sonde.core.inputs import Model
from sonde.core.sinks import Sinks
from sonde.detect import Mahalanobis
from sonde.measure import CKA, Anisotropy, Covariance, EffectiveRank, MassiveActivations, Norms

SITE = "model.layers.3"


def states() -> list[Tensor]:
    """Return the states of each text behind the fourth block, from the model's own outputs."""
    found = []
    for text in TEXTS:
        ids = twin().processor(text, return_tensors="pt")
        with torch.no_grad():
            out = twin().module(**ids, output_hidden_states=True)
        found.append(out.hidden_states[4][0].double())
    return found


def stream(reducer: str = "positions", **options: str) -> sonde.core.Stream:
    return sonde.read(twin(), list(TEXTS), sites=SITE, reducer=reducer, check=False, **options)


def test_the_first_token_of_the_twin_is_massive_and_found() -> None:
    ratios = torch.stack([x.norm(dim=1)[0] / x.norm(dim=1).median() for x in states()])
    assert ratios.min() > 10
    assert stream().found_sinks == Sinks(first=True)
    assert stream(sinks="keep").found_sinks == Sinks.NONE


def test_models_without_massive_tokens_have_no_sinks() -> None:
    ids = [torch.arange(3, 19) + 5 * i for i in range(4)]
    plain = sonde.read(Model(llama(), task="causal"), ids, reducer="tokens", check=False)
    assert plain.found_sinks == Sinks.NONE


@pytest.mark.parametrize("reducer", ["positions", "tokens"])
def test_a_variance_is_of_the_other_tokens(reducer: str) -> None:
    """truth=numpy's covariance of the model's own hidden states without first tokens."""
    fitted = sonde.fit(Covariance(), stream(reducer), progress=False)
    rest = torch.cat([x[1:] for x in states()])
    truth = torch.cov(rest.T, correction=0).trace()
    every = torch.cov(torch.cat(states()).T, correction=0).trace()
    found = fitted.result("covariance").covariance.trace()
    assert found.double() == pytest.approx(truth.item(), rel=1e-3)
    assert every > 4 * truth
    n_rows = sum(map(len, states()))
    assert fitted.header["counters"][f"sinks|{SITE}:out"] == len(TEXTS)
    assert fitted.header["counters"][f"rows|{SITE}:out"] == n_rows
    kept = sonde.fit(Covariance(), stream(reducer, sinks="keep"), progress=False)
    total = kept.result("covariance").covariance.trace()
    assert total.double() == pytest.approx(every.item(), rel=1e-3)


def test_the_mean_of_a_text_is_of_its_other_tokens() -> None:
    rows = torch.cat([batch.rows[f"{SITE}:out"] for batch in stream("mean")])
    order = torch.cat([batch.order for batch in stream("mean")])
    truth = torch.stack([x[1:].mean(0) for x in states()])[order]
    assert torch.allclose(rows.double(), truth, rtol=1e-3, atol=1e-3)


def test_lengths_keep_sinks() -> None:
    fitted = sonde.fit([Norms(), MassiveActivations()], stream(), progress=False)
    every = torch.cat(states())
    rms = every.square().sum(1).mean().sqrt()
    assert fitted.result("norms").rms == pytest.approx(rms.item(), rel=1e-3)
    assert fitted.result("massive_activations").n == len(every)


def test_scores_and_guards_have_no_row_for_a_sink() -> None:
    fitted = sonde.fit(Mahalanobis(), stream("positions"), progress=False)
    assert fitted.header["reading"]["sinks"] == "first"
    table = sonde.score(fitted, twin(), list(TEXTS), progress=False)
    assert min(table["position"].to_pylist()) == 1
    assert len(table) == sum(len(x) - 1 for x in states())
    alone = sonde.read(twin(), list(TEXTS[:1]), sites=SITE, reducer="positions", check=False)
    assert min(sonde.score(fitted, alone, progress=False)["position"].to_pylist()) == 1
    with sonde.Guard(twin().module, fitted, processor=twin().processor, alpha=None) as guard:
        ids = twin().processor(TEXTS[0], return_tensors="pt")
        twin().module(**ids)
    assert len(guard.scores["mahalanobis", f"{SITE}:out"]) == len(states()[0]) - 1


@pytest.mark.truth("sonde.score, which scores site by site")
def test_a_guard_of_several_sites_has_no_row_for_a_sink() -> None:
    sites = ["model.layers.2", SITE]
    read = sonde.read(twin(), list(TEXTS), sites=sites, reducer="tokens", check=False)
    fitted = sonde.fit(Mahalanobis(), read, progress=False)
    expected = sonde.score(fitted, twin(), list(TEXTS[:1]), progress=False)
    with sonde.Guard(twin().module, fitted, processor=twin().processor, alpha=None) as guard:
        twin().module(**twin().processor(TEXTS[0], return_tensors="pt"))
    for (_, site), scores in guard.scores.items():
        rows = [line for line in expected.to_pylist() if line["site"] == site]
        position = guard.position["mahalanobis", site].tolist()
        assert position == [line["position"] for line in rows] == [*range(1, len(states()[0]))]
        assert scores.tolist() == pytest.approx([line["score"] for line in rows], rel=1e-3)


def test_a_text_of_one_token_keeps_its_row() -> None:
    real = torch.tensor([[True, False, False], [True, True, True]])
    assert Sinks(first=True).mask(real, None).tolist() == [[False] * 3, [True, False, False]]


def test_padding_on_the_left_moves_the_first_token() -> None:
    real = torch.tensor([[False, True, True]])
    assert Sinks(first=True).mask(real, None).tolist() == [[False, True, False]]


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(InputError, match="expected auto, keep, or roles among first, special"):
        stream(sinks="second")


def test_a_value_that_sinks_would_move_says_so(tmp_path: Path) -> None:
    """truth=the values of a fit that keeps sinks."""
    measures = [EffectiveRank(), Anisotropy(), CKA(), Norms()]
    where = ["model.layers.3", "model.layers.4"]

    def fitted(**options: str) -> sonde.Fitted:
        rows = sonde.read(
            twin(), list(TEXTS), sites=where, reducer="positions", check=False, **options
        )
        return sonde.fit(measures, rows, progress=False)

    without, every = fitted(), dict(fitted(sinks="keep"))
    without.save(tmp_path / "fit.sonde")
    for bundle in (without, sonde.Fitted.load(tmp_path / "fit.sonde")):
        for name, result in bundle:
            if name[0] == "norms":
                assert "with sinks" not in result.conventions
                continue
            kept = every[name].value
            assert result.conventions["with sinks"] == pytest.approx(float(kept), rel=1e-4)
            assert ("sinks" in result.flags) == (name[0] == "effective_rank")
    assert all("with sinks" not in result.conventions for result in every.values())
