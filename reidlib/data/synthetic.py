"""Drawn people before drawn cameras, written as a data set, so that everything runs with no download."""

import json
import shutil
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from reidlib.data.people import CANVAS, COLOURS, Dice, Person, Pose, Sprite, Wardrobe, draw_person, random_person
from reidlib.errors import unknown_name
from reidlib.files import whole_folder

FORMAT = 1  # counts up whenever the same settings would give other pictures
_PERSON, _CAMERA, _PASSING, _SHOT, _DISTRACTOR, _JUNK = range(6)  # what a draw is for: separate streams
_SCENE = (600, 1100)  # height, width of a scene; a picture sees 512 x 256 of it


@dataclass(frozen=True)
class Look:
    """What lasts about a camera. Percentages of a neutral camera, degrees, blur in hundredths of a pixel at width 64."""

    scene: str
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

    wardrobe: Wardrobe
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
        Wardrobe(
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
            Look("street", 0, 0, 100, 100, 100, 0, 4, 92, 0, 6),
            Look("park", 24, -8, 112, 92, 110, 30, 6, 88, 90, 16),
            Look("brick", -26, 0, 76, 110, 80, 0, 12, 84, 180, 4),
            Look("shop", 34, 8, 96, 124, 120, 50, 6, 80, 310, 12),
            Look("plaza", -10, -14, 126, 78, 70, 40, 8, 86, 40, 28),
            Look("station", -34, 12, 64, 96, 90, 20, 18, 76, 225, 20),
        ),
    ),
    "synthetic_b": Setting(
        Wardrobe(
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
            Look("market", 46, 14, 58, 120, 120, 40, 20, 78, 20, 14),
            Look("garage", -18, -26, 62, 84, 60, 50, 22, 72, 200, 30),
            Look("snow", -30, 4, 138, 72, 70, 30, 6, 86, 100, 8),
            Look("brick", 52, -6, 70, 112, 90, 60, 16, 74, 270, 18),
            Look("park", -6, 18, 84, 70, 40, 20, 10, 82, 340, 4),
            Look("station", 10, -30, 116, 130, 100, 40, 14, 70, 150, 24),
        ),
    ),
}

SIZES = {
    "tiny": Size(train=12, test=8, cameras=3, shots=3, distractors=8, junk=4),
    "small": Size(train=80, test=50, cameras=5, shots=4, distractors=200, junk=60),
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
                        yield Shot(
                            "train" if split == "train" else "gallery" if number else "query", pid, camid, number
                        )
        for pid, stream, count in (0, _DISTRACTOR, size.distractors), (-1, _JUNK, size.junk):
            for number in range(count):
                yield Shot("gallery", pid, self.dice(stream, number).below(size.cameras), number)

    def picture(self, shot: Shot, image_size: tuple[int, int] = (128, 64)) -> Image.Image:
        """The picture, RGB, `image_size` (height, width): the same content at any size."""
        look, scene, noise = self._camera(shot.camid)
        sprite = Sprite()
        if shot.pid > 0:
            dice = self.dice(_SHOT, shot.pid, shot.camid, shot.number)
            person = self.person(shot.pid)
        else:
            dice = self.dice(_JUNK if shot.pid else _DISTRACTOR, shot.number, 1)
            person = random_person(dice, self.setting.wardrobe)
        left, top = dice.below(_SCENE[1] - CANVAS[1]), dice.below(_SCENE[0] - CANVAS[0])
        background = Image.fromarray(scene[top : top + CANVAS[0], left : left + CANVAS[1]])
        pose = random_pose(dice, look)
        crop = self._compose(sprite, person, pose, look, dice, shot.pid)

        palette = Image.fromarray(sprite.index, "P")
        palette.putpalette(grade(np.array(sprite.colours), look).tobytes())
        # Index 1 is a shadow on the ground.
        mask = Image.fromarray(sprite.index).point([0, 90, 0, 0] + [255] * 252)
        background.paste(palette.convert("RGB"), mask=mask)

        height, width = image_size
        image = background.resize((width, height), Image.Resampling.BOX, box=crop)
        if look.blur:
            image = image.filter(ImageFilter.BoxBlur((look.blur + dice.between(-10, 10)) * width / 6400))
        light = 100 + dice.between(-14, 14)
        image = image.point([min(level * light // 100, 255) for level in range(256)] * 3)
        row, column = dice.below(256), dice.below(256)
        grain = noise[row : row + height, column : column + width]
        return Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))

    def _compose(
        self, sprite: Sprite, person: Person, pose: Pose, look: Look, dice: Dice, pid: int
    ) -> tuple[int, int, int, int]:
        """Draw the person and what stands in the way; returns the detector's box on the canvas."""
        event = dice.below(100)
        sprite.colours[1] = (0, 0, 0)
        if event < 10:  # somebody walks behind
            other = random_person(dice, self.setting.wardrobe)
            there = random_pose(dice, look)
            side = dice.below(2) * 2 - 1
            draw_person(sprite, other, Pose(128 + side * dice.between(60, 120), pose.ground - 30, pose.height - 50,
                                            there.yaw, there.phase, there.swing, there.pitch))  # fmt: skip
        if pid or not dice.chance(40):
            sprite.hull([(pose.x - 50, pose.ground, 9), (pose.x + 50 + look.pitch, pose.ground, 9)], 1, dark=True)
            draw_person(sprite, person, pose)
        if 10 <= event < 22:
            draw_obstacle(sprite, dice)
        jitter = [dice.between(-14, 14) for _ in range(4)]
        box = [8 + jitter[0], 8 + jitter[1], 248 + jitter[2], 504 + jitter[3]]
        if pid == -1:  # a box that no detector should have given
            way = dice.below(3)
            if way == 0:
                box = [100, 20, 256, 200]
            elif way == 1:
                box = [120 + jitter[0], 0, 256, 512]
            else:
                box = [20, 270 + jitter[1], 230, 512]
        elif pid == 0 and dice.chance(30) or dice.chance(8):  # cut off below or above
            box[3 if dice.chance(60) else 1] = 300 if box[1] else 200
        left, top, right, bottom = box
        return max(left, 0), max(top, 0), min(right, CANVAS[1]), min(bottom, CANVAS[0])

    def _build_camera(self, camid: int) -> tuple[Look, np.ndarray, np.ndarray]:
        look, dice = self.setting.cameras[camid], self.dice(_CAMERA, camid)
        scene = grade(draw_scene(look.scene, dice), look)
        grain = dice.bytes(512, 384, 3).astype(np.int16) + dice.bytes(512, 384, 1) - 255  # triangular, -255 to 255
        return look, scene, grain * look.noise // 255


def random_pose(dice: Dice, look: Look) -> Pose:
    """Somebody before that camera: most walk its usual way, some the other way."""
    yaw = look.yaw + dice.between(-30, 30) + dice.between(-30, 30) + 180 * dice.chance(30)
    return Pose(
        x=128 + dice.between(-16, 16),
        ground=480 + dice.between(-12, 8),
        height=dice.between(415, 450),
        yaw=yaw % 360,
        phase=dice.below(360),
        swing=dice.between(16, 32),
        pitch=look.pitch + dice.between(-4, 4),
    )


def grade(rgb: np.ndarray, look: Look) -> np.ndarray:
    """What the camera makes of colours: saturation, warmth and exposure, contrast. uint8 (..., 3), integers throughout."""
    rgb = rgb.astype(np.int32)
    grey = (rgb * (77, 150, 29)).sum(-1, keepdims=True) // 256
    gains = np.array([100 + look.warmth + look.tint // 2, 100 - look.tint // 2, 100 - look.warmth + look.tint // 2])
    rgb = (grey + (rgb - grey) * look.saturation // 100) * gains * look.exposure // 10_000
    return np.clip(118 + (rgb - 118) * look.contrast // 100, 0, 255).astype(np.uint8)


def draw_obstacle(sprite: Sprite, dice: Dice) -> None:
    """Something between the camera and the person."""
    colour = tuple(dice.between(30, 200) for _ in range(3))
    kind, x = dice.pick("pole car bush rack"), dice.between(40, 216)
    if kind == "pole":
        sprite.hull([(x, -20, 12), (x, 540, 14)], sprite.material((110, 112, 116)))
    elif kind == "car":
        body, glass = sprite.material(colour), sprite.material((60, 70, 80))
        sprite.hull([(x - 140, 470, 30), (x + 140, 470, 30), (x - 140, 520, 30), (x + 140, 520, 30)], body)
        sprite.hull([(x - 80, 420, 16), (x + 60, 420, 16), (x - 120, 460, 16), (x + 110, 460, 16)], glass)
    elif kind == "bush":
        leaf = sprite.material((58, 96, 48))
        for k in range(9):
            sprite.hull([(x - 100 + 25 * k, dice.between(440, 500), dice.between(24, 50))], leaf + dice.below(2) * 2)
    else:
        metal = sprite.material((150, 152, 158))
        for k in range(-6, 7):
            sprite.hull([(x + 44 * k, 400, 6), (x + 44 * k, 530, 6)], metal)
        sprite.hull([(-20, 400, 7), (280, 400, 7)], metal)


def draw_scene(kind: str, dice: Dice) -> np.ndarray:
    """The place behind the people, uint8 (600, 1100, 3); the ground begins somewhere between knee and hip."""
    height, width = _SCENE
    sprite = Sprite(height, width)
    line = dice.between(300, 380)  # where the ground begins

    def material(*base: int) -> int:
        return sprite.material(tuple(max(min(c + dice.between(-14, 14), 255), 0) for c in base), shade=82)

    def rows(y: int, size: int, gap: int, colour: int, grow: int = 0) -> None:
        while y < height:
            sprite.box(0, y, width, gap, colour)
            y, size = y + size, size + grow

    wall, ground = {
        "street": ((176, 164, 148), (96, 98, 104)), "park": ((150, 186, 214), (98, 142, 70)),
        "brick": ((158, 88, 68), (150, 146, 138)), "shop": ((92, 74, 66), (172, 166, 158)),
        "plaza": ((196, 188, 172), (186, 168, 142)), "station": ((206, 212, 210), (120, 126, 132)),
        "market": ((120, 104, 90), (128, 116, 104)), "garage": ((128, 130, 126), (92, 94, 92)),
        "snow": ((150, 162, 178), (232, 236, 240)),
    }[kind]  # fmt: skip
    sprite.box(0, 0, width, line, material(*wall))
    sprite.box(0, line, width, height, floor := material(*ground))
    dark, light = material(52, 56, 66), material(226, 224, 214)
    if kind == "street":
        for x in range(dice.below(90), width, 170):
            for y in (-60, 110):
                sprite.box(x, y, 84, 120, light)
                sprite.box(x + 8, y + 8, 68, 104, dark + 2 * dice.below(2))
        sprite.box(0, line, width, 40, material(168, 164, 158))
        sprite.box(0, line + 40, width, 8, light)
        for x in range(60, width, 330):
            body = material(dice.below(220), dice.below(220), dice.below(220))
            sprite.hull(
                [(x, line - 20, 26), (x + 210, line - 20, 26), (x, line + 6, 26), (x + 210, line + 6, 26)], body
            )
            sprite.hull([(x + 50, line - 76, 14), (x + 140, line - 76, 14), (x + 10, line - 40, 10), (x + 190, line - 40, 10)], dark)  # fmt: skip
            for wheel in (x + 30, x + 180):
                sprite.hull([(wheel, line + 26, 24)], dark)
        for x in range(dice.below(200), width, 260):
            sprite.box(x, line + 150, 140, 16, light)
    elif kind in ("park", "snow"):
        leaves = material(64, 112, 60) if kind == "park" else material(96, 104, 116)
        trunk, path = material(92, 68, 50), material(196, 178, 140) if kind == "park" else material(206, 212, 222)
        for x in range(-20, width, 60):
            sprite.hull([(x, line - dice.between(0, 60), dice.between(30, 70))], leaves + 2 * dice.below(2))
        sprite.box(0, line, width, height, floor)
        for x in range(dice.below(120), width, 230):
            base = line + dice.between(0, 70)
            sprite.hull([(x, base, 16), (x + dice.between(-20, 20), 120, 10)], trunk)
            for _ in range(5 if kind == "park" else 0):
                sprite.hull(
                    [(x + dice.between(-70, 70), dice.between(20, 130), dice.between(40, 66))],
                    leaves + 2 * dice.below(2),
                )
        sprite.hull([(0, line + 120, 30), (width, line + 170, 40)], path)
    elif kind == "brick":
        mortar = material(190, 180, 168)
        for k, y in enumerate(range(0, line, 26)):
            for x in range(-(k % 2) * 32, width, 64):
                sprite.box(x + 3, y + 3, 60, 22, sprite.index[0, 0] + 2 * dice.chance(25))
                sprite.box(x, y, 4, 26, mortar)
            sprite.box(0, y, width, 4, mortar)
        rows(line, 34, 5, dark + 2, grow=8)
        for x in range(dice.below(100), width, 150):
            sprite.box(x, line, 5, height, dark + 2)
    elif kind == "shop":
        for x in range(dice.below(60) - 60, width, 250):
            sprite.box(x, 60, 220, line - 90, material(238, 218, 168))
            for _ in range(9):
                goods = (
                    material(dice.below(255), dice.below(255), dice.below(255)) if len(sprite.colours) < 230 else light
                )
                sprite.box(
                    x + dice.between(8, 170),
                    dice.between(90, line - 90),
                    dice.between(18, 42),
                    dice.between(24, 60),
                    goods,
                )
            sprite.box(x + 106, 60, 8, line - 90, dark)
        for x in range(0, width, 72):
            sprite.box(x, 0, 36, 70, material(176, 44, 48) if x == 0 else sprite.index[10, 10])
            sprite.box(x + 36, 0, 36, 70, light)
        rows(line, 40, 4, dark + 2, grow=6)
    elif kind in ("plaza", "garage"):
        joint = material(150, 134, 112) if kind == "plaza" else material(200, 190, 90)
        rows(line - 120 if kind == "plaza" else line, 30, 4, joint, grow=10)
        for x in range(-800, width + 800, 120):
            sprite.hull([(x // 2 + 275, line - 118, 1), (x, height + 60, 3)], joint)
        for x in range(dice.below(200), width, 340):
            sprite.box(x, 0, 70, line + 20, dark if kind == "garage" else light)
            sprite.box(x + 50, 0, 20, line + 20, dark + 2)
            sprite.box(x + 120, line - 60, 160, 44, material(116, 86, 60) if kind == "plaza" else material(70, 74, 110))
    elif kind == "station":
        for x in range(0, width, 46):
            sprite.box(x, 0, 2, line, dark + 2)
        sprite.box(0, 90, width, 44, material(38, 110, 140))
        for x in range(dice.below(200), width, 300):
            sprite.box(x, 170, 120, 130, material(dice.below(255), dice.below(200), dice.below(255)))
            sprite.box(x + 14, 200, 60, 60, light)
        sprite.box(0, line + 60, width, 26, material(222, 190, 60))
        rows(line + 90, 60, 3, dark + 2, grow=20)
    else:  # market
        for x in range(-40, width, 220):
            awning = material(dice.between(90, 230), dice.between(50, 160), dice.between(40, 120))
            sprite.hull([(x + 30, 60, 8), (x + 190, 60, 8), (x, 130, 8), (x + 212, 130, 8)], awning)
            sprite.box(x + 10, line - 110, 200, 110, material(110, 80, 56))
            for k in range(14):
                fruit = awning + 2 if k % 3 else light
                sprite.hull([(x + 24 + 13 * k, line - 116 - 9 * (k % 3), 12)], fruit)
        rows(line + 10, 36, 5, dark + 2, grow=8)
    texture = sum(
        clouds(dice, height, width, grain) * strength // 128 for grain, strength in ((150, 22), (24, 12), (5, 10))
    )
    colours = np.array(sprite.colours, np.int16)[sprite.index]
    return np.clip(colours + texture[..., None], 0, 255).astype(np.uint8)


def clouds(dice: Dice, height: int, width: int, grain: int) -> np.ndarray:
    """Smooth noise from -128 to 127, int16 (height, width), its lumps `grain` pixels wide."""
    lumps = dice.bytes(height // grain + 2, width // grain + 2)
    return np.asarray(Image.fromarray(lumps).resize((width, height), Image.Resampling.BILINEAR)).astype(np.int16) - 128


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
    if not (32 <= height <= CANVAS[0] and 16 <= width <= CANVAS[1]):
        raise ValueError(f"image_size {image_size} is out of bounds: height 32 to {CANVAS[0]}, width 16 to {CANVAS[1]}")
    if seed < 0:
        raise ValueError(f"seed {seed} is negative: give 0 or more")
    studio = Studio(name, seed)
    shots = list(studio.shots(SIZES[size]))
    folder = Path(root) / f"{name}-{size}-{seed}-{height}x{width}"
    manifest = {"format": FORMAT, "name": name, "size": size, "seed": seed, "image_size": [height, width],
                "setting": asdict(SIZES[size]), "images": dict(Counter(MARKET[shot.split] for shot in shots))}  # fmt: skip
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
        for frame, shot in enumerate(shots):
            image = studio.picture(shot, image_size)
            quality = studio.setting.cameras[shot.camid].quality
            image.save(part / MARKET[shot.split] / market_name(shot, frame), quality=quality)
        (part / "synthetic.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return folder


MARKET = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}


def market_name(shot: Shot, frame: int) -> str:
    """As in Market-1501: pid, camera and sequence, frame, detection; `-1_c3s1_000007_04.jpg`."""
    pid = f"{shot.pid:04d}" if shot.pid >= 0 else "-1"
    return f"{pid}_c{shot.camid + 1}s1_{frame:06d}_{shot.number % 100:02d}.jpg"


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
