"""Drawn people before drawn cameras, written as a data set, so that everything runs with no download.

`synthetic` and `synthetic_b` are two settings: other wardrobes, other cameras, other scenes. Each comes in four sizes
(people and pictures of train, queries, gallery with its distractors and junk, cameras; `synthetic`, seed 0):

    size    train people, images   test people, query, gallery (distractors, junk)   cameras
    tiny         12      90              8      20       52 (   8,    4)                3
    small        96    1440             50     160      900 ( 200,   60)                4
    medium      300    6710            200     911     4694 ( 800,  250)                6
    large       750   20130            750    3381    20705 (2800, 1000)                6

How hard it is: Rank-1 / mAP in percent on `small` at 128 x 64, seed 0, cosine. The histogram is by
`benchmarks/histogram.py`; untrained and trained are osnet_x0_25, trained from fresh weights for 24 epochs by cross
entropy with label smoothing 0.1 in 8 x 4 batches, random flip and crop, Adam, peak rate 2e-3; one run each. Medium and
large have not been measured.

    tested on                      synthetic      synthetic_b
    histogram                      2.5 /  2.4      0.0 /  1.4
    histogram, six stripes         3.1 /  2.7      0.7 /  1.7
    untrained                      2.5 /  2.1      0.7 /  1.6
    trained on synthetic          66.2 / 54.3     21.1 / 13.0
    trained on synthetic_b        27.5 / 17.2     49.0 / 37.6
    synthetic, 12 epochs only     43.1 / 35.1      4.8 /  5.4
"""

import json
import shutil
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from reidlib.data.drawn.people import CANVAS, Dice, Person, Pose, Sprite, draw_person, random_person
from reidlib.data.drawn.scenes import SCENE, draw_obstacle, draw_scene
from reidlib.errors import unknown_name
from reidlib.files import whole_folder

FORMAT = 1  # counts up whenever the same settings would give other pictures
_PERSON, _CAMERA, _PASSING, _SHOT, _DISTRACTOR, _JUNK = range(6)  # what a draw is for: separate streams
_SHADOW = 1  # a material that every sprite has: black, and half transparent
_OPACITY = np.array([0, 80, 80, 80] + [255] * 252, np.uint8)


@dataclass(frozen=True)
class Look:
    """What lasts about a camera: percentages of a neutral one, degrees, blur in hundredths of a pixel at width 64."""

    scenes: str  # weighted words for `Dice.pick`: what it may have in view
    warmth: int  # above 0 towards orange, below towards blue
    tint: int  # above 0 towards magenta, below towards green
    exposure: int
    contrast: int
    saturation: int
    blur: int
    noise: int
    quality: int
    yaw: int
    pitch: int


@dataclass(frozen=True)
class Setting:
    """One data set: its wardrobe and its cameras."""

    wardrobe: dict[str, str]
    cameras: tuple[Look, ...]


@dataclass(frozen=True)
class Size:
    train: int  # people; none of them is also in test
    test: int
    cameras: int
    shots: int  # of a person before one camera
    distractors: int
    junk: int


SETTINGS = {
    "synthetic": Setting(
        dict(
            upper="tee*5 long*3 hoodie*2 jacket*2 vest dress*2",
            upper_colour="black*4 white*4 grey*3 navy*2 blue*2 red*2 green yellow pink sky",
            pattern="plain*5 bands*2 stripes checks*2 dots halves print*3 sleeves",
            lower="trousers*4 wide leggings*2 shorts*3 skirt*2",
            lower_colour="denim*5 black*4 grey*2 beige*2 navy brown white",
            shoes="sneakers*4 boots",
            shoe_colour="black*3 white*3 red brown blue",
            bag="none*4 backpack*3 shoulder*2 handbag*2",
            hat="none*7 cap*2 beanie hat",
        ),
        (
            Look("street*2 park shop", 0, 0, 100, 100, 100, 0, 4, 92, 0, 6),
            Look("park*2 brick plaza", 8, -4, 106, 96, 106, 20, 5, 88, 90, 16),
            Look("brick*2 shop street", -9, 0, 88, 104, 90, 0, 8, 84, 180, 4),
            Look("shop*2 plaza park", 11, 4, 98, 110, 106, 30, 5, 80, 310, 12),
            Look("plaza*2 street brick", -4, -6, 110, 88, 86, 20, 6, 86, 40, 28),
            Look("brick*2 street park", -12, 6, 82, 98, 94, 10, 10, 76, 225, 20),
        ),
    ),
    "synthetic_b": Setting(
        dict(
            upper="coat*5 jacket*4 hoodie*3 long*3 tee",
            upper_colour="black*4 brown*3 olive*3 wine*2 beige*3 teal purple orange grey*2",
            pattern="plain*6 checks*3 halves*2 bands stripes sleeves print",
            lower="trousers*5 wide*3 leggings skirt",
            lower_colour="black*4 brown*2 olive*2 grey*3 wine navy",
            shoes="boots*3 sneakers*2",
            shoe_colour="black*3 brown*3 tan white",
            bag="none*4 shoulder*3 handbag*2 backpack",
            hat="none*4 beanie*4 hat cap",
        ),
        (
            Look("market*2 garage station", 20, 6, 76, 108, 108, 30, 12, 78, 20, 14),
            Look("garage*2 snow station", -8, -14, 80, 92, 80, 40, 14, 72, 200, 30),
            Look("snow*2 market garage", -14, 2, 118, 86, 84, 20, 5, 86, 100, 8),
            Look("station*2 market garage", 24, -4, 84, 106, 94, 40, 10, 74, 270, 18),
            Look("snow*2 garage station", -4, 10, 92, 84, 64, 10, 8, 82, 340, 4),
            Look("station*2 market garage", 6, -16, 108, 114, 100, 30, 10, 70, 150, 24),
        ),
    ),
}

SIZES = {
    "tiny": Size(train=12, test=8, cameras=3, shots=3, distractors=8, junk=4),
    "small": Size(train=96, test=50, cameras=4, shots=5, distractors=200, junk=60),
    "medium": Size(train=300, test=200, cameras=6, shots=5, distractors=800, junk=250),
    "large": Size(train=750, test=750, cameras=6, shots=6, distractors=2800, junk=1000),
}


@dataclass(frozen=True)
class Shot:
    """One picture to take: `split` is train, query or gallery; pid 0 is a distractor, -1 junk; camid counts from 0."""

    split: str
    pid: int
    camid: int
    number: int  # tells apart the shots of one pid before one camera (of one kind, for pid 0 and -1)


class Studio:
    """All people and cameras of one setting and seed; `picture` takes a shot."""

    def __init__(self, name: str = "synthetic", seed: int = 0) -> None:
        if name not in SETTINGS:
            raise unknown_name("synthetic setting", name, SETTINGS)
        self.setting = SETTINGS[name]
        self.key = (seed, list(SETTINGS).index(name))
        self._camera = lru_cache(None)(self._build_camera)
        self._view = lru_cache(None)(lambda camid, kind: grade(self._scene(kind), self.setting.cameras[camid]))
        self._scene = lru_cache(None)(lambda kind: draw_scene(kind, self.dice(_CAMERA, 1, *kind.encode())))

    def dice(self, *key: int) -> Dice:
        return Dice(*self.key, *key)

    def person(self, pid: int) -> Person:
        return random_person(self.dice(_PERSON, pid), self.setting.wardrobe)

    def shots(self, size: Size) -> Iterator[Shot]:
        """Every picture of a data set of that size, in a fixed order. Train pids are even, test pids odd."""
        for split, pids in ("train", range(2, 2 * size.train + 1, 2)), ("test", range(1, 2 * size.test, 2)):
            for pid in pids:
                dice = self.dice(_PASSING, pid)
                missed = [dice.below(100) < 25 for _ in self.setting.cameras]
                seen = [camid for camid in range(size.cameras) if not missed[camid]]
                for camid in seen if len(seen) > 1 else (0, 1):
                    for number in range(size.shots):
                        part = "train" if split == "train" else "gallery" if number else "query"
                        yield Shot(part, pid, camid, number)
        for pid, stream, count in (0, _DISTRACTOR, size.distractors), (-1, _JUNK, size.junk):
            for number in range(count):
                yield Shot("gallery", pid, self.dice(stream, number).below(size.cameras), number)

    def picture(self, shot: Shot, image_size: tuple[int, int] = (128, 64)) -> Image.Image:
        """The picture, RGB, `image_size` (height, width): the same content at any size."""
        look, noise = self._camera(shot.camid)
        sprite = Sprite()
        if shot.pid > 0:
            dice = self.dice(_SHOT, shot.pid, shot.camid, shot.number)
            person = self.person(shot.pid)
        else:
            dice = self.dice(_JUNK if shot.pid else _DISTRACTOR, shot.number, 1)
            # Junk is a bad box of somebody who may well be a query, a distractor somebody else.
            person = self.person(2 * shot.number + 1) if shot.pid else random_person(dice, self.setting.wardrobe)
        scene = self._view(shot.camid, dice.pick(look.scenes))
        left, top = dice.below(SCENE[1] - CANVAS[1]), dice.below(SCENE[0] - CANVAS[0])
        background = Image.fromarray(scene[top : top + CANVAS[0], left : left + CANVAS[1]])
        pose = random_pose(dice, look)
        crop = self._compose(sprite, person, pose, look, dice, shot.pid)

        palette = Image.fromarray(sprite.index, "P")
        palette.putpalette(grade(np.array(sprite.colours), look).tobytes())
        background.paste(palette.convert("RGB"), mask=Image.fromarray(_OPACITY[sprite.index]))

        height, width = image_size
        image = background.resize((width, height), Image.Resampling.BOX, box=crop)
        if look.blur:
            image = image.filter(ImageFilter.BoxBlur((look.blur + dice.between(-10, 10)) * width / 6400))
        light, warm = 100 + dice.between(-20, 20), dice.between(-8, 8)  # the hour and the weather
        row, column = dice.below(256), dice.below(256)
        pixels = np.asarray(image).astype(np.int16) * np.array([light + warm, light, light - warm], np.int16) // 100
        pixels += noise[row : row + height, column : column + width]
        return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))

    def _compose(
        self, sprite: Sprite, person: Person, pose: Pose, look: Look, dice: Dice, pid: int
    ) -> tuple[int, int, int, int]:
        """Draw the person and what stands in the way; returns the detector's box on the canvas."""
        event = dice.below(100)
        if event < 10:  # somebody walks behind
            other = random_person(dice, self.setting.wardrobe)
            there = random_pose(dice, look)
            side = dice.below(2) * 2 - 1
            draw_person(sprite, other, Pose(128 + side * dice.between(60, 120), pose.ground - 30, pose.height - 50,
                                            there.yaw, there.phase, there.swing, there.pitch))  # fmt: skip
        if pid or not dice.chance(40):
            sprite.hull([(pose.x - 40, pose.ground - 8, 9), (pose.x + 60, pose.ground - 8, 9)], _SHADOW)
            draw_person(sprite, person, pose)
        if 10 <= event < 22:
            draw_obstacle(sprite, dice)
        jitter = [dice.between(-14, 14) for _ in range(4)]
        box = [28 + jitter[0], 14 + jitter[1], 228 + jitter[2], 498 + jitter[3]]
        if pid == -1:  # a box that no detector should have given: head, one side, or legs
            box = [[100, 20, 256, 200], [120 + jitter[0], 0, 256, 512], [20, 270 + jitter[1], 230, 512]][dice.below(3)]
        elif dice.chance(8 if pid else 40):  # cut off below or above
            cut = 3 if dice.chance(60) else 1
            box[cut] += (cut - 2) * -dice.between(60, 160)
        left, top, right, bottom = box
        return max(left, 0), max(top, 0), min(right, CANVAS[1]), min(bottom, CANVAS[0])

    def _build_camera(self, camid: int) -> tuple[Look, np.ndarray]:
        look, dice = self.setting.cameras[camid], self.dice(_CAMERA, camid)
        grain = dice.bytes(512, 384, 3).astype(np.int16) + dice.bytes(512, 384, 1) - 255  # triangular, -255 to 255
        return look, grain * look.noise // 255


def random_pose(dice: Dice, look: Look) -> Pose:
    """Somebody before that camera: most walk its usual way, some the other way."""
    yaw = look.yaw + dice.between(-30, 30) + dice.between(-30, 30) + 180 * dice.chance(30)
    return Pose(
        x=128 + dice.between(-16, 16),
        ground=482 + dice.between(-10, 6),
        height=dice.between(420, 446),
        yaw=yaw % 360,
        phase=dice.below(360),
        swing=dice.between(16, 32),
        pitch=look.pitch + dice.between(-4, 4),
    )


def grade(rgb: np.ndarray, look: Look) -> np.ndarray:
    """What the camera makes of colours: saturation, warmth and exposure, contrast. uint8 (..., 3)."""
    rgb = rgb.astype(np.int32)
    grey = (rgb * (77, 150, 29)).sum(-1, keepdims=True) // 256
    gains = np.array([100 + look.warmth + look.tint // 2, 100 - look.tint // 2, 100 - look.warmth + look.tint // 2])
    rgb = (grey + (rgb - grey) * look.saturation // 100) * gains * look.exposure // 10_000
    return np.clip(118 + (rgb - 118) * look.contrast // 100, 0, 255).astype(np.uint8)


def write_synthetic(
    root: str | Path,
    name: str = "synthetic",
    size: str = "small",
    seed: int = 0,
    image_size: tuple[int, int] = (128, 64),
    progress: bool = False,
) -> Path:
    """Draw a data set under `root` and return its folder, laid out as Market-1501.

    The folder is named after its settings, appears whole or not at all, and is left as it is when it is already there.
    `image_size` is (height, width). Raises ValueError for an unknown name or size, an image size out of bounds or a
    negative seed, OSError when the folder cannot be written.
    """
    if size not in SIZES:
        raise unknown_name("synthetic size", size, SIZES)
    height, width = image_size
    if not (32 <= height <= 256 and 16 <= width <= 128):
        raise ValueError(f"image_size {image_size} is out of bounds: (height, width) from (32, 16) to (256, 128)")
    if seed < 0:
        raise ValueError(f"seed {seed} is negative: give 0 or more")
    studio = Studio(name, seed)
    shots = list(studio.shots(SIZES[size]))
    folder = Path(root) / f"{name}-{size}-{seed}-{height}x{width}"
    manifest = {"format": FORMAT, "name": name, "size": size, "seed": seed, "image_size": [height, width],
                "images": dict(Counter(MARKET[shot.split] for shot in shots))}  # fmt: skip
    if folder.exists():
        if _is_complete(folder, manifest):
            return folder
        _discard(folder)
    if progress:
        from tqdm.auto import tqdm

        shots = tqdm(shots, desc=folder.name, unit="image")
    with whole_folder(folder) as part:
        for split in MARKET.values():
            (part / split).mkdir()
        for shot in shots:
            image = studio.picture(shot, image_size)
            quality = studio.setting.cameras[shot.camid].quality
            image.save(part / MARKET[shot.split] / market_name(shot), quality=quality)
        (part / "synthetic.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return folder


MARKET = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}


def market_name(shot: Shot) -> str:
    """As in Market-1501, `0002_c1s1_000451_03.jpg`: pid, camera and sequence, frame, box (00 is a query's)."""
    pid = f"{shot.pid:04d}" if shot.pid >= 0 else "-1"
    return f"{pid}_c{shot.camid + 1}s1_{25 * shot.number + 1:06d}_{int(shot.split != 'query'):02d}.jpg"


def _is_complete(folder: Path, manifest: dict) -> bool:
    try:
        if json.loads((folder / "synthetic.json").read_text()) != manifest:
            return False
        return all(len(list((folder / split).glob("*.jpg"))) == count for split, count in manifest["images"].items())
    except (OSError, ValueError):
        return False


def _discard(folder: Path) -> None:
    """Remove a tree of an older format or with pictures missing; refuse to touch what this module did not write."""
    if not (folder / "synthetic.json").is_file():
        raise FileExistsError(f"{folder} is in the way and has no synthetic.json: move it, or choose another root")
    aside = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    shutil.rmtree(aside)


if __name__ == "__main__":
    parser = ArgumentParser(description="Draw a synthetic data set, laid out as Market-1501.")
    parser.add_argument("root", type=Path)
    parser.add_argument("--name", default="synthetic", choices=SETTINGS)
    parser.add_argument("--size", default="small", choices=SIZES)
    parser.add_argument("--seed", default=0, type=int)
    parser.add_argument("--image-size", default=(128, 64), type=int, nargs=2, metavar=("HEIGHT", "WIDTH"))
    arguments = vars(parser.parse_args())
    print(write_synthetic(**{**arguments, "image_size": tuple(arguments["image_size"])}, progress=True))
