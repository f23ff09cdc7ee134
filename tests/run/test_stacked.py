import pytest
import torch

from sonde.detect import Mahalanobis
from sonde.run.watching._stacked import Stacked, triangle


@pytest.mark.truth("the product with the whole root")
@pytest.mark.parametrize(("dim", "rank"), [(64, 64), (7, 7), (7, 3), (3, 2), (1, 1), (5, 0)])
def test_blocks_of_a_triangle_give_the_lengths_of_the_whole_product(dim, rank):
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(3, dim, rank, generator=generator, dtype=torch.float64)
    gap = torch.randn(3, 5, dim, generator=generator, dtype=torch.float64)
    blocks = triangle(root)
    found = sum((gap[:, :, dim - b.shape[1] :] @ b).square().sum(2) for b in blocks)
    torch.testing.assert_close(found, (gap @ root).square().sum(2))
    assert sum(b.numel() for b in blocks) < 0.7 * root.numel() or dim < 64


@pytest.mark.truth("each scorer alone")
def test_sites_together_give_the_scores_of_each_alone():
    generator = torch.Generator().manual_seed(0)
    rows = {f"s{i}": torch.randn(50, 6, generator=generator).double() + 3 * i for i in range(3)}
    wide = torch.randn(50, 9, generator=generator)
    scorers = [(key, Mahalanobis().fit(x)) for key, x in rows.items()]
    stacked = Stacked.of([*scorers, ("wide", Mahalanobis().fit(wide))])
    assert stacked is not None
    assert stacked.keys == ("s0", "s1", "s2")
    found = stacked.scores({**rows, "wide": wide})
    for key, scorer in scorers:
        torch.testing.assert_close(found[key], scorer.score(rows[key]))
    assert stacked.scores({**rows, "s1": rows["s1"][:1]}) == {}
