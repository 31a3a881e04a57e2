"""Models as files that run elsewhere: ONNX, torch.export, OpenVINO; in float32, float16 or int8.

The file takes uint8 RGB images (B, 3, H, W) of the model's input size, any B of 1 or more, and gives the retrieval
features (B, D) float32: normalisation is inside. Resizing is not: `metadata` says to what size, and how.
"""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from reidlib.errors import unknown_name
from reidlib.files import scratch_folder, whole_file

if TYPE_CHECKING:
    from reidlib.models import ReIDModel

FORMATS = {"onnx": ".onnx", "torch": ".pt2", "openvino": ".xml"}
PRECISIONS = ("float32", "float16", "int8")
PIXELS = ("uint8", "normalised")
_NEEDS = {"onnx": "onnx onnxscript onnxruntime", "openvino": "openvino"}


class _Network(nn.Module):
    """The fused model without camera labels; `pixels` "normalised" leaves normalisation to the caller."""

    def __init__(self, model: "ReIDModel", pixels: str) -> None:
        super().__init__()
        self.model, self.pixels = model.fuse(), pixels

    def forward(self, images: Tensor) -> Tensor:
        return (self.model.network(images) if self.pixels == "normalised" else self.model(images)).float()


def export_model(
    model: "ReIDModel",
    path: str | Path,
    *,
    format: str = "",
    precision: str = "float32",
    pixels: str = "uint8",
    calibration: Tensor | None = None,
) -> Path:
    """Write a model as a file that runs without this package.

    Args:
        model: On the CPU; it stays as it is. Models that embed the camera are exported without one.
        path: The file to write.
        format: "onnx", "torch" (torch.export, needs PyTorch) or "openvino"; default: by the file's ending .onnx, .pt2
            or .xml.
        precision: "float16" or "int8" of ONNX and OpenVINO files, which are smaller. Features change: measure what it
            costs.
        pixels: "uint8", or "normalised": float32 images that the caller has normalised, as trackers such as BoxMOT do.
        calibration: For "int8": some hundred images as the model takes them (N, 3, H, W) uint8, from which the ranges
            of activations are read.

    Returns:
        The file. Of OpenVINO a second one with the weights lies beside it, .bin.

    Raises:
        ValueError: Format, precision or pixels are unknown or do not go together.
        ImportError: A package that the format needs is not installed.
        RuntimeError: The model cannot be exported; the sentence says why.
    """
    path = Path(path)
    format = format or {ending: name for name, ending in FORMATS.items()}.get(path.suffix.lower(), "")
    kinds: list[tuple[str, str, Iterable[str]]] = [("format", format, FORMATS), ("precision", precision, PRECISIONS)]
    for kind, value, known in [*kinds, ("pixels", pixels, PIXELS)]:
        if value not in known:
            raise unknown_name(f"{kind} of an exported model", value, known)
    if precision != "float32" and format == "torch":
        raise ValueError(f"{precision} is for ONNX and OpenVINO, not for torch.export")
    if precision == "int8" and (calibration is None or calibration.dtype != torch.uint8 or pixels != "uint8"):
        raise ValueError("int8 needs `calibration`, some hundred uint8 images (N, 3, H, W), and pixels='uint8'")
    network = _Network(model.cpu() if next(model.parameters()).is_cuda else model, pixels).eval()
    if format == "torch":
        with whole_file(path) as part:
            torch.export.save(_traced(network, model), part, extra_files={"metadata.json": json.dumps(metadata(model))})
        return path
    with _package(format), scratch_folder() as folder:
        file = _write_onnx(network, model, folder / "model.onnx")
        if precision != "float32":
            file = _smaller(file, precision, calibration)
        if format == "onnx":
            with whole_file(path) as part:
                part.write_bytes(file.read_bytes())
        else:
            import openvino

            openvino.save_model(openvino.convert_model(file), folder / path.name, compress_to_fp16=False)
            for ending in (".bin", ".xml"):  # the weights first
                with whole_file(path.with_suffix(ending)) as part:
                    part.write_bytes((folder / path.name).with_suffix(ending).read_bytes())
    return path


def metadata(model: "ReIDModel") -> dict[str, str]:
    """What a user of the file must know: model, input size, interpolation, mean and std, length of the feature."""
    size = {"height": str(model.input_size[0]), "width": str(model.input_size[1])}
    pixels = {"mean": str(list(model.mean)), "std": str(list(model.std)), "interpolation": model.interpolation}
    return {"model": model.name, **size, **pixels, "feature_dim": str(model.feature_dim), "colours": "RGB"}


def load_exported(path: str | Path, *, threads: int = 0) -> Callable[[Tensor], Tensor]:
    """A function of images that runs an exported file: images as it takes them to features (B, D) float32 on the CPU.

    Args:
        path: What `export_model` wrote.
        threads: Of the processor; 0: as the library chooses.

    Raises:
        ImportError: The package that runs it is not installed.
    """
    path = Path(path)
    if path.suffix == ".pt2":
        module = torch.export.load(path).module()
        return lambda images: module(images)
    if path.suffix == ".xml":
        with _package("openvino"):
            import openvino

        options = {"INFERENCE_PRECISION_HINT": "f32"} | ({"INFERENCE_NUM_THREADS": threads} if threads else {})
        compiled = openvino.compile_model(path, "CPU", options)  # otherwise bfloat16 where the processor has it
        return lambda images: torch.from_numpy(compiled(images.numpy())[0].copy())
    with _package("onnx"):
        import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (name,) = (given.name for given in session.get_inputs())
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


@torch.inference_mode()
def largest_difference(model: "ReIDModel", path: str | Path, images: Tensor) -> float:
    """The largest difference between a feature of the file and of the model, over the largest feature.

    Args:
        model: What was exported.
        path: The file.
        images: (N, 3, H, W) uint8.
    """
    expected = model.fuse()(images)
    return float((load_exported(path)(images) - expected).abs().max() / expected.abs().max())


def _traced(network: _Network, model: "ReIDModel") -> Any:
    """The program of torch.export, with a dynamic batch. RuntimeError saying why there is none."""
    dtype = torch.uint8 if network.pixels == "uint8" else torch.float32
    images = torch.zeros(2, 3, *model.input_size, dtype=dtype)
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    except Exception as error:  # torch raises many kinds
        raise RuntimeError(f"{model.name} cannot be exported: {' '.join(str(error).split())[:300]}") from error


def _write_onnx(network: _Network, model: "ReIDModel", file: Path) -> Path:
    program = _traced(network, model)
    try:
        with _quiet():
            names = {"input_names": ["images"], "output_names": ["features"]}
            written = torch.onnx.export(program, **names, dynamo=True, verbose=False, external_data=False)
            for node in written.model.graph:  # the lines of Python that each came from: more than the weights
                node.metadata_props.clear()
            written.model.metadata_props.update(metadata(model))
            written.save(file, external_data=False)
    except Exception as error:  # likewise
        raise RuntimeError(f"{model.name} cannot be written as ONNX: {' '.join(str(error).split())[:300]}") from error
    return file


def _smaller(file: Path, precision: str, calibration: Tensor | None) -> Path:
    import onnx

    out = file.with_name(f"{precision}.onnx")
    with _quiet():
        if precision == "float16":
            from onnxruntime.transformers.float16 import convert_float_to_float16

            onnx.save(convert_float_to_float16(onnx.load(file), keep_io_types=True), out)
            return out
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Reader(CalibrationDataReader):
            def __init__(self) -> None:
                self.parts: Iterator[Tensor] = iter(calibration.split(8))

            def get_next(self) -> dict[str, Any] | None:
                part = next(self.parts, None)
                return None if part is None else {"images": part.numpy()}

        ready = file.with_name("ready.onnx")
        quant_pre_process(str(file), str(ready), skip_symbolic_shape=True)
        kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
        quantize_static(str(ready), str(out), Reader(), quant_format=QuantFormat.QDQ, **kinds)
    return out


@contextlib.contextmanager
def _package(format: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        packages = f"{_NEEDS['onnx']} {_NEEDS['openvino'] if format == 'openvino' else ''}".strip()
        raise ImportError(f"{format} needs packages that are not installed: pip install {packages}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters print and log about their own progress."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
