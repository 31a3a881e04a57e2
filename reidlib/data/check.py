"""Is a dataset what it is believed to be, and what in it would spoil training or a result? Asked before either.

`check_dataset` gives one `Finding` for each question within seconds: it looks at names, numbers and file sizes only.
With what `scan_images` has read (every image, once) it also asks what only pixels can tell.

Copies are found by their bytes, near copies (another format, a shifted crop, a neighbouring frame) by the correlation
of 16 × 8 colour thumbnails: above 0.98, for images that should have nothing to do with each other. Measured on the
drawn datasets (small, 128 × 64): a JPEG of quality 40 stays above 0.995, half size above 0.998, a crop one pixel
narrower on three sides above 0.985; two different people reach 0.92 at most. Cameras with a still background may
reach more.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from PIL import Image

from reidlib.data.datasets import PUBLISHED
from reidlib.data.readers import some
from reidlib.data.samples import SPLITS, ReIDDataset, Sample, is_left_out
from reidlib.decoding import decode_image, read_archived

STOP, LOOK, FINE = "stop", "look", "fine"  # would fail or mislead; worth knowing; nothing found
NEAR = 0.98
_THUMBNAIL = (8, 16)  # width, height


class Finding(NamedTuple):
    """`verdict` is "stop", "look" or "fine"; `found` is one sentence with examples, `advice` what to do."""

    verdict: str
    question: str
    found: str
    advice: str


@dataclass(frozen=True, eq=False)
class ImageScan:
    """What was read from each of N samples.

    Attributes:
        samples: those of train, query and gallery; `is_train` (N,) bool tells which are of train.
        sizes: (N, 2) int, height and width in pixels; 0 where unreadable.
        thumbnails: (N, 384) float32, each with mean 0 and norm 1.
        digests: hashes of the files' bytes.
        unreadable: index of a sample → why.
    """

    samples: tuple[Sample, ...]
    is_train: np.ndarray
    sizes: np.ndarray
    thumbnails: np.ndarray
    digests: tuple[str, ...]
    unreadable: dict[int, str]

    @property
    def content_hash(self) -> str:
        """A hash over all files' bytes and their labels, in order: equal only for equal data."""
        rows = (f"{d}|{s.pid}|{s.camid}\n" for d, s in zip(self.digests, self.samples, strict=True))
        return hashlib.sha256("".join(rows).encode()).hexdigest()


def scan_images(dataset: ReIDDataset, *, progress: bool = False) -> ImageScan:
    """Read and decode every image of `dataset` once, four at a time, and keep 1.6 kB of each."""

    def scan(sample: Sample) -> tuple[str, tuple[int, int], np.ndarray, str]:
        digest = ""
        try:
            content = sample.path.read_bytes() if sample.path.is_file() else read_archived(sample.path)
            digest = hashlib.blake2b(content, digest_size=16).hexdigest() if content else ""
            image = decode_image(sample.path, content)
        except OSError as error:
            reason = str(error).removeprefix(f"cannot read image {sample.path}: ")
            return digest, (0, 0), np.zeros((*_THUMBNAIL[::-1], 3), np.float32), reason
        return digest, image.size[::-1], np.asarray(image.resize(_THUMBNAIL, Image.Resampling.BOX), np.float32), ""

    samples = dataset.samples
    with ThreadPoolExecutor(4) as pool:
        rows = pool.map(scan, samples)
        if progress:
            from tqdm.auto import tqdm

            rows = tqdm(rows, total=len(samples), desc=dataset.name, unit="image", leave=False)
        digests, sizes, thumbnails, reasons = zip(*rows, strict=True) if samples else ((), (), (), ())
    vectors = np.array(thumbnails, np.float32).reshape(len(samples), 3 * _THUMBNAIL[0] * _THUMBNAIL[1])
    vectors -= vectors.mean(1, keepdims=True)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    return ImageScan(
        samples,
        np.arange(len(samples)) < len(dataset.train),
        np.array(sizes, int).reshape(-1, 2),
        vectors,
        digests,
        {i: reason for i, reason in enumerate(reasons) if reason},
    )


# question, what was found ({}: how many; examples follow), what to do, verdict, the answer where nothing was found
_QUESTIONS: dict[str, tuple[str, str, str, str, str]] = {
    "counts": (
        "Are the counts the published ones?", "",
        "another edition, or files are missing: results do not compare with published ones; unpack it again",
        LOOK, "all as published",
    ),
    "notes": (
        "Is it as data_paths.yaml says?", "", "correct the line in data_paths.yaml, or the file", LOOK, "yes",
    ),
    "usable": (
        "Can it be trained and tested on?", "",
        "to train takes two people, and to test a query and a gallery: correct the split",
        STOP, "people in every split",
    ),
    "files": (
        "Is every file there?", "{} missing or empty", "unpack the archive again, or take them off the list",
        STOP, "all there",
    ),
    "shared people": (
        "Is somebody in train and in test?", "{} in train and in test",
        "scores would be too good: take them out of train, or test on another dataset (tested_on)", STOP, "nobody",
    ),
    "shared files": (
        "Is a file listed for train and for test?", "{} listed for both", "list each of them once", STOP, "none",
    ),
    "two people": (
        "Is a file listed for two people?", "{} listed for two",
        "one of the rows is wrong; in a+b, both list the same images: leave one of them out", STOP, "none",
    ),
    "query in gallery": (
        "Is a query in the gallery from another camera?", "{} listed for both",
        "it finds itself, so any network ranks it first: correct the camera, or remove it from the gallery",
        STOP, "none",
    ),
    "same rows": (
        "Is a file listed twice in one split?", "{} listed more than once",
        "it counts as often as it is listed: remove all rows but one", LOOK, "none",
    ),
    "unmatched": (
        "Can every query be matched?", "{} of {queries} queries without a right image",
        "they count in no mean: nothing to do, or put an image from another camera into the gallery",
        LOOK, "all of them",
    ),
    "all unmatched": (
        "Can every query be matched?", "none of {queries} queries has a right image",
        "each needs its person in the gallery, under another camera: check pids and camids", STOP, "",
    ),
    "unreadable": (
        "Can every image be read?", "{} unreadable", "copy them again from the archive", STOP, "all of them",
    ),
    "copies in test": (
        "Is an image of train also in test?", "{} copied", "the test is known beforehand: remove one of each pair",
        STOP, "none",
    ),
    "copies of two people": (
        "Is one image given to two people?", "{} copied", "one of the labels is wrong: correct it, or remove both",
        LOOK, "none",
    ),
    "other copies": (
        "Are there other copies?", "{} copied", "harmless in train; in the gallery one hit counts twice: remove them",
        LOOK, "none",
    ),
    "almost in test": (
        "Is an image of train almost one of test?", "{} almost the same",
        "look at them: the same shot in another format leaks the test into training", LOOK, "none",
    ),
    "almost two people": (
        "Are two people almost one image?", "{} almost the same",
        "look at them: one person under two numbers, or two in one box", LOOK, "none",
    ),
}  # fmt: skip


def check_dataset(
    dataset: ReIDDataset,
    scan: ImageScan | None = None,
    *,
    near: float = NEAR,
    training: bool = True,
    tested: bool = True,
) -> list[Finding]:
    """Every question with its answer, the quick ones first.

    Args:
        dataset: what to check.
        scan: from `scan_images`, for the thorough questions as well.
        near: correlation from which two images count as almost the same.
        training: False asks only what a test needs, of query and gallery: the training images may be elsewhere.
        tested: False asks for neither people nor query and gallery: the images have no labels.
    """
    if not training:
        dataset = replace(dataset, train=())
    empty = [f"{split} is empty" for split in SPLITS[not training :] if not dataset.splits[split]]
    one = ["train shows one person only"] * (dataset.num_classes == 1)
    answers = {"notes": dataset.notes, "usable": empty + one} | _files(dataset)
    if dataset.name in PUBLISHED:
        answers["counts"] = _counts(dataset)
    if training:
        train, test = ({s.pid for s in part if s.pid > 0} for part in (dataset.train, dataset.query + dataset.gallery))
        answers["shared people"] = [dataset.people.get(pid, pid) for pid in sorted(train & test)]
    else:
        del answers["shared files"]
    unmatched = [dataset.relative(s) for s in unmatched_queries(dataset)]
    answers["all unmatched" if unmatched and len(unmatched) == len(dataset.query) else "unmatched"] = unmatched
    if not tested:
        answers = {key: answers[key] for key in ("notes", "files", "same rows")}
    if scan is not None:
        answers |= _scanned(dataset, scan, near)
    findings = []
    for key, (question, what, advice, verdict, nothing) in _QUESTIONS.items():
        if answers.get(key):
            what = what.format(len(answers[key]), queries=len(dataset.query))
            found = f"{what}: {some(answers[key])}".removeprefix(": ")
            findings.append(Finding(verdict, question, found, advice))
        elif key in answers:
            findings.append(Finding(FINE, question, nothing, ""))
    return findings


def _counts(data: ReIDDataset) -> list[str]:
    return [
        f"{row['split']} has {row[key]} {key}, published {row[f'published {key}']}"
        for row in compare_counts(data)
        if row["images"]
        for key in ("images", "people", "cameras")
        if row[f"published {key}"] not in (None, row[key])
    ]


def _files(data: ReIDDataset) -> dict[str, list[str]]:
    """Files that are missing, and those in several rows; a link is the file that it leads to."""
    answers: dict[str, list[str]] = {
        key: [] for key in ("files", "shared files", "two people", "query in gallery", "same rows")
    }
    rows: dict[object, list[tuple[str, Sample]]] = defaultdict(list)
    for split, samples in data.splits.items():
        for s in samples:
            try:
                stat = os.stat(s.path)
                rows[(stat.st_dev, stat.st_ino) if stat.st_ino else s.path].append((split, s))
                empty = not stat.st_size
            except OSError:
                empty = not read_archived(s.path)
            answers["files"] += [data.relative(s)] * empty
    for listed in (listed for listed in rows.values() if len(listed) > 1):
        name, pids = data.relative(listed[0][1]), sorted({s.pid for _, s in listed})
        train, query, gallery = ([s for split, s in listed if split == part] for part in SPLITS)
        answers["shared files"] += [name] * bool(train and query + gallery)
        people = some([data.people.get(pid, pid) for pid in pids])
        answers["two people"] += [f"{name} ({people})"] * (len(pids) > 1)
        cameras = [
            {(s.pid, s.camid) for s in part} for part in (query, gallery)
        ]  # equal ones are left out of the ranking
        answers["query in gallery"] += [name] * bool(
            {p for p, _ in cameras[0] - cameras[1]} & {p for p, _ in cameras[1]}
        )
        answers["same rows"] += [name] * any(len(part) > len({s.pid for s in part}) for part in (train, query, gallery))
    return answers


def _scanned(data: ReIDDataset, scan: ImageScan, near: float) -> dict[str, list[str]]:
    """What only the images themselves tell."""
    samples, is_train = scan.samples, scan.is_train
    answers = {"unreadable": [f"{data.relative(samples[i])} ({why})" for i, why in scan.unreadable.items()]}
    answers |= {key: [] for key in _QUESTIONS if key.startswith(("copies", "other", "almost"))}
    for i, j in copies(scan):
        pair = f"{data.relative(samples[i])} = {data.relative(samples[j])}"
        leaks, clashes = is_train[i] != is_train[j], samples[i].pid != samples[j].pid
        if leaks:
            answers["copies in test"].append(pair)
        if clashes:
            answers["copies of two people"].append(pair)
        if not leaks and not clashes:
            answers["other copies"].append(pair)
    for i, j, _ in near_copies(scan, near):
        pair = f"{data.relative(samples[i])} = {data.relative(samples[j])}"
        answers["almost in test" if is_train[i] != is_train[j] else "almost two people"].append(pair)
    return answers


def stop_if_unsound(findings: Sequence[Finding], *, skip_check: bool = False) -> None:
    """Raises ValueError with every finding that says stop, and what to do; `skip_check` lets them pass."""
    stops = [f"{f.found} ({f.advice})" for f in findings if f.verdict == STOP]
    if stops and not skip_check:
        raise ValueError(f"this dataset would fail or mislead: {'; '.join(stops)} (skip_check=True goes on anyhow)")


def readable(dataset: ReIDDataset, scan: ImageScan | None = None) -> ReIDDataset:
    """`dataset` without the images that are not there, or that cannot be read according to `scan`."""
    bad = {scan.samples[i].path for i in scan.unreadable} if scan else set()
    rest = {s.path for s in dataset.samples} - bad
    good = {path for path in rest if (path.stat().st_size if path.is_file() else read_archived(path))}
    return replace(dataset, **{k: tuple(s for s in v if s.path in good) for k, v in dataset.splits.items()})


def compare_counts(dataset: ReIDDataset) -> list[dict[str, object]]:
    """The rows of `dataset.counts()` with the published images, people and cameras beside what was found."""
    keys = [f"published {key}" for key in ("images", "people", "cameras")]
    published = PUBLISHED.get(dataset.name, ((None,) * 3,) * 3)
    return [row | dict(zip(keys, p, strict=True)) for row, p in zip(dataset.counts(), published, strict=True)]


def unmatched_queries(dataset: ReIDDataset) -> list[Sample]:
    """Queries without a right image in the gallery, by the dataset's protocol: they count in no mean."""
    kinds: dict[int, dict[tuple[object, ...], Sample]] = defaultdict(dict)  # one gallery image of each kind
    for s in dataset.gallery:
        kinds[s.pid][s.camid, s.clothes, s.track if "track" in str(dataset.exclude) else ""] = s
    return [
        s for s in dataset.query
        if s.pid < 1 or all(is_left_out(s, item, dataset.exclude) for item in kinds[s.pid].values())
    ]  # fmt: skip


def people_by_camera(samples: Sequence[Sample]) -> tuple[np.ndarray, list[int], list[int]]:
    """How many images (P, C) int each camera has of each person, and the pids and camids of rows and columns."""
    pids, camids = sorted({s.pid for s in samples if s.pid > 0}), sorted({s.camid for s in samples})
    row, column = ({number: i for i, number in enumerate(numbers)} for numbers in (pids, camids))
    table = np.zeros((len(pids), len(camids)), int)
    for s in samples:
        if s.pid > 0:
            table[row[s.pid], column[s.camid]] += 1
    return table, pids, camids


def copies(scan: ImageScan) -> list[tuple[int, int]]:
    """Index pairs of different files with the same bytes; each copy is paired with the first."""
    first: dict[str, int] = {}
    pairs = []
    for i, digest in enumerate(scan.digests):
        original = first.setdefault(digest, i) if digest else i
        if scan.samples[original].path != scan.samples[i].path:
            pairs.append((original, i))
    return pairs


def near_copies(scan: ImageScan, threshold: float = NEAR, block: int = 2048) -> list[tuple[int, int, float]]:
    """(i, j, correlation) of images that are almost the same though one is of train and the other is not, or though
    they are labelled as different people; junk is nobody in particular. Pairs with the same bytes are left out.
    """
    thumbnails = scan.thumbnails
    pids = np.array([s.pid for s in scan.samples], np.int64)
    train, (_, digest) = scan.is_train, np.unique(np.array(scan.digests, str), return_inverse=True)
    pairs = []
    for a in range(0, len(pids), block):
        for b in range(a, len(pids), block):
            i, j = np.nonzero(thumbnails[a : a + block] @ thumbnails[b : b + block].T > threshold)
            i, j = i + a, j + b
            odd = (train[i] != train[j]) | ((pids[i] != pids[j]) & (pids[i] >= 0) & (pids[j] >= 0))
            for x, y in zip(*(k[(i < j) & (digest[i] != digest[j]) & odd] for k in (i, j)), strict=True):
                pairs.append((int(x), int(y), float(thumbnails[x] @ thumbnails[y])))
    return sorted(pairs, key=lambda pair: (-pair[2], *pair[:2]))
