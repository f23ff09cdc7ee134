"""Contrast: closed forms, and a loop over rows."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch import nn
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

import sonde
from sonde.core import InputError
from sonde.stats.soft_top_k import soft_top_k
from sonde.train import Contrast, similarity_smoothing


@pytest.mark.truth("closed form of orthonormal pairs")
def test_orthonormal_pairs():
    x = torch.eye(4).repeat(2, 1) * torch.linspace(1, 3, 8)[:, None]
    view = torch.arange(2).repeat_interleave(4)
    # the positive at 1 / .5 = 2, six others at 0
    assert float(Contrast(0.5)(x, view=view)) == pytest.approx(math.log(1 + 6 * math.exp(-2)))
    assert float(Contrast(0.5)(x * 0 + 1, view=view)) == pytest.approx(math.log(7))


@pytest.mark.truth("a loop over anchors and positives")
@pytest.mark.parametrize("kind", ["softmax", "decoupled", "alone", "groups", "memory", "hard"])
def test_labels_by_a_loop(kind):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(9, 4, generator=generator)
    label = torch.tensor([0, 0, 1, 0, 1, 2, -1, -1, 0])
    group = torch.tensor([0, 1, 0, 1, 1, 0, 0, 1, 0])
    more, more_label = torch.randn(3, 4, generator=generator), torch.tensor([1, 0, 0])
    decoupled = kind in ("decoupled", "alone")
    size = 3 if kind == "memory" else 0
    loss = Contrast(0.3, "decoupled" if decoupled else "softmax", kind != "alone", memory=size)
    given = {"group": group} if kind == "groups" else {}
    if kind == "hard":
        more_label = torch.tensor([-2, -2, -2])
        given["negative"] = more
    if kind == "memory":
        loss(more, more_label.clamp(min=0))
        loss.step()
    every = torch.cat([x, more]) if kind in ("memory", "hard") else x
    labels = torch.cat([label, more_label])
    unit = (every / every.norm(dim=1, keepdim=True)).double()
    rows = []
    for i in range(9):
        same = [j for j in range(len(every)) if j != i and labels[j] == label[i] >= 0]
        near = [j for j in same if kind != "groups" or group[j] != group[i]]
        if not near:
            continue
        scores = (unit @ unit[i] / 0.3).tolist()
        each = []
        for p in near:
            among = ([p] if kind == "decoupled" else []) if decoupled else near
            others = [j for j in range(len(every)) if j != i and j not in near]
            total = sum(math.exp(scores[j]) for j in [*among, *others])
            each.append(math.log(total) - scores[p])
        rows.append(sum(each) / len(each))

    assert float(loss(x, label, **given)) == pytest.approx(sum(rows) / len(rows), rel=1e-5)


@pytest.mark.truth("distances of the Poincare ball by the half-angle formula; squares by numpy")
@pytest.mark.truth("a loop over rows and their labels")
@pytest.mark.parametrize("denominator", ["softmax", "decoupled"])
@pytest.mark.parametrize("against", ["prototypes", "rows"])
def test_rows_with_several_labels_by_a_loop(denominator, against):
    generator = torch.Generator().manual_seed(5)
    x, vectors = (torch.randn(n, 4, generator=generator) for n in (6, 3))
    label = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0]])
    given = {"prototype": vectors} if against == "prototypes" else {}
    others = normalize(vectors if given else x, dim=1)
    scores = normalize(x, dim=1) @ others.T / 0.3
    rows = []
    for i in range(6):
        have = {c for c in range(3) if label[i, c]}
        if given:
            near, far = sorted(have), [c for c in range(3) if c not in have]
        else:
            near = [j for j in range(6) if j != i and have & {c for c in range(3) if label[j, c]}]
            far = [j for j in range(6) if j != i and j not in near]
        if not near:
            continue
        each = []
        for p in near:
            among = [p, *far] if denominator == "decoupled" else [*near, *far]
            each.append(scores[i, among].logsumexp(0) - scores[i, p])
        rows.append(torch.stack(each).mean())
    wanted = torch.stack(rows).mean()
    loss = Contrast(0.3, denominator)
    for given_label in (label, label.bool()):
        torch.testing.assert_close(loss(x, given_label, **given), wanted)


def test_several_labels_in_the_memory_and_a_training_run():
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    label = torch.tensor([[1, 0], [1, 1], [0, 1], [1, 0], [0, 1], [1, 1]])
    loss = Contrast(memory=3)
    loss(x[:3], label[:3])
    loss.step()
    assert loss.kept_label.equal(label[:3])
    assert loss(x[3:5], label[3:5]).isfinite()  # their positives are in the memory alone
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
    with sonde.training(net, {"1:out": Contrast()}) as terms:
        states = net(x)
        torch.testing.assert_close(terms.loss(label=label), Contrast()(states, label))


@pytest.mark.parametrize("metric", ["poincare", "euclidean", "dot"])
def test_other_similarities(metric):
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(1)).double()
    label, c = torch.tensor([0, 0, 1, 1, 2, 2]), 0.1

    def similar(a, b):
        if metric == "dot":
            return float(a @ b)
        if metric == "euclidean":
            return -float((a - b).square().sum())
        a, b = (v * min(1.0, 2.3 / float(v.norm())) for v in (a, b))
        p, q = (math.tanh(c**0.5 * v.norm()) / (c**0.5 * v.norm()) * v for v in (a, b))
        # |(-p) (+) q| of Moebius addition, then 2 artanh / sqrt(c)
        dot, pp, qq = -float(p @ q), float(p @ p), float(q @ q)
        top = (1 + 2 * c * dot + c * qq) * -p + (1 - c * pp) * q
        gap = float(top.norm()) / (1 + 2 * c * dot + c * c * pp * qq)
        return -2 * math.atanh(c**0.5 * gap) / c**0.5

    wanted = []
    for i in range(6):
        s = [similar(x[i], x[j]) / 1.3 if j != i else -math.inf for j in range(6)]
        mate = i + 1 - 2 * (i % 2)
        wanted.append(math.log(sum(map(math.exp, s))) - s[mate])
    found = Contrast(1.3, metric=metric)(x, label)
    assert float(found) == pytest.approx(sum(wanted) / 6, rel=1e-6)


@pytest.mark.truth("cross entropy of torch over given prototypes; attraction alone; the first k")
def test_prototypes_attraction_and_the_first_k():
    draw = torch.Generator().manual_seed(2)
    x, w = torch.randn(5, 4, generator=draw), torch.randn(3, 4, generator=draw)
    label = torch.tensor([2, 0, 1, 1, -1])
    scores = normalize(x, dim=1) @ normalize(w, dim=1).T / 0.2
    wanted = cross_entropy(scores[:4], label[:4])
    torch.testing.assert_close(Contrast(0.2)(x, label, prototype=w), wanted)
    pair = cosine_similarity(x[2], x[3], dim=0)
    assert float(Contrast(1.0, "none")(x, label)) == pytest.approx(-2 * float(pair))
    # scores 2, 1, 0, -1 of one anchor, whose second candidate is its positive
    anchor = torch.tensor([[1.0, 0, 0], [1, 5, 5], [2, 0, 0], [0, 3, 0], [-1, 0, 4]]).double()
    found = Contrast(metric="dot", denominator="top_k", k=2, softness=1.0)
    label = torch.tensor([0, 0, 1, 2, 3])
    first = soft_top_k(torch.tensor([[1.0, 2, 0, -1]]).double(), 2)[0, 0]
    second = soft_top_k((anchor[1] @ anchor[[0, 2, 3, 4]].T)[None], 2)[0, 0]
    assert float(found(anchor, label)) == pytest.approx(
        -float(first.log() + second.clamp(min=1e-12).log()) / 2
    )


@pytest.mark.truth("planted: four clusters, each of whose views differ by noise")
def test_learned_prototypes_find_clusters_and_use_all():
    torch.manual_seed(0)
    centres, cluster = 3 * torch.randn(4, 6), torch.randint(0, 4, (200,))
    net, loss = nn.Linear(6, 6), Contrast(prototypes=4)
    x = torch.cat([net(centres[cluster] + 0.5 * torch.randn(200, 6)) for _ in range(2)])
    view = torch.arange(2).repeat_interleave(200)
    loss(x, view=view)
    optimiser = torch.optim.Adam([*net.parameters(), *loss.parameters()], 0.02)
    for _ in range(60):
        x = torch.cat([net(centres[cluster] + 0.5 * torch.randn(200, 6)) for _ in range(2)])
        optimiser.zero_grad()
        loss(x, view=view).backward()
        optimiser.step()
    said = (normalize(x[:200], dim=1) @ normalize(loss.heads.weight, dim=1).T).argmax(1)
    assert adjusted_rand_score(cluster, said) > 0.9


def test_places_within_the_radius_and_concepts_are_taken():
    x = torch.eye(4).double()
    place = torch.tensor([[0.0, 0], [0.5, 0], [3, 0], [0, 0.1]]).double()
    picture = torch.tensor([0, 0, 0, 1])
    found = Contrast(0.5)(x, picture, place=place)  # rows 0 and 1 alone belong together
    assert float(found) == pytest.approx(math.log(3))
    units = torch.tensor([[1.0, 9, 0], [2, 0, 9]]).double().repeat(2, 1)
    view = torch.tensor([0, 0, 1, 1])
    pooled = torch.tensor([[9.0, 0], [2, 9]]).double().repeat(2, 1)
    torch.testing.assert_close(
        Contrast(concepts=(0, 0, 1))(units, view=view), Contrast()(pooled, view=view)
    )


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda x: Contrast(denominator="top_k")(x), "k above 0 for denominator='top_k'"),
        (lambda x: Contrast()(x, group=torch.zeros(3).long()), "labels together with group"),
        (lambda x: Contrast()(x, prototype=x), "labels for prototypes"),
        (lambda x: Contrast()(x, torch.tensor([[0], [1], [1]])), r"Pass label\[:, 0\]"),
        (lambda x: Contrast()(x, torch.tensor([[0, 1], [1, 0], [2, 0]])), "entries up to 2"),
        (
            lambda x: Contrast()(x, torch.eye(3).long(), prototype=x[:2]),
            "for each of 2 prototypes, got 3 columns",
        ),
        (lambda x: Contrast(prototypes=2)(x), "two views or more"),
        (lambda x: Contrast(concepts=(0, 1, 2))(x), "a concept for each of 2 units"),
        (
            lambda x: Contrast()(x[:2].repeat(2, 1), view=torch.tensor([0, 1, 0, 1])),
            "another order",
        ),
        (lambda x: Contrast()(x, view=torch.tensor([0, 0, 1])), "unequal sizes"),
        (
            lambda x: Contrast(memory=3)(x, torch.arange(3) // 2, group=torch.arange(3)),
            "no group and no place with a memory",
        ),
    ],
)
def test_what_is_refused(make, said):
    with pytest.raises(InputError, match=said):
        make(torch.randn(3, 2))


def test_rows_without_company_are_refused():
    with pytest.raises(InputError, match="expected positive pairs of rows, got none"):
        Contrast()(torch.randn(3, 2))


@pytest.mark.truth("alignment and uniformity by loops over pairs of unit vectors, in numpy")
def test_uniform_is_alignment_and_uniformity():
    draw = torch.Generator().manual_seed(5)
    x = torch.randn(7, 3, generator=draw)
    label = torch.tensor([0, 1, 0, 2, 1, 0, -1])
    loss = Contrast(0.25, denominator="uniform")(x, label=label)
    u = (x / x.norm(dim=1, keepdim=True)).double().numpy()
    far = ((u[:, None] - u[None]) ** 2).sum(-1)
    apart = [np.exp(-2 * far[i, j]) for i in range(7) for j in range(7) if i != j]
    near = [
        np.mean([far[i, j] for j in range(7) if j != i and label[j] == label[i]])
        for i in (0, 1, 2, 4, 5)
    ]
    assert loss.item() == pytest.approx(2 * np.mean(near) + np.log(np.mean(apart)), abs=1e-6)


@pytest.mark.truth("a loop over places, with the values of a given map")
def test_smoothing_sums_mapped_places_by_squared_cosines():
    draw = torch.Generator().manual_seed(6)
    x = torch.randn(2, 4, 3, generator=draw)
    change = torch.nn.Linear(3, 2)
    for value in (None, change):
        found = similarity_smoothing(x, value)
        for r in range(2):
            for i in range(4):
                wanted = 0
                for j in range(4):
                    a, b = x[r, i].double(), x[r, j].double()
                    cos = (a @ b / (a.norm() * b.norm())).clamp(min=0)
                    wanted = wanted + cos**2 * (x[r, j] if value is None else change(x[r, j]))
                assert torch.allclose(found[r, i], wanted.to(found.dtype), atol=1e-5)
