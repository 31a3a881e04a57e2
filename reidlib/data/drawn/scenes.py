"""Where drawn people walk: the scene behind them, and what stands in the way. The same canvas and draws as `people`."""

import numpy as np
from PIL import Image

from reidlib.data.drawn.people import Dice, Sprite

SCENE = (600, 1100)  # height, width of a scene; an image sees 512 x 256 of it

_WALL_AND_GROUND = {
    "street": ((176, 164, 148), (96, 98, 104)), "park": ((150, 186, 214), (98, 142, 70)),
    "brick": ((158, 88, 68), (150, 146, 138)), "shop": ((92, 74, 66), (172, 166, 158)),
    "plaza": ((196, 188, 172), (186, 168, 142)), "station": ((206, 212, 210), (120, 126, 132)),
    "market": ((120, 104, 90), (128, 116, 104)), "garage": ((128, 130, 126), (92, 94, 92)),
    "snow": ((150, 162, 178), (232, 236, 240)),
}  # fmt: skip


def draw_scene(kind: str, dice: Dice) -> np.ndarray:
    """The scene behind the people, uint8 (600, 1100, 3); the ground begins somewhere between knee and hip."""
    height, width = SCENE
    sprite = Sprite(height, width)
    box, hull = sprite.box, sprite.hull
    line = dice.between(300, 380)  # where the ground begins
    start = dice.roll(120)

    def paint(*base: int) -> int:
        return sprite.material(tuple(max(min(c + dice.between(-14, 14), 255), 0) for c in base), shade=82)

    def any_paint() -> int:
        return paint(*(dice.between(20, 220) for _ in range(3)))

    def slabs(y: int, depth: int, gap: int, colour: int, grow: int) -> None:
        while y < height:
            box(0, y, width, gap, colour)
            y, depth = y + depth, depth + grow

    wall, ground = (paint(*base) for base in _WALL_AND_GROUND[kind])
    dark, light, wood = paint(52, 56, 66), paint(226, 224, 214), paint(100, 74, 54)
    box(0, 0, width, line, wall)
    box(0, line, width, height, ground)
    if kind == "street":
        for x in range(start, width, 170):
            for y in (-60, 110):
                box(x, y, 84, 120, light)
                box(x + 8, y + 8, 68, 104, dark + 2 * dice.roll(2))
        box(0, line, width, 40, light + 2)
        box(0, line + 40, width, 8, light)
        for x in range(start, width, 330):
            car, y = any_paint(), line
            hull([(x, y - 20, 26), (x + 210, y - 20, 26), (x, y + 6, 26), (x + 210, y + 6, 26)], car)
            hull([(x + 50, y - 76, 14), (x + 140, y - 76, 14), (x + 10, y - 40, 10), (x + 190, y - 40, 10)], dark)
            for wheel in (x + 30, x + 180):
                hull([(wheel, y + 26, 24)], dark)
            box(x + 40, y + 150, 140, 16, light)
    elif kind in ("park", "snow"):
        leaves = paint(64, 112, 60) if kind == "park" else paint(88, 106, 112)
        for x in range(-20, width, 60):
            hull([(x, line - dice.between(0, 60), dice.between(30, 70))], leaves + 2 * dice.roll(2))
        box(0, line, width, height, ground)
        for x in range(start, width, 230):
            base = line + dice.between(0, 70)
            hull([(x, base, 16), (x + dice.between(-20, 20), 120, 10)], wood)
            for k in range(5):
                if kind == "park":
                    crown = [(x + dice.between(-70, 70), dice.between(20, 130), dice.between(40, 66))]
                else:  # a fir
                    crown = [(x, base - 120 - 80 * k, 3), (x - 92 + 14 * k, base - 34 - 70 * k, 6),
                             (x + 92 - 14 * k, base - 34 - 70 * k, 6)]  # fmt: skip
                hull(crown, leaves + 2 * dice.roll(2))
        hull([(0, line + 120, 30), (width, line + 170, 40)], paint(204, 190, 160))
    elif kind == "brick":
        for k, y in enumerate(range(0, line, 26)):
            box(0, y, width, 4, light + 2)
            for x in range(-(k % 2) * 32, width, 64):
                box(x, y, 4, 26, light + 2)
                box(x + 4, y + 4, 60, 22, wall + 2 * dice.chance(25))
        slabs(line, 34, 5, ground + 2, grow=8)
        for x in range(start, width, 150):
            box(x, line, 5, height, ground + 2)
    elif kind == "shop":
        goods, lit, cloth = [any_paint() for _ in range(12)], paint(238, 218, 168), paint(176, 44, 48)
        for x in range(start - 120, width, 250):
            box(x, 60, 220, line - 90, lit)
            for _ in range(9):
                box(x + dice.between(8, 170), dice.between(90, line - 90), dice.between(18, 42),
                    dice.between(24, 60), goods[dice.roll(12)])  # fmt: skip
            box(x + 106, 60, 8, line - 90, dark)
        for x in range(0, width, 72):
            box(x, 0, 36, 70, cloth)
            box(x + 36, 0, 36, 70, light)
        slabs(line, 40, 4, ground + 2, grow=6)
    elif kind in ("plaza", "garage"):
        joint = paint(150, 134, 112) if kind == "plaza" else paint(200, 190, 90)
        slabs(line, 30, 4, joint, grow=10)
        y = np.arange(line, height)
        for x in range(-1000, width + 1000, 120):  # lines that run together in the distance
            at = (x + width // 2) // 2 + (x - width // 2) * (y - line) // (2 * (height - line))
            seen = (at >= 0) & (at < width - 4)
            for k in range(4):
                sprite.index[y[seen], at[seen] + k] = joint
        for x in range(start, width, 340):
            pillar = dark if kind == "garage" else light
            box(x, 0, 50, line + 20, pillar)
            box(x + 50, 0, 20, line + 20, pillar + 2)
            box(x + 120, line - 60, 160, 44, wood if kind == "plaza" else any_paint())
    elif kind == "station":
        for x in range(0, width, 46):
            box(x, 0, 2, line, wall + 2)
        box(0, 90, width, 44, paint(38, 110, 140))
        for x in range(start, width, 300):
            box(x, 170, 120, 130, any_paint())
            box(x + 14, 200, 60, 60, light)
        box(0, line + 60, width, 26, paint(222, 190, 60))
        slabs(line + 90, 60, 3, ground + 2, grow=20)
    else:  # "market"
        for x in range(start - 120, width, 220):
            awning = paint(dice.between(90, 230), dice.between(50, 160), dice.between(40, 120))
            fruit = any_paint()
            hull([(x + 30, 60, 8), (x + 190, 60, 8), (x, 130, 8), (x + 212, 130, 8)], awning)
            box(x + 10, line - 110, 200, 110, wood)
            for k in range(14):
                hull([(x + 24 + 13 * k, line - 116 - 9 * (k % 3), 12)], fruit if k % 3 else awning)
        slabs(line + 10, 36, 5, ground + 2, grow=8)
    coarse, middle, fine = (
        _clouds(dice, grain) * strength // 128 for grain, strength in ((150, 22), (24, 12), (5, 10))
    )
    texture = coarse + middle + fine
    return np.clip(np.array(sprite.colours, np.int16)[sprite.index] + texture[..., None], 0, 255).astype(np.uint8)


def _clouds(dice: Dice, grain: int) -> np.ndarray:
    """Smooth noise from -128 to 127, int16, as large as a scene, its lumps `grain` pixels wide."""
    height, width = SCENE
    lumps = Image.fromarray(dice.bytes(height // grain + 2, width // grain + 2))
    return np.asarray(lumps.resize((width, height), Image.Resampling.BILINEAR)).astype(np.int16) - 128


def draw_obstacle(sprite: Sprite, dice: Dice) -> None:
    """Draw something that stands between the camera and the person."""
    kind, x = dice.pick("pole car bush rack"), dice.between(50, 206)
    if kind == "pole":
        steel = sprite.material((110, 112, 116))
        sprite.box(x - 14, 0, 28, 512, steel)
        sprite.box(x + 6, 0, 8, 512, steel + 2)
    elif kind == "car":
        body = sprite.material(tuple(dice.between(30, 200) for _ in range(3)))
        sprite.hull([(x + way * 140, y, 30) for way in (-1, 1) for y in (450, 520)], body)
        top = [(x + way * wide, y, 16) for way in (-1, 1) for wide, y in ((70, 396), (112, 440))]
        sprite.hull(top, sprite.material((60, 70, 80)))
    elif kind == "bush":
        leaf = sprite.material((58, 96, 48))
        for k in range(9):
            sprite.hull([(x - 100 + 25 * k, dice.between(440, 500), dice.between(24, 50))], leaf + 2 * dice.roll(2))
    else:
        metal = sprite.material((150, 152, 158))
        for k in range(-6, 7):
            sprite.hull([(x + 44 * k, 400, 6), (x + 44 * k, 530, 6)], metal)
        sprite.hull([(-20, 400, 7), (280, 400, 7)], metal)
