"""The passport of a data set: what it is, what is in it, and what would spoil training or a result, before either.

`check` gives one `Finding` for each question asked, and needs seconds: it looks at names, numbers and file sizes only.
With what `examine` has read (every picture, once) it also asks what only pixels can tell.

Copies are found by their bytes, near copies (another format, a shifted crop, a neighbouring frame) by the correlation
of 16 x 8 colour thumbnails: above 0.98, for pictures that should have nothing to do with each other. Measured on the
drawn sets (small, 128 x 64): a JPEG of quality 40 stays above 0.995, half size above 0.998, a crop one pixel narrower
on three sides above 0.985; two different people reach 0.92 at most. Cameras with a still background may reach more.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from PIL import Image

from reidlib.data.datasets import PUBLISHED
from reidlib.data.samples import ReIDDataset, Sample
from reidlib.decoding import decode_image

STOP, LOOK, FINE = "stop", "look", "fine"  # would fail or mislead; worth knowing; nothing found
NEAR = 0.98
_THUMB = (8, 16)


class Finding(NamedTuple):
    """`verdict` is "stop", "look" or "fine"; `found` is one sentence with examples, `advice` what to do."""

    verdict: str
    question: str
    found: str
    advice: str


@dataclass(frozen=True, eq=False)
class Pictures:
    """What was read from each of `samples` (N): pixel `sizes` (N, 2) as (height, width), 0 where unreadable.

    `thumbs` (N, 384) float32 have mean 0 and norm 1; `digests` are of the files' bytes; `unreadable` says why.
    """

    samples: tuple[Sample, ...]
    is_train: np.ndarray
    sizes: np.ndarray
    thumbs: np.ndarray
    digests: tuple[str, ...]
    unreadable: dict[int, str]

    @property
    def content_hash(self) -> str:
        """A hash over all files' bytes and what they are labelled, in order: equal only for equal data."""
        rows = (f"{d}|{s.pid}|{s.camid}\n" for d, s in zip(self.digests, self.samples, strict=True))
        return hashlib.sha256("".join(rows).encode()).hexdigest()


def examine(dataset: ReIDDataset, *, progress: bool = False) -> Pictures:
    """Read and decode every picture of `dataset` once, four at a time, and keep 1.6 kB of each."""
    samples = tuple(s for split in dataset.splits.values() for s in split)

    def look(sample: Sample) -> tuple[str, tuple[int, int], np.ndarray | None, str]:
        digest = ""
        try:
            content = sample.path.read_bytes() if sample.path.is_file() else None
            digest = hashlib.blake2b(content, digest_size=16).hexdigest() if content else ""
            image = decode_image(sample.path, content)
        except OSError as error:
            return digest, (0, 0), None, str(error).removeprefix(f"cannot read image {sample.path}: ")
        return digest, image.size[::-1], np.asarray(image.resize(_THUMB, Image.Resampling.BOX), np.float32), ""

    with ThreadPoolExecutor(4) as pool:
        rows = pool.map(look, samples)
        if progress:
            from tqdm.auto import tqdm

            rows = tqdm(rows, total=len(samples), desc=dataset.name, unit="image", leave=False)
        digests, sizes, thumbs, reasons = zip(*rows, strict=True) if samples else ((), (), (), ())
    vectors = np.stack([np.zeros(384, np.float32) if t is None else t.ravel() for t in thumbs] or [np.zeros(384)])
    vectors -= vectors.mean(1, keepdims=True)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    return Pictures(
        samples,
        np.arange(len(samples)) < len(dataset.train),
        np.array(sizes, int).reshape(-1, 2),
        vectors,
        digests,
        {i: reason for i, reason in enumerate(reasons) if reason},
    )


def check_dataset(
    dataset: ReIDDataset, pictures: Pictures | None = None, *, near: float = NEAR, training: bool = True
) -> list[Finding]:
    """Every question with its answer, the quick ones first; with `pictures` from `examine` also the thorough ones.

    Without `training` only what a test needs is asked, of query and gallery: the training pictures may be elsewhere.
    """
    if not training:
        dataset = replace(dataset, train=())
    findings = [_counts(dataset), _place(dataset), _usable(dataset, training), _files(dataset)]
    findings += [_shared_people(dataset), _shared_files(dataset)] * training + [_unmatched(dataset)]
    if pictures is not None:
        findings += [_unreadable(dataset, pictures), *_copies(dataset, pictures), *_near(dataset, pictures, near)]
    return findings


def stop_if_unsound(findings: Sequence[Finding], *, skip_check: bool = False) -> None:
    """Raises ValueError with every finding that says stop, and what to do; `skip_check` lets them pass."""
    stops = [f"{f.found} ({f.advice})" for f in findings if f.verdict == STOP]
    if stops and not skip_check:
        raise ValueError(f"this data set would fail or mislead: {'; '.join(stops)} (skip_check=True goes on anyhow)")


def compare_counts(dataset: ReIDDataset) -> list[dict[str, object]]:
    """The rows of `dataset.counts()` with the published images, people and cameras beside what was found."""
    rows = []
    for row, published in zip(dataset.counts(), PUBLISHED.get(dataset.name, ((None,) * 3,) * 3), strict=True):
        told = {
            f"published {key}": value for key, value in zip(("images", "people", "cameras"), published, strict=True)
        }
        rows.append(row | told)
    return rows


def unmatched_queries(dataset: ReIDDataset) -> list[Sample]:
    """Queries whose person no other camera shows in the gallery: they have no answer and count in no mean."""
    seen: dict[int, set[int]] = defaultdict(set)
    for s in dataset.gallery:
        seen[s.pid].add(s.camid)
    return [s for s in dataset.query if s.pid < 1 or not seen[s.pid] - {s.camid}]


def people_by_camera(samples: Sequence[Sample]) -> tuple[np.ndarray, list[int], list[int]]:
    """Pictures (P, C) int of each person before each camera, and the pids and camids of rows and columns."""
    pids, camids = sorted({s.pid for s in samples if s.pid > 0}), sorted({s.camid for s in samples})
    row, column = ({number: i for i, number in enumerate(numbers)} for numbers in (pids, camids))
    table = np.zeros((len(pids), len(camids)), int)
    for s in samples:
        if s.pid > 0:
            table[row[s.pid], column[s.camid]] += 1
    return table, pids, camids


def copies(pictures: Pictures) -> list[tuple[int, int]]:
    """Index pairs of different files with the same bytes; each copy is paired with the first."""
    first: dict[str, int] = {}
    pairs = []
    for i, digest in enumerate(pictures.digests):
        original = first.setdefault(digest, i) if digest else i
        if pictures.samples[original].path != pictures.samples[i].path:
            pairs.append((original, i))
    return pairs


def near_copies(pictures: Pictures, threshold: float = NEAR, block: int = 2048) -> list[tuple[int, int, float]]:
    """(i, j, correlation) of pictures that are almost the same though one is of train and the other is not, or though
    they are said to show different people; junk is nobody in particular. Pairs with the same bytes are left out.
    """
    thumbs = pictures.thumbs
    pids = np.array([s.pid for s in pictures.samples], np.int64)
    train, (_, digest) = pictures.is_train, np.unique(np.array(pictures.digests, str), return_inverse=True)
    pairs = []
    for a in range(0, len(pids), block):
        for b in range(a, len(pids), block):
            i, j = np.nonzero(thumbs[a : a + block] @ thumbs[b : b + block].T > threshold)
            i, j = i + a, j + b
            odd = (train[i] != train[j]) | ((pids[i] != pids[j]) & (pids[i] >= 0) & (pids[j] >= 0))
            for x, y in zip(*(k[(i < j) & (digest[i] != digest[j]) & odd] for k in (i, j)), strict=True):
                pairs.append((int(x), int(y), float(thumbs[x] @ thumbs[y])))
    return sorted(pairs, key=lambda pair: (-pair[2], *pair[:2]))


def _some(items: Sequence[object]) -> str:
    return ", ".join(map(str, items[:3])) + (f" and {len(items) - 3} more" if len(items) > 3 else "")


def _answer(question: str, found: str, advice: str, verdict: str = STOP, fine: str = "none") -> Finding:
    return Finding(verdict, question, found, advice) if found else Finding(FINE, question, fine, "")


def _counts(data: ReIDDataset) -> Finding:
    question, rows = "Are the counts the published ones?", compare_counts(data)
    if data.name not in PUBLISHED:
        return Finding(FINE, question, "nothing is published for this data set", "")
    keys = ("images", "people", "cameras")
    wrong = [
        f"{row['split']} has {row[key]} {key}, published {row[f'published {key}']}"
        for row in rows
        if row["images"]
        for key in keys
        if row[f"published {key}"] not in (None, row[key])
    ]
    advice = "another edition, or files are missing: results do not compare with published ones; unpack it again"
    return _answer(question, _some(wrong), advice, LOOK, "all as published")


def _place(data: ReIDDataset) -> Finding:
    fine = f"yes, version {data.version}" if data.version else "yes"
    question = "Was it where data_paths.yaml says?"
    return _answer(question, "; ".join(data.notes), "correct the line in data_paths.yaml", LOOK, fine)


def _usable(data: ReIDDataset, training: bool) -> Finding:
    needed = [split for split in data.splits if training or split != "train"]
    wrong = [f"{split} is empty" for split in needed if not data.splits[split]]
    if data.train and data.num_classes < 2:
        wrong.append("train shows one person only")
    advice = "to train takes two people, and to test a query and a gallery: correct the split"
    return _answer("Can it be trained and tested on?", "; ".join(wrong), advice, fine="people in every split")


def _files(data: ReIDDataset) -> Finding:
    bad = []
    for s in (s for split in data.splits.values() for s in split):
        try:
            if not s.path.stat().st_size:
                bad.append(data.place(s))
        except OSError:
            bad.append(data.place(s))
    found = f"{len(bad)} missing or empty: {_some(bad)}" if bad else ""
    return _answer(
        "Is every file there?", found, "unpack the archive again, or take them off the list", fine="all there"
    )


def _names(data: ReIDDataset, pids: Sequence[int]) -> str:
    return _some([data.people.get(pid, pid) for pid in pids])


def _shared_people(data: ReIDDataset) -> Finding:
    train, test = ({s.pid for s in part if s.pid > 0} for part in (data.train, (*data.query, *data.gallery)))
    both = sorted(train & test)
    found = f"{len(both)} in train and in test: {_names(data, both)}" if both else ""
    advice = "scores would be too good: take them out of train, or test on another data set (tested_on)"
    return _answer("Is somebody in train and in test?", found, advice, fine="nobody")


def _shared_files(data: ReIDDataset) -> Finding:
    both = sorted({s.path for s in data.train} & {s.path for s in (*data.query, *data.gallery)})
    places = [data.place(Sample(path, 0, 0)) for path in both]
    found = f"{len(both)} listed for both: {_some(places)}" if both else ""
    return _answer("Is a file listed for train and for test?", found, "list each of them once")


def _unmatched(data: ReIDDataset) -> Finding:
    bad = unmatched_queries(data)
    found = f"{len(bad)} of {len(data.query)} queries without a right picture: {_some([data.place(s) for s in bad])}"
    question = "Can every query be matched?"
    if bad and len(bad) == len(data.query):
        advice = "each needs its person in the gallery, before another camera: check pids and camids"
        return Finding(STOP, question, found, advice)
    advice = "they count in no mean: nothing to do, or put a picture from another camera into the gallery"
    return _answer(question, found if bad else "", advice, LOOK, "all of them")


def _unreadable(data: ReIDDataset, pictures: Pictures) -> Finding:
    bad = [f"{data.place(pictures.samples[i])} ({reason})" for i, reason in pictures.unreadable.items()]
    found = f"{len(bad)} unreadable: {_some(bad)}" if bad else ""
    return _answer("Can every picture be read?", found, "copy them again from the archive", fine="all of them")


def _pairs(data: ReIDDataset, pictures: Pictures, pairs: Sequence[tuple]) -> str:
    shown = [f"{data.place(pictures.samples[i])} = {data.place(pictures.samples[j])}" for i, j, *_ in pairs]
    return _some(shown)


def _copies(data: ReIDDataset, pictures: Pictures) -> list[Finding]:
    pairs, samples = copies(pictures), pictures.samples
    leaks = [(i, j) for i, j in pairs if pictures.is_train[i] != pictures.is_train[j]]
    clash = [(i, j) for i, j in pairs if samples[i].pid != samples[j].pid]
    rest = sorted(set(pairs) - set(leaks) - set(clash))
    return [
        _answer(
            "Is a picture of train also in test?",
            leaks and f"{len(leaks)} copied: {_pairs(data, pictures, leaks)}",
            "the test is known beforehand: remove one of each pair",
        ),
        _answer(
            "Is one picture given to two people?",
            clash and f"{len(clash)} copied: {_pairs(data, pictures, clash)}",
            "one of the two labels is wrong: correct it, or remove both",
            LOOK,
        ),
        _answer(
            "Are there other copies?",
            rest and f"{len(rest)} copied: {_pairs(data, pictures, rest)}",
            "harmless in train; in the gallery one hit counts twice: remove them",
            LOOK,
        ),
    ]


def _near(data: ReIDDataset, pictures: Pictures, threshold: float) -> list[Finding]:
    pairs = near_copies(pictures, threshold)
    leaks = [pair for pair in pairs if pictures.is_train[pair[0]] != pictures.is_train[pair[1]]]
    clash = [pair for pair in pairs if pictures.is_train[pair[0]] == pictures.is_train[pair[1]]]
    return [
        _answer(
            "Is a picture of train almost one of test?",
            leaks and f"{len(leaks)} almost the same: {_pairs(data, pictures, leaks)}",
            "look at them: the same shot in another format leaks the test into training",
            LOOK,
        ),
        _answer(
            "Are two people almost one picture?",
            clash and f"{len(clash)} almost the same: {_pairs(data, pictures, clash)}",
            "look at them: one person under two numbers, or two in one box",
            LOOK,
        ),
    ]
