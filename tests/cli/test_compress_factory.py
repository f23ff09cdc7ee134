"""Models of a user's own function: compressed by every kind, trained, opened, taken back."""

import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

import sonde
from cli_case import run_words
from sonde.compress import RTN, DropBlocks, PruneChannels, PruneWeights
from sonde.core.edit import Add
from sonde.core.errors import InputError, StoreError
from sonde.edit import TaskArithmetic
from sonde.run.compressing.methods import weight_methods
from sonde.weights import fold_edit, merge_models, save_edited, undo
from sonde.weights._weight_file import file_hash
from sonde.weights.factory_folder import source_folder

CODE = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(40, 48), nn.Linear(48, 40)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6)
        self.first = nn.Linear(216, 40)
        self.blocks = nn.ModuleList([Block() for _ in range(3)])
        self.last = nn.Linear(40, 10)

    def forward(self, x):
        x = self.first(torch.relu(self.norm(self.conv(x))).flatten(1))
        for block in self.blocks:
            x = block(x)
        return self.last(x)


def pixels(image):
    if isinstance(image, torch.Tensor):
        return image
    return torch.tensor(list(image.convert("L").tobytes())).float().reshape(1, 8, 8) / 255


def make():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net().eval(), pixels


def other():
    return nn.Linear(3, 4)


def unbiased():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 3, bias=False)).eval()


def bare():
    return make()[0]
"""
WORDS = {
    "drop_blocks": ("--to", "2blocks"),
    "low_rank_weights": ("--to", "40%"),
    "prune_channels": ("--to", "50%"),
    "prune_weights": ("--to", "50%"),
    "sparse_gpt": ("--to", "50%"),
    "sign_quant": (),
    "bit_stack": ("--to", "5bit"),
    "bit_allocation": ("--to", "3.5bit"),
}

ELSEWHERE = {"merge_experts", "alternate_slim", "slice_width"}


@pytest.fixture(autouse=True)
def code(tmp_path, monkeypatch):
    """Put the factory's file where a user starts sonde."""
    (tmp_path / "nets_of_mine.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("nets_of_mine", None)


def x() -> torch.Tensor:
    return torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
@pytest.mark.parametrize("word", sorted(weight_methods().keys() - ELSEWHERE))
def test_every_method_is_reached_and_writes_a_folder_that_opens(word):
    # what this net is not, a mixture or a stream that norms read: see their own tests
    data = ("nets_of_mine:make", "sonde:digits/train", "--limit", 24, "--held", 12)
    words = WORDS.get(word, ("--to", "3bit"))
    told = run_words("compress", *data, *words, "--method", word, "-o", "SMALL", "--json").json()
    assert told["bytes"][1] < 0.9 * told["bytes"][0]
    assert told["packed"]
    old = sonde.load("nets_of_mine:make", device="cpu").module
    new = sonde.load("nets_of_mine:make@SMALL", device="cpu").module
    assert new(x()).shape == (5, 10)
    assert not torch.equal(new(x()), old(x()))
    undo("SMALL", "OLD")
    again = sonde.load("nets_of_mine:make@OLD", device="cpu").module
    assert torch.equal(again(x()), old(x()))


@pytest.mark.parametrize("rule", [RTN(bits=3), PruneChannels(remove=0.5)])
def test_the_folder_opens_as_the_folded_model(rule):
    model = sonde.load("nets_of_mine:make", device="cpu")
    given = {"calibration": torch.rand(30, 1, 8, 8)} if rule.reads() else None
    plan = rule.plan(model, given)
    with source_folder(model) as source:
        save_edited(source, plan, Path("SMALL"))
    again = sonde.load("nets_of_mine:make@SMALL", device="cpu")
    torch.testing.assert_close(again.module(x()), plan.fold(model)(x()))
    assert again.processor is not None


@pytest.mark.slow
def test_a_training_writes_a_folder_that_opens_and_can_be_taken_back():
    words = ("train", "nets_of_mine:make", "sonde:digits/train", "--limit", 48, "--held", 20)
    terms = ("--terms", "rate_reduction", "--sites", "blocks.1", "--rate", 1e-2, "--alone")
    told = run_words(*words, *terms, "-o", "NEW", "--json").json()
    (term,) = told["terms"]
    assert term["with"] < term["before"]
    old = sonde.load("nets_of_mine:make", device="cpu").module(x())
    assert not torch.equal(sonde.load("nets_of_mine:make@NEW", device="cpu").module(x()), old)
    undo("NEW", "OLD")
    assert torch.equal(sonde.load("nets_of_mine:make@OLD", device="cpu").module(x()), old)


@pytest.mark.slow
def test_models_of_two_functions_are_merged():
    Path("later_nets.py").write_text(CODE.replace("manual_seed(0)", "manual_seed(1)"))
    words = ("nets_of_mine:make", "later_nets:make")
    ran = run_words("edit", "merge", *words, "-o", "NEW", "--method", "arithmetic", "--weight", 0.5,
                    "--keep", "norm.*")  # fmt: skip
    sys.modules.pop("later_nets", None)
    assert "note: open the new model as nets_of_mine:make@NEW." in ran.err
    assert "written as" not in ran.err
    one, two, new = (sonde.load(word, device="cpu").module.last.weight
                     for word in (*words, "nets_of_mine:make@NEW"))  # fmt: skip
    torch.testing.assert_close(new, (one + two) / 2)
    other = run_words("edit", "merge", words[0], "nets_of_mine:other", "-o", "NO")
    assert "they were not made from the same base" in other.error()


def test_tensors_in_another_type_are_counted():
    model = sonde.load("nets_of_mine:make", device="cpu")
    plan = PruneChannels(remove=0.5).plan(model, {"calibration": torch.rand(30, 1, 8, 8)})
    types, word = save_edited(model, plan, Path("NEW")).notes
    n = sum(x.dtype == torch.float16 for x in load_file("NEW/model.safetensors").values())
    assert types == f"note: {n} tensors of float32 are written as float16."
    assert word == "note: open the new model as nets_of_mine:make@NEW."


def test_a_bias_that_the_code_of_a_factory_lacks_is_opened():
    model = sonde.load("nets_of_mine:unbiased", device="cpu")
    plan = fold_edit(model, Add(torch.tensor([1.0, 2.0, 3.0])), "0:out")
    save_edited(model, plan, Path("NEW"))
    x, new = torch.rand(5, 4), sonde.load("nets_of_mine:unbiased@NEW", device="cpu").module
    torch.testing.assert_close(new(x), model.module(x) + torch.tensor([1.0, 2.0, 3.0]))


def of_factory(folder: str) -> str:
    return f"nets_of_mine:make@{folder}"


@pytest.mark.parametrize("first", [PruneChannels(remove=0.5), DropBlocks(blocks=2)])
@pytest.mark.parametrize(
    "second", [pytest.param(PruneChannels(remove=0.3), marks=pytest.mark.slow), RTN(bits=8), None]
)
def test_a_narrower_or_shorter_model_is_changed_again(first, second):
    given = {"calibration": torch.rand(30, 1, 8, 8)}
    model = sonde.load("nets_of_mine:make", device="cpu")
    save_edited(model, first.plan(model, given), Path("SMALL"))
    small = sonde.load(of_factory("SMALL"), device="cpu")
    plan = second.plan(small, given) if second else fold_edit(small, Add(torch.ones(10)), "last")
    save_edited(small, plan, Path("AGAIN"))
    wanted = plan.fold(small)(x())
    assert not torch.equal(wanted, small.module(x()))
    torch.testing.assert_close(sonde.load(of_factory("AGAIN")).module(x()), wanted)
    undo("AGAIN", "BACK")
    assert file_hash(Path("BACK/model.safetensors")) == file_hash(Path("SMALL/model.safetensors"))
    assert torch.equal(sonde.load(of_factory("BACK")).module(x()), small.module(x()))


def test_a_layer_keeps_its_new_bias_when_its_weight_is_packed():
    model = sonde.load("nets_of_mine:unbiased", device="cpu")
    save_edited(model, fold_edit(model, Add(torch.ones(3)), "0:out"), Path("NEW"))
    new = sonde.load("nets_of_mine:unbiased@NEW", device="cpu")
    save_edited(new, RTN(bits=8).plan(new), Path("SMALL"))
    small, x = sonde.load("nets_of_mine:unbiased@SMALL", device="cpu").module, torch.rand(5, 4)
    torch.testing.assert_close(small(x), new.module(x), rtol=0, atol=0.01)
    assert not torch.equal(small(x), new.module(x))


def test_what_cannot_be_changed_again_says_why():
    model = sonde.load("nets_of_mine:make", device="cpu")
    given = {"calibration": torch.rand(30, 1, 8, 8)}
    save_edited(model, PruneChannels(remove=0.5).plan(model, given), Path("NARROW"))
    save_edited(model, PruneWeights(remove=0.5).plan(model), Path("ZEROS"))
    narrow, zeros = (sonde.load(of_factory(name)) for name in ("NARROW", "ZEROS"))
    with pytest.raises(InputError, match="removing blocks from blocks would rename the parts"):
        save_edited(narrow, DropBlocks(blocks=2).plan(narrow, given), Path("NEW"))
    with pytest.raises(InputError, match=r"NARROW, whose [a-z.0-9]* has another shape. Merge the"):
        merge_models(narrow, [narrow], TaskArithmetic(), "NEW")
    with pytest.raises(InputError, match="weights of first are quantised or packed, and cannot"):
        save_edited(zeros, RTN().plan(zeros), Path("NEW"))


def test_a_folder_names_its_function_and_runs_none():
    model = sonde.load("nets_of_mine:make", device="cpu")
    with source_folder(model) as source:
        save_edited(source, RTN().plan(model), Path("SMALL"))
    with pytest.raises(InputError, match="pass nets_of_mine:make@SMALL if you trust this function"):
        sonde.load("SMALL")
    with pytest.raises(StoreError, match="names first as a packed layer, but the model has no"):
        sonde.load("nets_of_mine:other@SMALL")
    undo("SMALL", "OLD")
    with pytest.raises(StoreError, match="OLD does not hold the weights of this factory's model"):
        sonde.load("nets_of_mine:other@OLD")
    with pytest.raises(InputError, match="the folder of a model of nets_of_mine:make after @"):
        sonde.load("nets_of_mine:make@NONE")
    packed = run_words("compress", "nets_of_mine:make@SMALL", "sonde:digits/train", "--limit", 8,
                       "--held", 8, "-o", "AGAIN")  # fmt: skip
    assert "quantised or packed" in packed.error()


FOLDER = ("--image-mean", "0.5", "--image-std", "0.5", "--classes", ",".join("0123456789"))


@pytest.fixture
def pictures(code):
    """Write pictures of digits, with a folder for each class."""
    digits = load_digits()
    for i in range(240):
        place = code / "pictures" / str(digits.target[i])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[i] * 15).astype("uint8")).save(place / f"{i}.png")
    return "pictures"


@pytest.mark.slow
def test_a_bare_net_on_a_folder_of_pictures_is_compressed_and_changed(pictures):
    net = "nets_of_mine:bare"
    small = (*FOLDER, "--to", "8bit", "--limit", "60", "--held", "30", "-o", "SMALL", "--quiet")
    ran = run_words("compress", net, pictures, *small)
    assert ran.code == 0, ran.err
    forget = ("--forget", pictures, "--of-class", "3", *FOLDER, "--force", "--quiet", "-o", "NEW")
    ran = run_words("edit", "forget", net, *forget)
    assert ran.code == 0, ran.err
    old, new = sonde.load(net).module, sonde.load(f"{net}@NEW").module
    assert not torch.equal(old.last.weight, new.last.weight)
    undo("NEW", "OLD")
    assert torch.equal(old.last.weight, sonde.load(f"{net}@OLD").module.last.weight)
    missing = run_words("compress", net, pictures, "--to", "8bit", "-o", "OTHER").error()
    assert "--image-mean and --image-std missing" in missing
