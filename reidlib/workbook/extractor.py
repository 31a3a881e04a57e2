"""Features of any images by one model, with the model's own preprocessing: the door for images of one's own."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b, sha256
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from reidlib import files
from reidlib.data.datasets import load_dataset
from reidlib.data.images import ImageSource, open_image, resize_image
from reidlib.data.loaders import eval_loader
from reidlib.data.own_images import walk_folder
from reidlib.data.samples import ReIDDataset, Sample
from reidlib.decoding import decode_image
from reidlib.evaluation.features import extract_features, feature_function
from reidlib.models import ReIDModel
from reidlib.models.zoo import canonical_name
from reidlib.paths import run_folder
from reidlib.workbook import threshold as cards
from reidlib.workbook.runs import Run

if TYPE_CHECKING:
    from reidlib.workbook.threshold import SamePerson, ThresholdCard

Images = ImageSource | Sample | ReIDDataset | Iterable[ImageSource | Sample]
SMALLEST = 4  # pixels a side: less shows nobody
_LARGEST = 2**29  # bytes of a file that is read at once
_IN_THE_BOX = ("osnet_x0_5", "osnet_x0_25")  # models whose weights "drawn" may lie in the package
_READERS = 4  # threads that decode, as in `ImageSet.preload`


class _Item(NamedTuple):
    name: str
    source: Any  # an image in any form, or a tuple (frame, box)
    reason: str = ""  # why it is no image, where that is known without looking


@dataclass(frozen=True)
class Extracted:
    """Features of the images that could be read, and why the others could not.

    Attributes:
        feats: (N, D) float32 on the CPU, as the network gives them (not normalised).
        names: N paths as given, or "image 3" for what is no file, counted from 0.
        skipped: Name and reason of each image that was skipped.
        digests: N hashes of the files' bytes, "" for what is no file.
    """

    feats: Tensor
    names: list[str]
    skipped: list[tuple[str, str]] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def summary(self) -> str:
        """How many images were skipped and why, in one sentence; "" if none was."""
        return skipped_line(self.skipped, len(self) + len(self.skipped))


def skipped_line(skipped: Sequence[tuple[str, str]], count: int) -> str:
    """How many of `count` images were skipped, with the reasons of the first three; "" if none was."""
    if not skipped:
        return ""
    reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped[:3])
    more = f"; and {len(skipped) - 3} more" if len(skipped) > 3 else ""
    return f"{len(skipped)} of {count} images skipped ({reasons}{more})"


class _Copies(dict[str, str]):
    """Which file was the first with these bytes."""

    def __call__(self, digest: str, name: str) -> str:
        first = self.setdefault(digest, name)
        return "" if first == name else f"the same file as {first}"


class Extractor:
    """Features of images by one model, with the preprocessing that the model was trained with.

    `extractor(images)` gives a tensor (N, D). Images are files, folders (all images below), PIL images, arrays
    (H, W, 3), tensors (3, H, W), or lists and iterators of these; arrays and tensors with a further dimension in front
    are batches. What cannot be read is skipped, counted and named in a warning.

    Args:
        run_or_model: A run (`Run`, its name or path), a model, or a model's name; empty: the newest run, or the weights
            that lie in the package where there is none.
        weights: With a model's name: which ones, as `create_model` takes them.
        device: Where to run; default: the GPU where there is one, or where the model is.
        batch_size: Images a batch.
        flip, bfloat16: See `extract_features`.

    Attributes:
        model: The model.
        run: The run that it comes from, or None.

    Raises:
        FileNotFoundError: There is neither a run nor a model of that name.
        ValueError: The model's name is unknown; what `Run.open` and `create_model` raise.
    """

    def __init__(
        self,
        run_or_model: Run | ReIDModel | str | Path = "",
        *,
        weights: str | Path = "",
        device: torch.device | str | None = None,
        batch_size: int = 64,
        flip: bool = False,
        bfloat16: bool = False,
    ) -> None:
        self.run: Run | None = None
        if isinstance(run_or_model, torch.nn.Module):
            self.model = run_or_model
        else:
            self.run = run_or_model if isinstance(run_or_model, Run) else _open_run(str(run_or_model), str(weights))
            self.model = self.run.load_model(device)
        self.device = torch.device(device) if device is not None else next(self.model.parameters()).device
        self.batch_size, self._options = batch_size, {"flip": flip, "bfloat16": bfloat16}
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")

    @cached_property
    def interpolation(self) -> str:
        """How images are resized: "bilinear" or "bicubic"."""
        return self.run.interpolation if self.run else self.model.interpolation

    @cached_property
    def weights(self) -> str:
        """The SHA-256 of the weights: of model.safetensors of a run, otherwise of all tensors of the model."""
        if self.run:
            return files.sha256(self.run.path / "model.safetensors")
        digest = sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    @property
    def stamp(self) -> dict[str, str]:
        """What features depend on besides the images: weights, input size, interpolation, flip."""
        about = "{}x{} {}".format(*self.model.input_size, self.interpolation) + " flip" * self._options["flip"]
        return {"weights": self.weights, "input": about}

    def __call__(self, images: Images, *, progress: bool = False) -> Tensor:
        """Features (N, D) float32 on the CPU of the images that can be read; a warning names the others.

        `extract` also says which row is which image.
        """
        found = self.extract(images, progress=progress)
        if found.skipped:
            warnings.warn(found.summary(), stacklevel=2)
        return found.feats

    def extract(self, images: Images, *, progress: bool = False) -> Extracted:
        """As a call, with names and with the images that were skipped.

        Of equal files in a folder the first counts. Of a list every entry does.
        """
        parts = list(self.stream(images, progress=progress))
        return Extracted(
            torch.cat([part.feats for part in parts] or [torch.empty(0, self.model.feature_dim)]),
            *([x for part in parts for x in getattr(part, name)] for name in ("names", "skipped", "digests")),
        )

    def stream(
        self, images: Images, *, is_copy: Callable[[str, str], str] | None = None, progress: bool = False
    ) -> Iterator[Extracted]:
        """The same batch by batch, in order, at fixed memory. The next batch is decoded while the network runs.

        Args:
            images: As for a call.
            is_copy: Called with the hash of each file that could be read and with its name, in order: why it is to be
                skipped, such as "the same file as ...", or "". Default: of equal files in a folder the first counts.
            progress: Show a bar.
        """
        items = _items(images)
        if is_copy is None and _is_folder(images):
            is_copy = _Copies()
        if progress:
            from tqdm.auto import tqdm

            items = tqdm(items, desc="features", unit="image", leave=False)
        with ThreadPoolExecutor(_READERS) as pool:
            waiting: list[tuple[_Item, Future]] = []
            while batch := list(islice(items := iter(items), self.batch_size)):
                waiting, ready = [(item, pool.submit(self._read, item)) for item in batch], waiting
                if ready:
                    yield self._features(ready, is_copy)
            if waiting:
                yield self._features(waiting, is_copy)

    def crops(self, frame: ImageSource, boxes: Any) -> Tensor:
        """Features (N, D) of boxes in one image, as a detector gives them.

        Args:
            frame: An image in any form, in RGB.
            boxes: (N, 4) left, top, right, bottom in pixels; what lies outside of the frame is cut off.

        Raises:
            ValueError: A box holds no pixel of the frame, or boxes have another shape.
        """
        image = open_image(frame)
        corners = np.asarray(boxes.detach().cpu() if isinstance(boxes, Tensor) else boxes, dtype=float)
        if corners.size == 0:
            return torch.empty(0, self.model.feature_dim)
        if corners.ndim != 2 or corners.shape[1] != 4 or not np.isfinite(corners).all():
            raise ValueError(f"boxes are (N, 4) left, top, right, bottom in pixels, not of shape {corners.shape}")
        edges = np.array([image.width, image.height] * 2)
        corners = np.concatenate([np.floor(corners[:, :2]), np.ceil(corners[:, 2:])], 1).clip(0, edges).astype(int)
        empty = ((corners[:, 2:] - corners[:, :2]) < SMALLEST).any(1).nonzero()[0]
        if len(empty):
            raise ValueError(
                f"{len(empty)} of {len(corners)} boxes hold less than {SMALLEST} × {SMALLEST} pixels of a frame of "
                f"{image.width} × {image.height}, the first is box {empty[0]}: boxes are left, top, right, bottom"
            )
        return self([image.crop(tuple(box)) for box in corners.tolist()])

    def similarity(self, a: ImageSource, b: ImageSource) -> float:
        """The cosine similarity of two images, from -1 to 1.

        Raises:
            ValueError: One of them cannot be read.
        """
        found = self.extract([a, b])
        if found.skipped:
            raise ValueError(found.summary())
        first, second = normalize(found.feats.double())
        return float(first @ second)

    def same_person(self, a: ImageSource, b: ImageSource, *, false_positive_rate: float = 1e-3) -> "SamePerson":
        """Whether two images show the same person, by the threshold card of the model.

        A run without a card is calibrated first on the dataset that it was tested on, if that is here.

        Args:
            a, b: Images in any form.
            false_positive_rate: How often two people may be taken for one: a rate of the card, 0.001 or 0.01.

        Returns:
            Similarity, threshold, the rates that it stands for, on which data it was calibrated, and all of it in a
            sentence. `same` is None where there is no card.

        Raises:
            ValueError: An image cannot be read, or the card has no such rate.
        """
        return cards.decide(self.similarity(a, b), self.threshold_card(), false_positive_rate)

    def threshold_card(self) -> "ThresholdCard | None":
        """The threshold card of these weights; made if the run has none and its dataset is here; None otherwise."""
        if not hasattr(self, "_card"):
            self._card = cards.find_card(self.run, self.stamp) if self.run else None
            if self._card is None and self.run:
                drawn = self.run.params.get("weights") == "drawn"
                with suppress(OSError, ValueError):  # it is not known what it was tested on, or that is not here
                    self.calibrate("synthetic_b" if drawn else self.run.tested_on)
        return self._card

    def calibrate(self, dataset: ReIDDataset | str, *, progress: bool = False) -> "ThresholdCard":
        """Make the threshold card on a labelled dataset, and keep it in model.json of the run.

        Args:
            dataset: With people in query and gallery.
            progress: Show a bar.

        Raises:
            ValueError: The dataset has no pairs of one person or of two.
        """
        data = load_dataset(dataset) if isinstance(dataset, str) else dataset
        if self.run:
            flip = bool(self._options["flip"])
            query, gallery = self.run.features(self.model, data, flip=flip, progress=progress)
        else:
            size, options = self.model.input_size, {"interpolation": self.interpolation}
            query, gallery = (
                extract_features(self.model, eval_loader(samples, size, **options), progress=progress, **self._options)
                for samples in (data.query, data.gallery)
            )
        self._card = cards.make_card(query, gallery, data, self.stamp)
        if self.run:
            cards.save_card(self.run, self._card)
        return self._card

    def _read(self, item: _Item) -> tuple[Tensor | None, str, str]:
        """The pixels (3, H, W) uint8, the hash of the file, and the reason why it cannot be read."""
        digest = ""
        if item.reason:
            return None, digest, item.reason
        try:
            source = item.source
            if isinstance(source, str | Path):
                image, digest = _read_file(source)
            else:
                image = open_image(source)
            if min(image.size) < SMALLEST:
                raise ValueError(f"{image.width} × {image.height} pixels show nobody")
            return resize_image(image, self.model.input_size, interpolation=self.interpolation), digest, ""
        except Exception as error:  # an image may be anything, and the others still count
            reason = str(error).removeprefix(f"cannot read image {item.name}: ")
            return None, digest, " ".join(reason.split()) or type(error).__name__

    @cached_property
    def _features_of(self) -> Any:
        return feature_function(self.model, self.device, **self._options)

    def _features(self, batch: list[tuple[_Item, Future]], is_copy: Callable[[str, str], str] | None) -> Extracted:
        images, names, skipped, digests = [], [], [], []
        for item, future in batch:
            pixels, digest, reason = future.result()
            if pixels is not None and is_copy is not None and digest:
                reason = is_copy(digest, item.name)
            if reason:
                skipped.append((item.name, reason))
                continue
            images.append(pixels)
            names.append(item.name)
            digests.append(digest)
        feats = torch.empty(0, self.model.feature_dim)
        if images:
            feats = self._features_of(torch.stack(images), torch.full((len(images),), -1)).cpu()
        return Extracted(feats, names, skipped, digests)


def _read_file(path: str | Path) -> tuple[Image.Image, str]:
    """The image of a file, and the hash of its bytes."""
    path = Path(path)
    if not path.is_file() or path.stat().st_size > _LARGEST:
        return decode_image(path), ""  # which says what is wrong; a pipe would block
    content = path.read_bytes()
    return decode_image(path, content), blake2b(content, digest_size=16).hexdigest()


def _is_folder(images: Any) -> bool:
    return isinstance(images, str | Path) and Path(images).is_dir()


def _items(images: Any) -> Iterator[_Item]:
    """Every image of whatever was given, named."""
    if isinstance(images, ReIDDataset):
        images = images.samples
    if isinstance(images, str | Path):
        if _is_folder(images):
            yield from (_Item(str(path), path, reason) for path, reason in walk_folder(images))
        else:
            yield _Item(str(images), images)
    elif isinstance(images, bytes | Image.Image | Sample) or getattr(images, "ndim", 0) in (2, 3):
        yield _named(images, 0)
    else:
        yield from (_named(image, i) for i, image in enumerate(images))


def _named(source: Any, index: int) -> _Item:
    source = source.path if isinstance(source, Sample) else source
    return _Item(str(source) if isinstance(source, str | Path) else f"image {index}", source)


def _open_run(name: str, weights: str) -> Run:
    """The run of that name, or one that holds the weights of a model of that name."""
    if weights:
        return Run.open(model=name, weights=weights)
    if name and not (run_folder(name) / "model.json").is_file():
        try:
            model = canonical_name(name)
        except ValueError as error:
            raise FileNotFoundError(f"there is no trained run {run_folder(name)}, and {error}") from error
        raise ValueError(f"{model} is a model: give its weights as well, such as weights='market1501', or name a run")
    if not name and not Run.all():
        for model in _IN_THE_BOX:
            with suppress(OSError, ValueError):  # not in this version of the package
                return Run.open(model=model, weights="drawn")
    return Run.open(name)
