"""Languages by name and by pixel, experts of labels, and the divergence of routing."""

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from sonde_studies._recipe_data import shuffled_digits
from sonde_studies._routed_languages import (
    DEPTH,
    LANGUAGES,
    NAMES,
    PIXELS,
    ROWS,
    RoutedNet,
    divergences,
    languages,
)


@pytest.mark.truth("digits and pixels, row by row")
@pytest.mark.parametrize("differ", ["names", "pixels", "nothing"])
def test_languages_of_a_family_differ_in_a_fifth(differ):
    x, digit = shuffled_digits(0)
    fit, held = languages(x, digit, differ, 5)
    assert fit.language.bincount().tolist() == [*ROWS]
    left = len(x) - sum(ROWS)
    said = held.name.reshape(LANGUAGES, left)
    seen = held.x[:, :PIXELS].reshape(LANGUAGES, left, PIXELS)
    assert torch.equal(held.x[:, PIXELS:].argmax(1), held.language)
    clean = x[sum(ROWS) :]
    if differ == "nothing":
        assert torch.equal(said, digit[sum(ROWS) :].expand(LANGUAGES, -1))
        assert torch.equal(seen, clean.expand(LANGUAGES, -1, -1))
        return
    if differ == "pixels":
        assert torch.equal(said, digit[sum(ROWS) :].expand(LANGUAGES, -1))
        assert torch.equal(seen.sort(-1).values, clean.sort(-1).values.expand(LANGUAGES, -1, -1))
        same = [(seen[i] == seen[i + 1]).all(0).sum() for i in (0, 1, 2)]
        assert min(same[0], same[2]) >= PIXELS - PIXELS // 5 > same[1]
        return
    assert torch.equal(seen, clean.expand(LANGUAGES, -1, -1))
    words = torch.stack([torch.stack([s[digit[sum(ROWS) :] == d].unique() for d in range(NAMES)])
                         for s in said])[..., 0]  # fmt: skip
    assert all(sorted(own.tolist()) == [*range(NAMES)] for own in words)
    assert (words[0] != words[1]).sum() == (words[2] != words[3]).sum() == 2
    assert (words[0] != words[2]).sum() > 4


def test_experts_stand_where_the_arm_says():
    x, language = torch.rand(6, PIXELS + LANGUAGES), torch.zeros(6, dtype=torch.long)
    for arm, parts in (("late", {DEPTH}), ("early", {*range(1, DEPTH + 1)}), ("families", set())):
        torch.manual_seed(0)
        net = RoutedNet(arm)
        for p in net.parameters():
            torch.nn.init.normal_(p, std=0.1)
        one, other = net.states(x, language), net.states(x, language + 1)
        apart = {i for i, (a, b) in enumerate(zip(one, other, strict=True)) if not a.equal(b)}
        assert apart == parts  # languages 0 and 1 are one family
    sizes = [sum(p.numel() for p in RoutedNet(arm).parameters())
             for arm in ("late", "early", "families", "everywhere")]  # fmt: skip
    assert sizes[0] == sizes[1] < sizes[3]
    assert sizes[2] == pytest.approx(sizes[0], rel=0.01)


@pytest.mark.truth("entropies of mean weights by scipy")
def test_divergence_at_each_block():
    x, digit = shuffled_digits(1)
    _, held = languages(x, digit, "names", 1)
    torch.manual_seed(2)
    net = RoutedNet("learned").eval()
    found = divergences(net, held)
    h = net.states(held.x, held.language)[:-1]
    for own, block, state in zip(found, net.blocks, h, strict=True):
        with torch.no_grad():
            shares = block.shares(state).double().numpy()
        mean = np.stack([shares[held.language == i].mean(0) for i in range(LANGUAGES)])
        want = entropy(mean.mean(0), base=2) - np.mean([entropy(m, base=2) for m in mean])
        assert own == pytest.approx(want, abs=1e-6)
    assert len(found) == DEPTH
