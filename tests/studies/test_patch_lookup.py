"""Pasted squares, their positions, and lookups that are alike before training."""

import torch

from sonde_studies._patch_lookup import DIM, SIDE, Lookup, of_one_kind, pasted, plain_lookup


def test_a_square_of_another_image_is_pasted_and_marked():
    draw = torch.Generator().manual_seed(0)
    x, others = torch.zeros(40, SIDE**2, 3), torch.rand(9, SIDE**2, 3, generator=draw) + 1
    found, changed = pasted(x, others, draw)
    assert torch.equal((found > 0).all(2), changed)
    square = changed.unflatten(1, (SIDE, SIDE))
    high, wide = (square.any(axis).sum(1) for axis in (2, 1))
    assert torch.equal(high, wide)
    assert torch.equal(high * wide, changed.sum(1))
    assert set(high.tolist()) == {2, 3, 4}
    for image, where in zip(found, changed, strict=True):
        assert bool((image[where][0] == others).all(2).any())


def test_images_and_their_bank_are_of_one_class_and_differ():
    draw = torch.Generator().manual_seed(1)
    images = torch.arange(60.0)[:, None, None]
    for _ in range(10):
        x, bank = (part.flatten().long().tolist() for part in of_one_kind(
            images, torch.arange(60) % 3, draw))  # fmt: skip
        assert len(x) == len(bank) == 4
        assert len({i % 3 for i in x + bank}) == 1
        assert not set(x) & set(bank)


def test_before_training_attention_changes_nothing():
    torch.manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(5, SIDE**2, DIM), dim=2)
    plain, attending = (Lookup(attends)(x[:2], x[2:]) for attends in (False, True))
    torch.testing.assert_close(plain, attending)
    assert bool((Lookup(True)(x[:2], x) < 1e-4).all())


def test_an_untrained_lookup_gives_the_scores_of_the_library():
    torch.manual_seed(1)
    x = torch.nn.functional.normalize(torch.randn(5, SIDE**2, DIM), dim=2)
    found = plain_lookup(x[:2], x[2:])
    torch.testing.assert_close(found, Lookup(False)(x[:2], x[2:]).to(found), atol=1e-5, rtol=0)
