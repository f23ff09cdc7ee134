import pytest

from sonde.core.errors import SondeWarning
from sonde.run.training.checkpoints import checkpoint_folders


def test_folders_without_a_configuration_are_named(tmp_path):
    for step in (5, 20, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "logs").mkdir()
    for step in (5, 100):
        (tmp_path / f"checkpoint-{step}" / "config.json").write_text("{}")
    with pytest.warns(SondeWarning, match=r"1 folder of .* left out: checkpoint-20\. Copy"):
        found = checkpoint_folders(tmp_path)
    assert [step for step, _ in found] == [5, 100]
