"""The job: every way in checks names and types alike, and gives the same dataset, model, recipe and run."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import reidlib
from reidlib.training import CLASS_RECIPES, RECIPES, Job
from reidlib.training.job import SETTINGS, describe_settings
from reidlib.training.settings import read_text

QUICK = {"dataset": "synthetic-tiny", "model": "osnet_x0_25", "recipe": "toy", "height": 64, "width": 32, "cpu": True}
QUICK |= {"epochs": 1, "people": 4, "images": 2}


def test_parameters_take_the_place_of_the_recipe() -> None:
    job = Job.from_params({"recipe": "agw", "epochs": 100, "lr": None, "settings": {"augment": ["random_flip"]}})
    assert job.recipe == replace(RECIPES["agw"], epochs=100, augment=("random_flip",))
    assert job.overridden == ["epochs", "augment"]
    assert Job.from_params({"recipe": "agw"}).overridden == []
    small = Job.from_params({"recipe": "agw", "scaled": 20, "people": 4}).recipe
    assert (small.epochs, small.people, small.milestones, small.warmup) == (20, 4, (7, 12), pytest.approx(10 / 6))


def test_without_a_recipe_it_is_the_models_own_on_every_way_in(tmp_path: Path) -> None:
    job = Job.from_params({"model": "agw_R50_fastreid"})
    assert (job.recipe, job.recipe_name) == (RECIPES["fastreid_agw"], "fastreid_agw")
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"model": "agw_R50_fastreid", "run": "r"}))
    from reidlib.training.__main__ import read_job

    assert read_job(file).recipe == job.recipe
    assert Job.from_params({"task": "pretrain", "recipe": "toy"}).recipe == CLASS_RECIPES["toy"]


def test_params_json_gives_the_same_job() -> None:
    job = Job.from_params(QUICK | {"settings": {"triplet_weight": 0.5, "workers": 2, "tested_on": "synthetic_b-tiny"}})
    again = Job.from_params(json.loads(json.dumps(job.params)))
    assert (again.plan, again.recipe, again.setup) == (replace(job.plan, run=job.name), job.recipe, job.setup)
    assert again.params == job.params


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"epoch": 3}, "unknown parameter 'epoch': did you mean 'epochs'"),
        ({"settings": {"triplet_wait": 1}}, "unknown parameter 'triplet_wait': did you mean 'triplet_weight'"),
        ({"epochs": "3"}, "parameter 'epochs' is int, got '3'"),
        ({"epochs": True}, "parameter 'epochs' is int, got True"),
        ({"cpu": 1}, "parameter 'cpu' is bool, got 1"),
        ({"settings": {"milestones": ["3"]}}, r"parameter 'milestones' is list\[int\], got \['3'\]"),
        ({"epochs": 3, "settings": {"epochs": 4}}, "'epochs' is given twice"),
        ({"settings": [1]}, r"parameter 'settings' is dict, got \[1\]"),
        ({"recipe": "agv"}, "unknown recipe 'agv': did you mean 'agw'"),
        ({"recipe": "agw", "epochs": 20}, "needs milestones before the last of 20 epochs"),
        ({"model": "osnet_x0_52"}, "unknown model 'osnet_x0_52': did you mean 'osnet_x0_"),
        ({"settings": {"scaled": 0}}, "scaled must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"resume": "re-start"}, "unknown resume 're-start': did you mean 'restart'"),
        ({"task": "pretrain", "recipe": "bot"}, "unknown recipe for pretraining 'bot'"),
        ({"settings": {"losses": ["tripplet=1"]}}, "unknown loss 'tripplet'"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_is_read(params: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        Job.from_params({"model": "osnet_x0_25", "dataset": "market1501", "recipe": "toy"} | params)
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"model": "osnet_x0_25", "dataset": "market1501", "recipe": "toy"} | params))
    from reidlib.training.__main__ import main

    assert main([str(file)]) == 2


def test_a_file_of_parameters_that_is_none_is_one_sentence(tmp_path: Path, capsys) -> None:
    from reidlib.training.__main__ import main

    for text, words in (
        ("[1]", "holds a list"),
        ("{", "not valid JSON"),
        ('{"lr": 1, "lr": 2}', "'lr' is given twice"),
    ):
        (tmp_path / "mine.json").write_text(text)
        assert main([str(tmp_path / "mine.json")]) == 2
        assert words in capsys.readouterr().err
    assert main([str(tmp_path / "none.json")]) == 2


def test_a_run_named_random_is_not_the_word_random(tiny) -> None:
    first = Job.from_params(QUICK | {"run": "random-erasing-run"})
    first.train()
    job = Job.from_params(QUICK | {"init": "random-erasing-run", "run": "second"})
    again = Job.from_params(job.params)
    assert again.plan.init == "random-erasing-run"
    trunk, new = first.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(trunk[key], new[key]) for key in trunk if "backbone" in key)
    assert Job.from_params(QUICK | {"init": "random"}).model.init == "random"


def test_a_shell_trains_what_the_job_trains(tiny, tmp_path: Path) -> None:
    """The same data, drawn at the same size, the same recipe, and result.json with the same fingerprint."""
    params = {k: v for k, v in QUICK.items() if k not in ("height", "width", "recipe")} | {"model": "osnet_x0_25"}
    job = Job.from_params(params | {"run": "here", "recipe": "toy", "height": 0, "width": 0, "seed": 3})
    history = job.train()
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(job.params | {"run": "there"}))
    done = subprocess.run([sys.executable, "-m", "reidlib.training", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    here, there = (reidlib.Run(reidlib.Run.folder(name)) for name in ("here", "there"))
    assert there.metrics[-1]["loss"] == history[-1]["loss"]
    assert there.read_json("result.json") == here.read_json("result.json")
    result = here.read_json("result.json")["results"]["synthetic-tiny"]
    assert result["data"] == job.data.fingerprint()
    assert result["mAP"] == history[-1]["mAP"]
    assert result["untrained"]["mAP"] == history[0]["mAP"]


def test_every_setting_is_explained() -> None:
    assert describe_settings().keys() == SETTINGS.keys() - {"task"}
    for name, (_, _, words) in describe_settings().items():
        assert words, f"{name} has no help"


# Text of a command line


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("20", int, 20),
        ("010", int, 10),
        ("1e-3", float, 1e-3),
        ("2", float, 2.0),
        ("0123", str, "0123"),
        ("true", bool, True),
        ("False", bool, False),
        ("20,40", tuple[int, ...], (20, 40)),
        ("2", tuple[int, ...], (2,)),
        ("1,2", list, [1, 2]),
        ("[1, 2]", list, [1, 2]),
        ("", list, []),
        ("random_flip,random_crop", list, ["random_flip", "random_crop"]),
        ("one", list, ["one"]),
        ("['1', 2]", list[str], ["1", "2"]),
        ("{margin: 1.0, augment: [a, b], pk: false}", dict, {"margin": 1.0, "augment": ["a", "b"], "pk": False}),
        ("None", bool | None, None),
    ],
)  # fmt: skip
def test_text_is_read_as_the_type(text: str, kind: type, value: object) -> None:
    got = read_text("p", text, kind)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("3.5", int, "parameter 'p' is int, got '3.5'"),
        ("true", int, "parameter 'p' is int, got 'true'"),
        ("1:30", int, "parameter 'p' is int, got '1:30'"),
        ("0x10", int, "parameter 'p' is int, got '0x10'"),
        ("fast", float, "parameter 'p' is float, got 'fast'"),
        ("2", bool, "parameter 'p' is bool, got '2'"),
        ("yes", bool, "parameter 'p' is bool, got 'yes'"),
        ("1,x", tuple[int, ...], r"parameter 'p' is list\[int\], got '1,x'"),
        ("[1, 2", list, r"parameter 'p': '\[1, 2' is not valid YAML"),
        ("&a [*a]", dict, "has an anchor"),
        ("[&a [*a]]", list, "has an anchor"),
        ("", dict, "parameter 'p' is dict, got ''"),
        ("{a: 1, a: 2}", dict, "parameter 'p': 'a' is given twice"),
        ("a", dict, "parameter 'p' is dict, got 'a'"),
        ("None", int, "parameter 'p' is int, got 'None'"),
    ],
)
def test_text_of_another_type_is_refused(text: str, kind: type, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_text("p", text, kind)


def test_what_may_change_on_resume_stands_in_params_json(tiny, capsys) -> None:
    def stop(history: list) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Job.from_params(QUICK | {"run": "r", "epochs": 3}).train(on_epoch=stop, progress=True)
    assert "epoch 1 of 3" in capsys.readouterr().err
    more = {"workers": 1, "settings": {"eval_every": 1, "patience": 9, "keep_every": 1}}
    history = Job.from_params(QUICK | {"run": "r", "epochs": 3} | more).train()
    assert capsys.readouterr().err == ""
    assert ["mAP" in row for row in history] == [True, False, True, True]
    run = reidlib.Run.open("r")
    assert {name: run.params[name] for name in ("workers", "eval_every", "patience", "keep_every")} == {
        "workers": 1, "eval_every": 1, "patience": 9, "keep_every": 1,
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"lr 0\.004 → 0\.1"):
        Job.from_params(QUICK | {"run": "r", "epochs": 3, "lr": 0.1}).train()
    assert run.params["lr"] == 0.004  # what was refused is not written down


def test_a_run_without_a_name_counts_on_where_a_setting_has_changed(tiny) -> None:
    first = Job.from_params(QUICK)
    assert first.name == "osnet_x0_25-synthetic-tiny"
    first.train()
    other = Job.from_params(QUICK | {"lr": 0.01})
    assert other.name == "osnet_x0_25-synthetic-tiny-2"
    other.train()
    assert (other.name, other.run.params["run"]) == ("osnet_x0_25-synthetic-tiny-2",) * 2  # as long as the job lives
    for params, name in (
        (QUICK, first.name),
        (QUICK | {"workers": 2, "settings": {"keep_every": 1, "patience": 3}}, first.name),  # what may change
        (QUICK | {"resume": "restart"}, first.name),  # replaces a run only by one with the same settings
        (QUICK | {"lr": 0.01}, other.name),
        (QUICK | {"init": first.name}, "osnet_x0_25-synthetic-tiny-3"),
        (QUICK | {"settings": {"combineall": True}}, "osnet_x0_25-synthetic-tiny-3"),
        (QUICK | {"lr": 0.01, "run": "mine"}, "mine"),
    ):
        assert Job.from_params(params).name == name
    assert Job.from_params(QUICK | {"lr": 0.02}).differences(other.run.params) == {"lr": (0.01, 0.02)}
    old = {name: value for name, value in other.run.params.items() if name not in ("ema", "plugin_files", "tested_on")}
    assert Job.from_params(QUICK | {"lr": 0.01}).differences(old) == {}  # a run that is older than these settings


def test_a_default_name_passes_by_what_is_no_run_or_damaged() -> None:
    folder = reidlib.Run.folder("osnet_x0_25-synthetic-tiny")
    folder.mkdir(parents=True)
    (folder / "thesis.tex").touch()
    run = reidlib.Run.create("osnet_x0_25-synthetic-tiny-2", Job.from_params(QUICK).params).begin()
    assert Job.from_params(QUICK).name == "osnet_x0_25-synthetic-tiny-2"
    (run.path / "params.json").write_text("{")
    assert Job.from_params(QUICK).name == "osnet_x0_25-synthetic-tiny-3"
