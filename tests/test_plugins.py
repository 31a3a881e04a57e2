"""Plug-ins: a user's own network, loss, augmentation, dataset and recipe, without a change of the package."""

import json
from pathlib import Path

import pytest
import torch

import reidlib
from reidlib.files import sha256
from reidlib.training import Job, plugins
from reidlib.training.losses import LOSSES
from reidlib.training.plugins import TABLES, load_plugins

IDEAS = Path(__file__).resolve().parents[1] / "notebooks" / "my_ideas.py"
QUICK = {"dataset": "synthetic-tiny", "recipe": "toy", "height": 64, "width": 32, "cpu": True, "epochs": 2}
QUICK |= {"people": 4, "images": 2}


@pytest.fixture(autouse=True)
def _tables_as_they_were():
    before = {name: dict(table) for name, table in TABLES.items()}
    yield
    for name, table in TABLES.items():
        table.clear()
        table.update(before[name])
    plugins._added.clear()


def write(folder: Path, text: str, name: str = "mine.py") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_an_idea_trains_and_every_page_opens_its_run(tiny, tmp_path: Path) -> None:
    idea = {"model": "three_stages", "losses": ["compact=0.1"], "augment": ["random_flip", "random_grey=0.5"]}
    job = Job.from_params(QUICK | idea | {"plugins": str(IDEAS), "run": "idea"})
    history = job.train()
    assert history[-1]["loss"] < history[1]["loss"]
    assert "compact" in history[-1]
    run = reidlib.Run.open("idea")
    assert run.params["plugin_files"] == {"my_ideas.py": sha256(IDEAS)}
    assert (run.path / "plugins" / "my_ideas.py").read_bytes() == IDEAS.read_bytes()
    model = run.load_model("cpu")
    query, _ = run.features(model, tiny)
    assert query.feats.shape == (20, 128)
    from reidlib.plots import feature_cam

    images = torch.randint(0, 256, (2, 3, 64, 32), dtype=torch.uint8)
    assert len(feature_cam(model, images)) == 2
    changed = Job.from_params(run.params | {"plugins": write(tmp_path, IDEAS.read_text() + "#", IDEAS.name)})
    with pytest.raises(ValueError, match="the plug-ins of idea have changed since it began"):
        changed.train()
    again = Job.from_params(run.params)
    assert (again.recipe, again.plan) == (job.recipe, job.plan)


def test_a_run_of_another_person_executes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny) -> None:
    canary = tmp_path / "canary"
    text = f"from pathlib import Path\nPath({str(canary)!r}).touch()\n" + IDEAS.read_text()
    Job.from_params(QUICK | {"model": "three_stages", "plugins": write(tmp_path, text), "run": "theirs"}).train()
    folder = reidlib.Run.folder("theirs")
    canary.unlink()
    plugins._added.clear()
    for table in ("MODELS", "LOSSES", "AUGMENTATIONS"):
        for name in ("three_stages", "compact", "random_grey"):
            TABLES[table].pop(name, None)
    monkeypatch.setenv("REID_RUNS", str(tmp_path / "mine"))  # nobody named this file here
    monkeypatch.delitem(__import__("sys").modules, "reidlib_plugin_mine")
    with pytest.raises(ValueError, match=r"needs the plug-in .*mine\.py, which is code: read it, then set plugins"):
        reidlib.Run.open(str(folder))
    assert not canary.exists()
    copy = folder / "plugins" / "mine.py"
    assert reidlib.Run.open(str(folder), plugins=str(copy)).load_model("cpu").name == "three_stages"
    assert canary.exists()
    reidlib.Run.open(str(folder))  # from now on by itself
    copy.write_text(copy.read_text() + "\n")
    with pytest.raises(ValueError, match="is not the plug-in that the run was trained with"):
        reidlib.Run.open(str(folder))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", "defines none of MODELS, LOSSES"),
        ("LOSES = {'a': print}", "unknown table in the plug-in .*: did you mean 'LOSSES'"),
        ("LOSSES = [print]", "LOSSES in the plug-in .* is a list: make it a dict of names"),
        ("LOSSES = {'a': 3}", "'a' is a int, not a function"),
        ("LOSSES = {'multi_similarity': print}", "'multi_similarity' is a name of the package, choose another"),
        ("AUGMENTATIONS = {'random_flip': print}", "'random_flip' is a name of the package"),
        ("MODELS = {'osnet_x1_0': print}", "'osnet_x1_0' is a name of the package"),
        ("RECIPES = {'bot2': {'lr': 1}}", "'bot2' is a dict, not a Recipe"),
        ("RECIPES = {'imagenet': 1}", "'imagenet' is a name of the package"),
        ("LOSSES = {3: print}", "has the name 3: use text"),
        ("import nothing_of_that_name", "line 1, raised ModuleNotFoundError"),
        ("x = 1\nx.y", "line 2, raised AttributeError"),
        ("def f(:\n", "line 1, raised SyntaxError"),
    ],
)
def test_a_wrong_file_is_one_sentence_and_adds_nothing(tmp_path: Path, text: str, words: str) -> None:
    before = {name: dict(table) for name, table in TABLES.items()}
    with pytest.raises(ValueError, match=words):
        load_plugins(write(tmp_path, text))
    assert {name: dict(table) for name, table in TABLES.items()} == before
    with pytest.raises(FileNotFoundError, match="which is not a Python file"):
        load_plugins(str(tmp_path / "none.py"))


def test_a_file_that_was_changed_replaces_its_entries_and_no_others(tmp_path: Path) -> None:
    one = write(tmp_path, "def a(outputs, labels): return 1\nLOSSES = {'a': a, 'b': a}")
    two = write(tmp_path, "def a(outputs, labels): return 2\nLOSSES = {'c': a}", "other.py")
    hashes = load_plugins(f"{one}, {two}")
    assert hashes == {one: sha256(one), two: sha256(two)}
    assert {"a", "b", "c"} <= LOSSES.keys()
    write(tmp_path, "def a(outputs, labels): return 3\nLOSSES = {'a': a}")
    load_plugins(one)
    assert LOSSES["a"](None, None) == 3
    assert "b" not in LOSSES
    assert "c" in LOSSES
    with pytest.raises(ValueError, match=r"'a' is a name of the plug-in mine\.py"):
        load_plugins(write(tmp_path, "LOSSES = {'a': print}", "third.py"))


def test_a_dataset_and_a_recipe_of_ones_own(tmp_path: Path, tiny) -> None:
    text = """
from dataclasses import replace
from reidlib.data.datasets import load_dataset
from reidlib.training import Recipe

def read(name, path, where):
    return replace(load_dataset("synthetic-tiny"), name=name)

DATASETS = {"my_data": read}
RECIPES = {"short": Recipe(epochs=1, people=4, images=2, height=64, width=32)}
"""
    (tmp_path / "paths.yaml").write_text(f"synthetic: {tmp_path / 'data'}\nmy_data: {tmp_path}\n")
    import os

    os.environ["REID_DATA_PATHS"] = str(tmp_path / "paths.yaml")
    job = Job.from_params({"dataset": "my_data", "recipe": "short", "cpu": True, "plugins": write(tmp_path, text)})
    assert job.train()[-1]["epoch"] == 1
    result = json.loads((job.run.path / "result.json").read_text())["results"]
    assert "my_data" in result


def test_a_loss_that_gives_no_number_is_refused(tmp_path: Path, tiny) -> None:
    path = write(tmp_path, "def a(outputs, labels): return outputs.embeddings[0]\nLOSSES = {'a': a}")
    job = Job.from_params(QUICK | {"losses": ["a"], "plugins": path, "run": "bad"})
    with pytest.raises(ValueError, match=r"the loss a gave shape \(8, .*: it must give one number"):
        job.train()


@pytest.mark.parametrize(
    ("name", "of"),
    [("multi_similarity", "MultiSimilarityLoss"), ("supervised_contrastive", "SupConLoss"), ("ntxent", "NTXentLoss")],
)
def test_further_losses_are_those_of_pytorch_metric_learning_averaged_over_branches(name: str, of: str) -> None:
    from pytorch_metric_learning import losses

    from reidlib.models import Outputs

    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 4])  # one stands alone
    one = getattr(losses, of)()
    expected = (one(x, labels) + one(2 * x + 1, labels)) / 2
    got = LOSSES[name](Outputs([], [x, 2 * x + 1]), labels)
    assert torch.allclose(got, expected)
    (gradient,) = torch.autograd.grad(got, x)
    assert torch.allclose(gradient, *torch.autograd.grad(expected, x), atol=1e-6)
    assert gradient.abs().sum() > 0


def test_a_network_that_gives_a_vector_ranks_and_has_no_map(tmp_path: Path) -> None:
    text = """
from torch import nn

def flat(num_classes, input_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * input_size[0] * input_size[1], 7))

MODELS = {"flat": flat}
"""
    load_plugins(write(tmp_path, text))
    model = reidlib.create_model("flat", num_classes=3, input_size=(64, 32)).eval()
    images = torch.randint(0, 256, (2, 3, 64, 32), dtype=torch.uint8)
    assert model(images).shape == (2, 7)
    assert model.scores(images).shape == (2, 3)
    assert model.output_shapes().logits[0].shape == (2, 3)
    with pytest.raises(ValueError, match=r"come from no map .* attribute `cam_layer`"):
        _ = model.cam_layer


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return 3", "the network mine is built as a int: return an nn.Module"),
        ("return nn.Conv2d(4, 8, 1)", "the network mine cannot take images of 64 x 32: RuntimeError"),
        ("return nn.Flatten(2)", r"the network mine gives \(2, 3, 2048\) torch.float32: it must give a map"),
        ("return nn.LSTM(32, 4)", "the network mine cannot take images"),
    ],
)
def test_a_network_that_is_none_is_one_sentence(tmp_path: Path, body: str, words: str) -> None:
    load_plugins(
        write(tmp_path, f"from torch import nn\ndef mine(classes, size):\n    {body}\nMODELS = {{'mine': mine}}")
    )
    with pytest.raises(ValueError, match=words):
        reidlib.create_model("mine", input_size=(64, 32))
