"""Exported models give the features of PyTorch, at any batch size, from uint8 images."""

import json
from pathlib import Path

import pytest
import torch

import reidlib
from reidlib.data.loaders import eval_loader
from reidlib.evaluation import evaluate_ranking, extract_features, ranking_inputs
from reidlib.models import export

SIZE = (64, 32)
# Models that ONNX cannot express, with the reason that their error gives.
UNSUPPORTED: dict[str, str] = {}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return reidlib.create_model("osnet_x0_25", input_size=SIZE).eval()


@pytest.fixture(scope="module")
def onnx_file(model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxscript")
    return export.export_model(model, tmp_path_factory.mktemp("export") / "model.onnx")


def images(count: int, size: tuple[int, int] = SIZE, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_onnx_gives_the_features_of_pytorch_at_any_batch_size(model, onnx_file: Path) -> None:
    import onnx

    for count in (1, 3, 9):
        assert export.largest_difference(model, onnx_file, images(count)) < 1e-5
    about = {entry.key: entry.value for entry in onnx.load(onnx_file).metadata_props}
    assert about == export.metadata(model)
    assert (about["height"], about["width"], about["interpolation"]) == ("64", "32", "bilinear")
    assert onnx_file.stat().st_size < 1.5e6  # 0.8 MB of weights
    assert model.training is False


@pytest.mark.slow
def test_a_smaller_precision_is_smaller_and_close(model, onnx_file: Path, tmp_path: Path) -> None:
    half = export.export_model(model, tmp_path / "half.onnx", precision="float16")
    assert export.largest_difference(model, half, images(4)) < 0.01
    assert half.stat().st_size < 0.8 * onnx_file.stat().st_size


@pytest.mark.slow
def test_int8_loses_little_map_on_the_drawn_people(tiny, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = reidlib.create_model("osnet_x0_25", input_size=SIZE).eval()
    pytest.importorskip("onnxscript")
    loaders = {side: eval_loader(getattr(tiny, side), SIZE) for side in ("query", "gallery", "train")}
    calibration = next(iter(loaders["train"])).images
    small = export.export_model(model, tmp_path / "int8.onnx", precision="int8", calibration=calibration)
    run = export.load_exported(small)
    scores = []
    for of in (lambda i, c: model(i, c), lambda i, c: run(i)):
        network = type("Network", (torch.nn.Module,), {"forward": lambda self, i, c, of=of: of(i, c)})()
        feats = [extract_features(network, loaders[side], device="cpu") for side in ("query", "gallery")]
        scores.append(evaluate_ranking(*ranking_inputs(*feats)).mAP)
    assert abs(scores[0] - scores[1]) < 0.05


def test_what_does_not_go_together_is_said(model, tmp_path: Path) -> None:
    for options, words in (
        ({"format": "onx"}, "unknown format of an exported model 'onx': did you mean 'onnx'"),
        ({"format": "onnx", "precision": "int4"}, "unknown precision"),
        ({"format": "onnx", "precision": "int8"}, "int8 needs `calibration`"),
        ({"format": "torch", "precision": "float16"}, "not for torch.export"),
        ({}, "unknown format of an exported model ''"),
    ):
        with pytest.raises(ValueError, match=words):
            export.export_model(model, tmp_path / "model.bin", **options)
    assert not list(tmp_path.iterdir())


def test_a_network_that_looks_at_values_says_why_it_cannot_be_exported(model, tmp_path: Path) -> None:
    class Odd(torch.nn.Module):
        input_size, name = SIZE, "odd"

        def fuse(self):
            return self

        def forward(self, images):
            return images.float().mean((2, 3)) if images.sum().item() > 3 else images.float().amax((2, 3))

    odd = Odd()
    odd.register_parameter("weight", torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(RuntimeError, match="odd cannot be exported"):
        export.export_model(odd, tmp_path / "odd.pt2")
    assert not list(tmp_path.iterdir())


class BoxMOT:
    """What BoxMOT's ONNX back end does with a file: resized, normalised float32 crops in, features out."""

    def __init__(self, file: Path) -> None:
        import onnxruntime

        self.session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        self.name = self.session.get_inputs()[0].name

    def features(self, crops: torch.Tensor) -> torch.Tensor:
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        pixels = (crops.float() / 255 - mean) / std
        return torch.from_numpy(self.session.run([self.session.get_outputs()[0].name], {self.name: pixels.numpy()})[0])


@pytest.mark.slow
def test_a_tracker_that_normalises_itself_takes_the_file(model, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    file = export.export_model(model, tmp_path / "tracker.onnx", pixels="normalised")
    torch.testing.assert_close(BoxMOT(file).features(images(5)), model(images(5)).detach(), rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_torch_export_gives_the_features_of_pytorch(model, tmp_path: Path) -> None:
    file = export.export_model(model, tmp_path / "model.pt2")
    assert export.largest_difference(model, file, images(3)) < 1e-5
    extra = {"metadata.json": ""}
    torch.export.load(file, extra_files=extra)
    assert json.loads(extra["metadata.json"])["model"] == "osnet_x0_25"


@pytest.mark.slow
def test_openvino_gives_the_features_of_pytorch(model, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("onnxscript")
    file = export.export_model(model, tmp_path / "model.xml")
    assert export.largest_difference(model, file, images(3)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", reidlib.list_models())
def test_every_model_gives_its_features_in_onnxruntime(name: str, tiny, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    model = reidlib.create_model(name).eval()
    batch = next(iter(eval_loader(tiny.query[:3], model.input_size, interpolation=model.interpolation))).images
    if name in UNSUPPORTED:
        with pytest.raises(RuntimeError, match=UNSUPPORTED[name]):
            export.export_model(model, tmp_path / "model.onnx")
        return
    difference = export.largest_difference(model, export.export_model(model, tmp_path / "model.onnx"), batch)
    print(f"{name}: {difference:.1e}")
    assert difference < 1e-3
