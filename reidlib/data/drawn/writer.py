"""Drawn people under drawn cameras, written as a dataset, so that everything runs without a download.

`synthetic`, `synthetic_b` and `synthetic_c` differ in wardrobes, cameras and scenes. Each comes in five sizes;
docs/data.md has their counts, and how hard they are. Every image is drawn at 128 × 64, whatever size it is read at.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from reidlib.data.drawn.people import CANVAS, Dice, Person, Pose, Sprite, draw_person, random_person
from reidlib.data.drawn.scenes import SCENE, draw_obstacle, draw_scene
from reidlib.data.drawn.wild import WARDROBE, draw_wild, wild_person
from reidlib.errors import unknown_name
from reidlib.files import whole_folder

FORMAT = 1  # counts up whenever the same settings would give other images
NATIVE = (128, 64)  # height, width of the files
_PERSON, _CAMERA, _PASSING, _SHOT, _DISTRACTOR, _JUNK, _OBSTACLE = range(7)  # what a draw is for: separate streams
_SHADOW = 1  # a material that every sprite has: black, and half transparent
_OPACITY = np.array([0, 80, 80, 80] + [255] * 252, np.uint8)


@dataclass(frozen=True)
class Camera:
    """What lasts about a camera: percentages of a neutral one, degrees, blur in hundredths of a pixel at width 64."""

    scenes: str  # weighted words for `Dice.pick`: what it may have in view
    warmth: int  # above 0 towards orange, below towards blue
    tint: int  # above 0 towards magenta, below towards green
    exposure: int
    contrast: int
    saturation: int
    blur: int
    noise: int
    quality: int  # of its JPEGs
    yaw: int
    pitch: int


class Setting(NamedTuple):
    """The wardrobe and the cameras of a dataset."""

    wardrobe: dict[str, str]
    cameras: tuple[Camera, ...]
    wild: bool = False  # drawn by `wild`, to which a camera is a number


# Editions of a setting, with its people and cameras: something stands before each query; people have two sets of
# clothes, `OUTFITS`; they walk past each camera, and their images there are one tracklet.
EDITIONS = ("occluded", "clothes", "tracks")
OUTFITS = 2
_LASTING = ("stature", "build", "hips", "skin", "hair", "hair_colour", "glasses")  # whatever one wears


class Size(NamedTuple):
    train: int  # people; none of them is also in test
    test: int
    cameras: int
    shots: int  # of a person under one camera
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
            Camera("street*2 park shop", 0, 0, 100, 100, 100, 0, 4, 92, 0, 6),
            Camera("park*2 brick plaza", 8, -4, 106, 96, 106, 20, 5, 88, 90, 16),
            Camera("brick*2 shop street", -9, 0, 88, 104, 90, 0, 8, 84, 180, 4),
            Camera("shop*2 plaza park", 11, 4, 98, 110, 106, 30, 5, 80, 310, 12),
            Camera("plaza*2 street brick", -4, -6, 110, 88, 86, 20, 6, 86, 40, 28),
            Camera("brick*2 street park", -12, 6, 82, 98, 94, 10, 10, 76, 225, 20),
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
            Camera("market*2 garage station", 20, 6, 76, 108, 108, 30, 12, 78, 20, 14),
            Camera("garage*2 snow station", -8, -14, 80, 92, 80, 40, 14, 72, 200, 30),
            Camera("snow*2 market garage", -14, 2, 118, 86, 84, 20, 5, 86, 100, 8),
            Camera("station*2 market garage", 24, -4, 84, 106, 94, 40, 10, 74, 270, 18),
            Camera("snow*2 garage station", -4, 10, 92, 84, 64, 10, 8, 82, 340, 4),
            Camera("station*2 market garage", 6, -16, 108, 114, 100, 30, 10, 70, 150, 24),
        ),
    ),
    "synthetic_wild": Setting(WARDROBE, (Camera("", 0, 0, 100, 100, 100, 0, 0, 0, 0, 0),) * 6, wild=True),
    # Last: the place in this table is part of each draw.
    "synthetic_c": Setting(
        dict(
            upper="tee*4 vest*3 dress*3 long*2 hoodie",
            upper_colour="white*4 yellow*3 pink*3 sky*3 orange*2 teal*2 green*2 purple red grey",
            pattern="plain*3 stripes*3 dots*3 bands*2 print*2 halves sleeves",
            lower="shorts*5 skirt*4 leggings*2 wide*2 trousers",
            lower_colour="white*3 beige*3 denim*3 grey*2 navy brown black",
            shoes="sneakers*6 boots",
            shoe_colour="white*4 tan*2 red*2 blue black",
            bag="none*3 handbag*3 backpack*2 shoulder*2",
            hat="none*3 cap*3 hat*3 beanie",
        ),
        (
            Camera("plaza*2 park station", 16, -8, 116, 112, 112, 10, 6, 82, 60, 10),
            Camera("park*2 market plaza", 4, 10, 122, 92, 118, 30, 8, 90, 150, 34),
            Camera("station*2 shop plaza", -18, 4, 74, 114, 84, 20, 14, 68, 240, 12),
            Camera("market*2 park shop", -2, -18, 96, 100, 74, 50, 6, 80, 330, 22),
            Camera("shop*2 station market", 12, 12, 84, 88, 96, 0, 12, 88, 110, 2),
            Camera("plaza*2 park market", -10, -2, 104, 118, 124, 20, 8, 72, 200, 18),
        ),
    ),
}

SIZES = {
    "tiny": Size(train=12, test=8, cameras=3, shots=3, distractors=8, junk=4),
    "small": Size(train=192, test=50, cameras=4, shots=5, distractors=200, junk=60),
    "medium": Size(train=300, test=200, cameras=6, shots=5, distractors=800, junk=250),
    "large": Size(train=750, test=750, cameras=6, shots=6, distractors=2800, junk=1000),
    "huge": Size(train=1200, test=50, cameras=6, shots=4, distractors=200, junk=0),
}


class Shot(NamedTuple):
    """One image to take: `split` is train, query or gallery; pid 0 is a distractor, -1 junk; camid counts from 0."""

    split: str
    pid: int
    camid: int
    number: int  # from 0 on for each pid and camera; for distractors and for junk, whatever the camera


class Studio:
    """All people and cameras of one setting and seed, in an edition of it; `draw` takes a shot."""

    def __init__(self, name: str = "synthetic", seed: int = 0, edition: str = "") -> None:
        if name not in SETTINGS:
            raise unknown_name("synthetic setting", name, SETTINGS)
        if edition not in ("", *EDITIONS):
            raise unknown_name("synthetic edition", edition, EDITIONS)
        self.setting, self.edition = SETTINGS[name], edition
        self.key = (seed, list(SETTINGS).index(name))
        self._noise = lru_cache(None)(self._build_noise)
        self._view = lru_cache(None)(lambda camid, kind: grade(self._scene(kind), self.setting.cameras[camid]))
        self._scene = lru_cache(None)(lambda kind: draw_scene(kind, self.dice(_CAMERA, 1, *kind.encode())))

    def dice(self, *key: int) -> Dice:
        return Dice(*self.key, *key)

    def person(self, pid: int, outfit: int = 0) -> Person:
        dice = self.dice(_PERSON, pid)
        person = wild_person(dice) if self.setting.wild else random_person(dice, self.setting.wardrobe)
        if not outfit:
            return person
        other = random_person(self.dice(_PERSON, pid, outfit), self.setting.wardrobe)
        return other._replace(**{name: getattr(person, name) for name in _LASTING})

    def outfit(self, shot: Shot) -> int:
        """Which clothes somebody wears in a shot, from 0."""
        return shot.number % OUTFITS if self.edition == "clothes" and shot.pid > 0 else 0

    def file_name(self, shot: Shot) -> str:
        """As in Market-1501; the sequence numbers clothes, and tracklets of one camera, from 1."""
        tracklet = shot.number if self.edition == "tracks" and shot.pid < 1 else 0
        return market_name(shot, 1 + self.outfit(shot) + tracklet)

    def quality(self, shot: Shot) -> int:
        """The quality of the JPEG that the image of a shot is written as."""
        if self.setting.wild:
            return self.dice(_CAMERA, shot.pid + 1, shot.camid, shot.number).between(35, 95)
        return self.setting.cameras[shot.camid].quality

    def shots(self, size: Size) -> Iterator[Shot]:
        """Every image of a dataset of that size, in a fixed order. Train pids are even, test pids odd."""
        for split, pids in ("train", range(2, 2 * size.train + 1, 2)), ("test", range(1, 2 * size.test, 2)):
            for pid in pids:
                dice = self.dice(_PASSING, pid)
                missed = [dice.roll(100) < 25 for _ in self.setting.cameras]
                seen = [camid for camid in range(size.cameras) if not missed[camid]]
                seen = seen if len(seen) > 1 else [0, 1]
                for camid in seen:
                    for number in range(size.shots):
                        first = camid == seen[0] if self.edition == "tracks" else not number
                        yield Shot("train" if split == "train" else "query" if first else "gallery", pid, camid, number)
        for pid, stream, count in (0, _DISTRACTOR, size.distractors), (-1, _JUNK, size.junk):
            for number in range(count):
                yield Shot("gallery", pid, self.dice(stream, number).roll(size.cameras), number)

    def draw(self, shot: Shot, size: tuple[int, int] = NATIVE) -> Image.Image:
        """The image, RGB, `size` (height, width), up to (256, 128): the same content at any size."""
        if self.setting.wild:
            someone = self.person(shot.pid) if shot.pid > 0 else wild_person(self.dice(_DISTRACTOR, shot.number, 2))
            return draw_wild(someone, self.dice(_SHOT, shot.pid + 1, shot.camid, shot.number), size)
        camera, noise = self.setting.cameras[shot.camid], self._noise(shot.camid)
        sprite = Sprite()
        walks = self.edition == "tracks" and shot.pid > 0
        if shot.pid > 0:
            dice = self.dice(_SHOT, shot.pid, shot.camid, 0 if walks else shot.number)
            person = self.person(shot.pid, self.outfit(shot))
        else:
            dice = self.dice(_JUNK if shot.pid else _DISTRACTOR, shot.number, 1)
            # Junk is a bad box of somebody who may well be a query, a distractor somebody else.
            person = self.person(2 * shot.number + 1) if shot.pid else random_person(dice, self.setting.wardrobe)
        scene = self._view(shot.camid, dice.pick(camera.scenes))
        left, top = dice.roll(SCENE[1] - CANVAS[1]), dice.roll(SCENE[0] - CANVAS[0])
        background = Image.fromarray(scene[top : top + CANVAS[0], left : left + CANVAS[1]])
        pose = random_pose(dice, camera)
        if walks:
            pose = replace(pose, x=pose.x + 9 * (shot.number - 2), phase=(pose.phase + 50 * shot.number) % 360)
        crop = self._compose(sprite, person, pose, camera, dice, shot.pid)
        if self.edition == "occluded" and shot.split == "query":
            draw_obstacle(sprite, self.dice(_OBSTACLE, shot.pid, shot.camid, shot.number))

        palette = Image.fromarray(sprite.index, "P")
        palette.putpalette(grade(np.array(sprite.colours), camera).tobytes())
        background.paste(palette.convert("RGB"), mask=Image.fromarray(_OPACITY[sprite.index]))

        height, width = size
        image = background.resize((width, height), Image.Resampling.BOX, box=crop)
        if camera.blur:
            image = image.filter(ImageFilter.BoxBlur((camera.blur + dice.between(-10, 10)) * width / 6400))
        light, warm = 100 + dice.between(-20, 20), dice.between(-8, 8)  # the hour and the weather
        row, column = dice.roll(256), dice.roll(256)
        pixels = np.asarray(image).astype(np.int16) * np.array([light + warm, light, light - warm], np.int16) // 100
        pixels += noise[row : row + height, column : column + width]
        return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))

    def _compose(
        self, sprite: Sprite, person: Person, pose: Pose, camera: Camera, dice: Dice, pid: int
    ) -> tuple[int, int, int, int]:
        """Draw the person and what stands in the way; returns the detector's box on the canvas."""
        event = dice.roll(100)
        if event < 10:  # somebody walks behind
            other = random_person(dice, self.setting.wardrobe)
            passer = random_pose(dice, camera)
            side = dice.roll(2) * 2 - 1
            draw_person(sprite, other, Pose(128 + side * dice.between(60, 120), pose.ground - 30, pose.height - 50,
                                            passer.yaw, passer.phase, passer.swing, passer.pitch))  # fmt: skip
        if pid or not dice.chance(40):
            sprite.hull([(pose.x - 40, pose.ground - 8, 9), (pose.x + 60, pose.ground - 8, 9)], _SHADOW)
            draw_person(sprite, person, pose)
        if 10 <= event < 22:
            draw_obstacle(sprite, dice)
        jitter = [dice.between(-14, 14) for _ in range(4)]
        box = [28 + jitter[0], 14 + jitter[1], 228 + jitter[2], 498 + jitter[3]]
        if pid == -1:  # a box that no detector should have given: head, one side, or legs
            box = [[100, 20, 256, 200], [120 + jitter[0], 0, 256, 512], [20, 270 + jitter[1], 230, 512]][dice.roll(3)]
        elif dice.chance(8 if pid else 40):  # cut off below or above
            cut = 3 if dice.chance(60) else 1
            box[cut] += (cut - 2) * -dice.between(60, 160)
        left, top, right, bottom = box
        return max(left, 0), max(top, 0), min(right, CANVAS[1]), min(bottom, CANVAS[0])

    def _build_noise(self, camid: int) -> np.ndarray:
        dice = self.dice(_CAMERA, camid)
        grain = dice.bytes(512, 384, 3).astype(np.int16) + dice.bytes(512, 384, 1) - 255  # triangular, -255 to 255
        return grain * self.setting.cameras[camid].noise // 255


def random_pose(dice: Dice, camera: Camera) -> Pose:
    """Somebody before that camera: most walk its usual way, some the other way."""
    yaw = camera.yaw + dice.between(-30, 30) + dice.between(-30, 30) + 180 * dice.chance(30)
    return Pose(
        x=128 + dice.between(-16, 16),
        ground=482 + dice.between(-10, 6),
        height=dice.between(420, 446),
        yaw=yaw % 360,
        phase=dice.roll(360),
        swing=dice.between(16, 32),
        pitch=camera.pitch + dice.between(-4, 4),
    )


def grade(rgb: np.ndarray, camera: Camera) -> np.ndarray:
    """What the camera makes of colours: saturation, warmth and exposure, contrast. uint8 (..., 3)."""
    rgb = rgb.astype(np.int32)
    grey = (rgb * (77, 150, 29)).sum(-1, keepdims=True) // 256
    gains = np.array(
        [100 + camera.warmth + camera.tint // 2, 100 - camera.tint // 2, 100 - camera.warmth + camera.tint // 2]
    )
    rgb = (grey + (rgb - grey) * camera.saturation // 100) * gains * camera.exposure // 10_000
    return np.clip(118 + (rgb - 118) * camera.contrast // 100, 0, 255).astype(np.uint8)


def write_synthetic(
    root: str | Path, name: str = "synthetic", size: str = "small", seed: int = 0, edition: str = ""
) -> Path:
    """Draw a dataset, laid out as Market-1501.

    Args:
        root: the folder to make the dataset's folder in. That one appears whole or not at all, and is left as it is
            when it is there.
        name: one of SETTINGS.
        size: one of SIZES.
        seed: 0 or more.
        edition: one of EDITIONS, or "".

    Returns:
        The dataset's folder.

    Raises:
        ValueError: for an unknown name, edition or size, or a negative seed.
        OSError: when the folder cannot be written, or something else is in its place.
    """
    if size not in SIZES:
        raise unknown_name("synthetic size", size, SIZES)
    if seed < 0:
        raise ValueError(f"seed {seed} is negative: give 0 or more")
    studio = Studio(name, seed, edition)
    shots = list(studio.shots(SIZES[size]))
    folder = Path(root) / f"{'-'.join(filter(None, (name, edition, size)))}-{seed}-{NATIVE[0]}x{NATIVE[1]}"
    manifest = {"format": FORMAT, "name": name, "size": size, "seed": seed, "image_size": list(NATIVE),
                "images": dict(Counter(MARKET[shot.split] for shot in shots))}  # fmt: skip
    if folder.exists():
        if _is_complete(folder, manifest):
            return folder
        _discard(folder)
    with whole_folder(folder) as part:
        for split in MARKET.values():
            (part / split).mkdir()
        for shot in shots:
            path = part / MARKET[shot.split] / studio.file_name(shot)
            studio.draw(shot).save(path, quality=studio.quality(shot))
        (part / "synthetic.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return folder


MARKET = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}


def market_name(shot: Shot, sequence: int = 1) -> str:
    """As in Market-1501, `0002_c1s1_000451_03.jpg`: pid, camera and sequence, frame, box (00 is a query's)."""
    pid = f"{shot.pid:04d}" if shot.pid >= 0 else "-1"
    return f"{pid}_c{shot.camid + 1}s{sequence}_{25 * shot.number + 1:06d}_{int(shot.split != 'query'):02d}.jpg"


def _is_complete(folder: Path, manifest: dict) -> bool:
    try:
        if json.loads((folder / "synthetic.json").read_text()) != manifest:
            return False
        return all(len(list((folder / split).glob("*.jpg"))) == count for split, count in manifest["images"].items())
    except (OSError, ValueError):
        return False


def _discard(folder: Path) -> None:
    """Remove a tree of an older format or with images missing; refuse to touch what this module did not write."""
    if not (folder / "synthetic.json").is_file():
        raise FileExistsError(f"{folder} is in the way and has no synthetic.json: move it, or choose another root")
    aside = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    shutil.rmtree(aside)
