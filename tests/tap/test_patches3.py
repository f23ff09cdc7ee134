import pytest
import torch

from models import cnn, vit
from sonde.core.errors import SiteError
from sonde.run.reading.read import read
from sonde.stats import neighbour_average


def _both(module, images, site, **options):
    """Rows of both reducers, from one forward."""
    stream = read(
        module, list(images), sites=site, reducer="patches", further=("patches3",), **options
    )
    (batch,) = stream
    plain, averaged = (k.key for k in stream.schema)
    assert torch.equal(batch.position[plain], batch.position[averaged])
    assert torch.equal(batch.grid[plain], batch.grid[averaged])
    assert averaged.endswith("|patches3")
    want = neighbour_average(batch.rows[plain], batch.grid[plain], batch.example[plain])
    return want, batch.rows[averaged]


@pytest.mark.truth("averages of the rows of the reducer patches, place by place")
def test_rows_are_means_over_neighbours_of_a_convolution():
    images = torch.randn(5, 1, 12, 18, generator=torch.Generator().manual_seed(0))
    want, found = _both(cnn(), images, "conv2", batch_size=8)
    assert found.shape == (5 * 6 * 9, 16)
    torch.testing.assert_close(found, want)


@pytest.mark.truth("averages of the rows of the reducer patches, place by place")
def test_rows_are_means_over_neighbours_of_a_transformer():
    images = torch.randn(4, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    items = [{"pixel_values": image} for image in images]
    want, found = _both(vit(), items, "vit.layers.0", batch_size=8)
    assert found.shape == (4 * 16, 32)
    torch.testing.assert_close(found, want)


def test_rows_of_one_number_have_no_neighbours():
    images = torch.randn(3, 1, 12, 12)
    with pytest.raises(SiteError, match="patches3"):
        read(cnn(), list(images), sites="fc", reducer="patches3").schema  # noqa: B018
