"""Ways to serve users: votes by hand, models of their own, and which of them interfere."""

import numpy as np
import pytest
import torch

from sonde import load
from sonde.store import interference
from sonde_studies.parts.serving import ONE_MODEL, OWN_MODELS, OWN_ROWS, PUBLIC, SERVED, Serving
from sonde_studies.recipes.per_user_flow import per_user_flow

STORED = {
    "ann": ["def one(self):\n    return self.one\n", "x = [1, 2, 3]\n", "x = {4: 5}\n", "y = 1\n"],
    "bob": ["import os\nimport sys\n", "class Bob(Base):\n    pass\n", "import re\n", "z = 2\n"],
}
ASKED = {"ann": ["x = [4, 5]\n"], "bob": ["import abc\n"]}


def serving(**options):
    model = load("sonde:stdlib")
    return Serving(model, 1, 1e-3, 0, site="blocks.-1", progress=False, **options)


@pytest.mark.slow
@pytest.mark.truth("votes of the nearest stored bytes, counted one by one")
def test_votes_of_own_rows_are_those_of_the_nearest_bytes():
    way, found = serving(nearest=3, weight=0.3, width=0.5), dict[str, torch.Tensor]()

    def states(text):
        grabbed = []
        block = way.model.module.model.layers[-1]
        hook = block.register_forward_hook(lambda _, __, out: grabbed.append(out))
        with torch.no_grad():
            logits = way.model.module(torch.tensor([[*text.encode()]])).logits[0]
        hook.remove()
        out = grabbed[0][0] if isinstance(grabbed[0], tuple) else grabbed[0]
        return out.reshape(len(text), -1).double().numpy(), logits.double().softmax(1).numpy()

    for reader in STORED:
        pairs = [(states(t)[0][i], t.encode()[i + 1]) for t in STORED[reader]
                 for i in range(len(t) - 1)]  # fmt: skip
        rows = np.stack([x for x, _ in pairs])
        variance = ((rows - rows.mean(0)) ** 2).sum(1).mean()
        text = ASKED[reader][0]
        state, said = states(text)
        found[reader] = way.pipeline(OWN_ROWS)(STORED)(reader, text)
        for i in range(len(text) - 1):
            far = ((rows - state[i]) ** 2).sum(1)
            near = np.argsort(far)[:3]
            power = np.exp(-(far[near] - far[near[0]]) / (0.5 * variance))
            expected = 0.7 * said[i]
            for j, p in zip(near, power / power.sum(), strict=True):
                expected[pairs[j][1]] += 0.3 * p
            np.testing.assert_allclose(found[reader][i].exp().numpy(), expected, atol=2e-5)
    assert way.nats(lambda user, _: found[user], ASKED) == pytest.approx(
        np.mean([
            -np.mean([float(found[u][i, b]) for i, b in enumerate(ASKED[u][0].encode()[1:])])
            for u in STORED
        ])
    )  # fmt: skip


@pytest.mark.slow
def test_one_model_for_all_interferes_and_own_rows_and_own_models_do_not():
    """The planted leak: a model that was tuned on the rows of all users."""
    way, other = serving(batch=2), {"ann": STORED["ann"][2:]}
    few = {user: own[:2] for user, own in STORED.items()}
    found = {w: interference(way.pipeline(w), few, other, ASKED) for w in SERVED}
    assert {w: one.leaks for w, one in found.items()} == {
        PUBLIC: {},
        OWN_ROWS: {},
        OWN_MODELS: {},
        ONE_MODEL: {("bob", "ann"): 1.0},
    }
    assert {w: one.used for w, one in found.items()} == {w: w != PUBLIC for w in SERVED}


@pytest.mark.slow
def test_the_recipe_compares_ways_to_serve_users():
    rows = [
        {"text": f"{name}_{i} = call_{name}({i}, {i * i})\n", "user": name}
        for name in ("ann", "bob")
        for i in range(8)
    ]
    found = per_user_flow(load("sonde:stdlib"), rows, rate=1e-3, own=True, progress=False)
    way = {row["way"]: row for row in found.rows}
    lost = {w: way[f"served by {w}"]["nats a token"] for w in SERVED}
    changed = {w: way[f"served by {w}"]["changed"] for w in SERVED}
    assert changed == {PUBLIC: 0.0, OWN_ROWS: 0.0, OWN_MODELS: 0.0, ONE_MODEL: 1.0}
    assert max(lost[OWN_ROWS], lost[OWN_MODELS], lost[ONE_MODEL]) < lost[PUBLIC]
    assert f"a model tuned for each user {lost[OWN_MODELS]:.3g}" in found.sentence
