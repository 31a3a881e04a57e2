"""Drawn people in the layout of every dataset that can be read here, as their authors publish them.

So each reader can be tried, and tested, without the dataset itself. What a layout has no word for is left out: only
Market-1501 knows junk, and the distractors of DukeMTMC-reID are people of whom nobody asks.
"""

import csv
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from reidlib.data.drawn.writer import MARKET, SIZES, Shot, Studio, market_name
from reidlib.errors import unknown_name
from reidlib.files import whole_folder

Draw = Callable[[Shot], Image.Image]


def export(
    root: str | Path,
    layout: str,
    *,
    setting: str = "synthetic",
    size: str = "tiny",
    seed: int = 0,
    image_size: tuple[int, int] = (128, 64),
) -> Path:
    """Draw a dataset into the new folder `root`, whole or not at all; returns what data_paths.yaml should say.

    Raises ValueError for an unknown layout or size.
    """
    if layout not in LAYOUTS:
        raise unknown_name("layout", layout, LAYOUTS)
    if size not in SIZES:
        raise unknown_name("synthetic size", size, SIZES)
    studio = Studio(setting, seed)
    with whole_folder(root) as part:
        LAYOUTS[layout](part, list(studio.shots(SIZES[size])), lambda shot: studio.draw(shot, image_size))
    return Path(root) / "list.csv" if layout == "csv" else Path(root)


def duke_name(shot: Shot) -> str:
    """`0005_c2_f0046985.jpg`: pid, camera, frame. Distractor n is person 7000 + n, who is only in the gallery."""
    pid, frame = (shot.pid, 60 * shot.number + 1) if shot.pid else (7000 + shot.number, 1)
    return f"{pid:04d}_c{shot.camid + 1}_f{frame:07d}.jpg"


def msmt_name(shot: Shot, index: int) -> str:
    """`0000/0000_000_01_0303morning_0008_0.jpg`: person (in folders of its own for test), picture, camera, when."""
    person = (shot.pid - 1) // 2  # the authors number train and test both from 0
    return f"{person:04d}/{person:04d}_{index:03d}_{shot.camid + 1:02d}_0303morning_{25 * shot.number:04d}_0.jpg"


def cuhk_name(pair: int, person: int, number: int) -> str:
    """`1_001_2_06.png`: camera pair, person of that pair, view, picture (1 to 5 of view 1, 6 to 10 of view 2)."""
    return f"{pair}_{person:03d}_{1 + (number > 5)}_{number:02d}.png"


def _folders(folder: Path, shots: Sequence[Shot], draw: Draw, place: Callable[[Shot], str]) -> None:
    for shot in shots:
        path = folder / place(shot)
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(shot).save(path)


def _market(folder: Path, shots: Sequence[Shot], draw: Draw) -> None:
    _folders(folder, shots, draw, lambda s: f"{MARKET[s.split]}/{market_name(s)}")


def _market_500k(folder: Path, shots: Sequence[Shot], draw: Draw) -> None:
    _folders(folder, shots, draw, lambda s: f"{MARKET[s.split] if s.pid else 'images'}/{market_name(s)}")


def _duke(folder: Path, shots: Sequence[Shot], draw: Draw) -> None:
    _folders(folder, [s for s in shots if s.pid >= 0], draw, lambda s: f"{MARKET[s.split]}/{duke_name(s)}")


def _msmt(folder: Path, shots: Sequence[Shot], draw: Draw, train: str = "train", test: str = "test") -> None:
    lists: dict[str, list[str]] = {"train": [], "val": [], "query": [], "gallery": []}
    shots = [s for s in shots if s.pid > 0]
    count: dict[int, int] = defaultdict(int)
    places = {}
    for shot in shots:
        name = msmt_name(shot, count[shot.pid])
        count[shot.pid] += 1
        part = "val" if shot.split == "train" and count[shot.pid] % 8 == 0 else shot.split
        lists[part].append(f"{name} {int(name[:4])}\n")
        places[shot] = f"{train if shot.split == 'train' else test}/{name}"
    _folders(folder, shots, draw, places.__getitem__)
    for part, lines in lists.items():
        (folder / f"list_{part}.txt").write_text("".join(lines))


def _msmt_v2(folder: Path, shots: Sequence[Shot], draw: Draw) -> None:
    _msmt(folder, shots, draw, "mask_train_v2", "mask_test_v2")


def _table(folder: Path, shots: Sequence[Shot], draw: Draw) -> None:
    def place(shot: Shot) -> str:
        return f"images/{MARKET[shot.split]}/{market_name(shot)}"

    _folders(folder, shots, draw, place)
    nobody = {-1: "junk", 0: "distractor"}
    with (folder / "list.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "pid", "camid", "split"])
        rows.writerows((place(s), nobody.get(s.pid, f"person {s.pid}"), f"door {s.camid}", s.split) for s in shots)


def _cuhk(folder: Path, shots: Sequence[Shot], draw: Draw) -> None:
    """cuhk-03.mat as MATLAB 7.3 writes it (HDF5, dimensions reversed, cells as references), and the two protocols.

    People are dealt to five camera pairs in turn; the first two cameras that saw somebody are the two views.
    """
    import h5py
    from scipy.io import savemat

    views: dict[int, dict[int, list[Shot]]] = defaultdict(lambda: defaultdict(list))
    for shot in shots:
        if shot.pid > 0:
            views[shot.pid][shot.camid].append(shot)
    pairs: list[list[int]] = [sorted(views)[first::5] for first in range(5)]
    people = {(i, j): pid for i, pids in enumerate(pairs, 1) for j, pid in enumerate(pids, 1)}
    with h5py.File(folder / "cuhk-03.mat", "w", userblock_size=512) as file:

        def cell(content: np.ndarray, **attributes: object) -> "h5py.Reference":
            data = file.require_group("#refs#").create_dataset(str(len(file["#refs#"])), data=content)
            data.attrs.update(attributes)
            return data.ref

        def cells(references: Sequence, shape: tuple[int, int]) -> np.ndarray:
            return np.array(list(references), h5py.ref_dtype).reshape(shape).T

        images: dict[str, list[str]] = {}
        for key in ("detected", "labeled"):
            columns = []
            images[key] = []
            for i, pids in enumerate(pairs, 1):
                slots = []
                for j, pid in enumerate(pids, 1):
                    for view in list(views[pid].values())[:2]:
                        missed = key == "detected" and pid % 3 == 0  # a detector misses one that a person finds
                        taken = view[:5][: -1 if missed else None]
                        for place in range(5):
                            if place < len(taken):
                                slots.append(cell(np.asarray(draw(taken[place])).T))
                                images[key].append(cuhk_name(i, j, len(slots) - 10 * (j - 1)))
                            else:
                                slots.append(cell(np.zeros(2, np.uint64), MATLAB_empty=np.uint8(1)))
                columns.append(cell(cells(slots, (len(pids), 10))))
            file.create_dataset(key, data=cells(columns, (5, 1)))
        order = np.random.default_rng(0)
        tests = [cell(order.permutation(list(people))[: len(people) // 4].T.astype(float)) for _ in range(20)]
        file.create_dataset("testsets", data=cells(tests, (20, 1)))

    for key, files in images.items():
        owners = [people[tuple(map(int, name.split("_")[:2]))] for name in files]
        seen = [(owner, name.split("_")[2]) for owner, name in zip(owners, files, strict=True)]
        train = [n for n, owner in enumerate(owners) if owner % 2 == 0]
        query = [n for n, s in enumerate(seen) if s[0] % 2 and s not in seen[:n]]
        gallery = sorted(set(range(len(files))) - {*train, *query})
        rows = {name: np.array([rows]).T + 1.0 for name, rows in (("train_idx", train), ("query_idx", query))}
        rows |= {"gallery_idx": np.array([gallery]).T + 1.0, "labels": np.array([owners], float).T}
        rows["camId"] = np.array([[int(view)] for _, view in seen], float)
        rows["filelist"] = np.array([[name] for name in files], object)
        savemat(folder / f"cuhk03_new_protocol_config_{key}.mat", rows)


LAYOUTS: dict[str, Callable[[Path, Sequence[Shot], Draw], None]] = {
    "market1501": _market,
    "market1501-500k": _market_500k,
    "dukemtmcreid": _duke,
    "msmt17-v1": _msmt,
    "msmt17-v2": _msmt_v2,
    "cuhk03": _cuhk,
    "csv": _table,
}
