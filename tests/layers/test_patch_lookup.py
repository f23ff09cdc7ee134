"""Patches that are looked up in other images through learned maps."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.functional import cosine_similarity

from sonde.core.errors import InputError
from sonde.detect import DictLookup
from sonde.layers import PatchLookup


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(**parameters):
    layer = PatchLookup(4, **parameters).double()
    for i, p in enumerate(layer.parameters()):
        nn.init.normal_(p, std=0.5, generator=torch.Generator().manual_seed(i))
    return layer


def sparse(z):
    """The point of the simplex that is nearest to z, by bisection of its threshold."""
    low, high = float(z.max()) - 1, float(z.max())
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if float((z - middle).clamp(min=0).sum()) > 1 else (low, middle)
    return (z - low).clamp(min=0)


def mapped(part, image, heads):
    """A generator's output, patch by patch, with attention by loops."""
    wide = [2.0 * functional.normalize(p, dim=0) for p in image]  # 2 = sqrt(4)
    if heads:
        q, k, v = (
            [w @ (p + place) for p, place in zip(wide, part.place, strict=True)]
            for w in part.into.weight.split(4)
        )
        size, seen = 4 // heads, []
        for a in range(len(wide)):
            halves = []
            for h in range(heads):
                own = slice(h * size, (h + 1) * size)
                odds = torch.stack([q[a][own] @ k[b][own] for b in range(len(wide))]) / size**0.5
                halves.append(sum(p * v[b][own] for b, p in enumerate(odds.softmax(0))))
            seen.append(part.out.weight @ torch.cat(halves))
        wide = [w + s for w, s in zip(wide, seen, strict=True)]
    out = [w + part.second.weight @ functional.gelu(part.first.weight @ w) for w in wide]
    return [functional.normalize(o, dim=0) for o in out]


@pytest.mark.truth("sparsemax by bisection and attention by loops, a patch at a time")
@pytest.mark.parametrize("heads", [0, 2])
@torch.no_grad()
def test_misfit(heads):
    layer = made(hidden=3, heads=heads, patches=3 if heads else 0, temperature=0.2)
    x, bank = drawn(2, 3, 4), drawn(2, 2, 3, 4, seed=1)
    found = layer(x, bank)
    for row in range(2):
        keys, values = (
            torch.stack([p for image in bank[row] for p in mapped(layer.maps[n], image, heads)])
            for n in ("key", "value")
        )
        asked, own = (mapped(layer.maps[n], x[row], heads) for n in ("query", "value"))
        for token in range(3):
            r = sparse(keys @ asked[token] / 0.2) @ values
            wanted = (1 - cosine_similarity(own[token], r, 0)) / 2
            torch.testing.assert_close(found[row, token], wanted)


@pytest.mark.truth("the library's lookup of patches as they are")
def test_an_untrained_lookup_compares_patches_as_they_are():
    x, bank = drawn(2, 5, 4).float(), drawn(1, 3, 5, 4, seed=1).float()
    scorer = DictLookup(m=99).fit(bank.flatten(0, 2))
    wanted = scorer.score(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    for heads in (0, 2):
        found = PatchLookup(4, heads=heads)(x, bank)
        torch.testing.assert_close(found.to(wanted), wanted, atol=1e-5, rtol=0)


def test_losses_fall_in_training_and_the_text_of_usual_images_is_named():
    torch.manual_seed(0)
    layer, x = PatchLookup(4, hidden=16, heads=2, patches=3), torch.randn(6, 3, 4)
    bank = torch.randn(1, 4, 3, 4)
    fake, changed = x.clone(), torch.zeros(6, 3, dtype=torch.bool)
    changed[:, 1] = True
    fake[:, 1] = -fake[:, 1].roll(1, 0)
    texts, described = torch.randn(2, 4), torch.zeros(6, dtype=torch.long)
    adam = torch.optim.Adam(layer.parameters(), lr=1e-2)
    losses = list[tuple[float, float]]()
    for _ in range(60):
        query = layer.query_loss(x, fake, changed, bank)
        text = layer.text_loss(fake, bank, texts, described)
        losses.append((float(query.detach()), float(text.detach())))
        adam.zero_grad()
        (query + text).backward()
        adam.step()
    assert losses[-1][0] < losses[0][0]
    assert losses[-1][1] < losses[0][1] / 2
    scores = layer(fake, bank).detach()
    assert float(scores[changed].mean()) > float(scores[~changed].mean())


def test_what_does_not_fit_is_said():
    with pytest.raises(InputError, match="heads that divide dim=4"):
        PatchLookup(4, heads=3)
    with pytest.raises(InputError, match="only used with heads"):
        PatchLookup(4, patches=3)
