"""Who a drawn person is, and how they are drawn.

A `Person` holds what lasts (stature, skin, hair, clothes, shoes, bag, hat), a `Pose` what passes (place, size, facing,
phase of the step). `draw_person` puts the body together in a little space of its own (left, forward and up, in
thousandths of the stature), turns it to its facing, sorts the parts by depth and fills each as the convex hull of a
few discs.

Everything is integer arithmetic on a canvas of 512 x 256, and every draw comes from the raw bits of PCG64 (which numpy
promises never to change), so that the same numbers give the same pixels on any machine.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

CANVAS = (512, 256)  # height, width; every image is drawn at this size and then reduced
RGB = tuple[int, ...]  # three of them, 0 to 255
Disc = tuple[int, int, int]  # x, y, radius in canvas pixels

_ONE = 4096
_SIN = [round(_ONE * math.sin(math.radians(degree))) for degree in range(360)]
# The 15 outward directions with dx > 0, every 12 degrees; their mirror images have the same dy. (15, 1) each
_DX = np.array([[float(_SIN[12 * k + 6])] for k in range(15)])
_DY = np.array([[float(_SIN[(12 * k + 276) % 360])] for k in range(15)])


class Dice:
    """Draws that depend on `key` (non-negative integers) alone, the same on any machine and with any numpy."""

    def __init__(self, *key: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(key))

    def roll(self, n: int) -> int:
        """A whole number from 0 to n - 1."""
        return (self._bits.random_raw() >> 11) % n

    def between(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return low + self.roll(high - low + 1)

    def chance(self, percent: int) -> bool:
        return self.roll(100) < percent

    def pick(self, words: str) -> str:
        """One of the words; "black*4 white" gives black four times as often as white."""
        options = [(name, int(times or 1)) for name, _, times in (word.partition("*") for word in words.split())]
        roll = self.roll(sum(times for _, times in options))
        return next(name for k, (name, _) in enumerate(options) if roll < sum(times for _, times in options[: k + 1]))

    def bytes(self, *shape: int) -> np.ndarray:
        """Noise, uint8 of that shape."""
        count = math.prod(shape)
        return self._bits.random_raw(-(-count // 8)).astype("<u8").view(np.uint8)[:count].reshape(shape)


class Sprite:
    """An image of palette indices, uint8 (height, width), 0 where it is transparent.

    A material is an index m, a multiple of 4: m + 1 is its second colour, m + 2 and m + 3 both in the shade.
    """

    def __init__(self, height: int = CANVAS[0], width: int = CANVAS[1]) -> None:
        self.index = np.zeros((height, width), np.uint8)
        self.colours: list[RGB] = [(0, 0, 0)] * 4

    def material(self, base: RGB, second: RGB | None = None, shade: int = 76) -> int:
        """Add a material, shaded to `shade` percent; returns its first index."""
        pair = (base, second or base)
        self.colours += [*pair, *(tuple(c * shade // 100 for c in colour) for colour in pair)]
        return len(self.colours) - 4

    def hull(self, discs: Sequence[Disc], material: int, pattern: "Pattern | None" = None, dark: bool = False) -> None:
        """Fill the convex hull of the discs, the right quarter of each row (or, if `dark`, all of it) in the shade."""
        x, y, r = np.array(discs, np.float64).T[:, None]  # (1, discs) each
        top, bottom = max(int((y - r).min()), 0), min(int((y + r).max()) + 1, self.index.shape[0])
        if top >= bottom:
            return
        # A convex shape is the meeting of half planes: x * dx + y * dy <= support, in every direction. All numbers are
        # whole and far below 2**53, so that the division gives the same floor everywhere.
        rows = np.arange(top, bottom)
        tilt = rows * _DY  # (15, rows)
        right = np.floor((((x * _DX + y * _DY + r * _ONE).max(1, keepdims=True) - tilt) / _DX).min(0))
        left = -np.floor((((y * _DY - x * _DX + r * _ONE).max(1, keepdims=True) - tilt) / _DX).min(0))
        start, stop = max(int(left.min()), 0), min(int(right.max()) + 1, self.index.shape[1])
        if start >= stop:
            return
        columns, rows = np.arange(start, stop, dtype=np.int16), rows.astype(np.int16)[:, None]
        left, right = left.astype(np.int16)[:, None], right.astype(np.int16)[:, None]
        value = np.full((bottom - top, stop - start), material | 2 * dark, np.uint8)
        if not dark:
            value |= (columns > right - (right - left) // 4).view(np.uint8) << 1
        if pattern:
            value |= pattern.mask(columns, rows)
        np.copyto(self.index[top:bottom, start:stop], value, where=(columns >= left) & (columns <= right))

    def box(self, x: int, y: int, width: int, height: int, material: int) -> None:
        self.index[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)] = material


@dataclass(frozen=True)
class Pattern:
    """Where a fabric shows its second colour: `kind`, repeated every `period` pixels from the point (x, y)."""

    kind: str
    period: int
    x: int
    y: int

    def mask(self, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """uint8, 1 for the second colour; broadcasts columns (width,) and rows (height, 1)."""
        across, down = columns - self.x, rows - self.y
        half = self.period // 2
        if self.kind == "bands":
            on = down % self.period < half
        elif self.kind == "stripes":
            on = across % self.period < half
        elif self.kind == "checks":
            on = (across % self.period < half) ^ (down % self.period < half)
        elif self.kind == "dots":
            on = (across % self.period < half) & (down % self.period < half)
        else:  # "halves": the second colour from the chest down
            on = down > 3 * self.period
        return on.view(np.uint8)


COLOURS: dict[str, RGB] = {
    "black": (38, 38, 44), "grey": (128, 128, 132), "white": (232, 232, 228), "navy": (40, 50, 96),
    "blue": (58, 98, 178), "sky": (140, 184, 222), "red": (190, 48, 48), "wine": (112, 36, 52),
    "pink": (228, 150, 172), "orange": (226, 128, 50), "yellow": (228, 198, 72), "green": (62, 130, 76),
    "olive": (98, 102, 58), "teal": (44, 128, 132), "purple": (112, 70, 138), "brown": (104, 72, 50),
    "beige": (204, 182, 146), "denim": (74, 94, 134), "tan": (172, 124, 80),
}  # fmt: skip
SKINS: tuple[RGB, ...] = (
    (244, 208, 180),
    (230, 184, 150),
    (206, 156, 118),
    (168, 116, 82),
    (122, 82, 58),
    (88, 60, 46),
)
HAIRS: dict[str, RGB] = {
    "black": (30, 26, 28), "dark": (62, 44, 34), "brown": (106, 72, 46), "blond": (206, 170, 102), "red": (156, 76, 40),
    "grey": (160, 158, 156),
}  # fmt: skip


class Person(NamedTuple):
    """Everything that lasts: lengths in thousandths of the stature, `stature`, `build` and `hips` in percent."""

    stature: int
    build: int  # breadth in percent
    hips: int  # percent of the breadth
    skin: RGB
    hair: str
    hair_colour: RGB
    glasses: bool
    upper: str
    upper_colour: RGB
    second_colour: RGB
    pattern: str
    period: int
    print_shape: int
    inner_colour: RGB
    lower: str
    lower_colour: RGB
    hem: int
    tights: RGB | None
    shoes: str
    shoe_colour: RGB
    bag: str
    bag_colour: RGB
    bag_side: int
    hat: str
    hat_colour: RGB


def random_person(dice: Dice, wardrobe: Mapping[str, str]) -> Person:
    """Somebody dressed from `wardrobe`: weighted words for `Dice.pick`."""

    def colour(words: str) -> RGB:
        return tuple(min(max(c + dice.between(-9, 9), 0), 255) for c in COLOURS[dice.pick(words)])

    upper = dice.pick(wardrobe["upper"])
    upper_colour = colour(wardrobe["upper_colour"])
    second = colour("white*4 black*3 grey*2 red navy yellow sky pink")
    if sum(abs(a - b) for a, b in zip(upper_colour, second, strict=True)) < 150:  # a pattern nobody could see
        second = COLOURS["white"] if sum(upper_colour) < 380 else COLOURS["black"]
    return Person(
        stature=dice.between(90, 106),
        build=dice.between(80, 118),
        hips=dice.between(62, 96),
        skin=SKINS[dice.roll(len(SKINS))],
        hair=dice.pick("short*6 long*3 bob*3 tail*2 bun afro bald"),
        hair_colour=HAIRS[dice.pick("black*4 dark*4 brown*3 blond*3 red grey")],
        glasses=dice.chance(20),
        upper=upper,
        upper_colour=upper_colour,
        second_colour=second,
        pattern=dice.pick(wardrobe["pattern"]),
        period=dice.between(26, 54),
        print_shape=dice.roll(4),
        inner_colour=colour("white*4 black*3 grey*3 red sky yellow green"),
        lower=dice.pick(wardrobe["lower"]),
        lower_colour=colour(wardrobe["lower_colour"]),
        hem=dice.between(290, 420),
        tights=COLOURS["black"] if dice.chance(30) else None,
        shoes=dice.pick(wardrobe["shoes"]),
        shoe_colour=colour(wardrobe["shoe_colour"]),
        bag=dice.pick(wardrobe["bag"]),
        bag_colour=colour("black*4 brown*2 grey*2 red navy tan green pink orange"),
        bag_side=2 * dice.roll(2) - 1,
        hat=dice.pick(wardrobe["hat"]),
        hat_colour=colour("black*4 grey*2 red navy white beige yellow green"),
    )


@dataclass(frozen=True)
class Pose:
    """What passes. `x`, `ground`, `height` in canvas pixels; `yaw` in degrees: 0 faces us, 90 right, 180 away."""

    x: int
    ground: int
    height: int
    yaw: int
    phase: int
    swing: int = 26
    pitch: int = 0  # how far we look down, in percent


def draw_person(sprite: Sprite, person: Person, pose: Pose) -> None:
    """Draw `person` on `sprite` over what is there. Takes 11 materials of its palette or fewer."""
    p = person
    cos, sin = _SIN[(pose.yaw + 90) % 360], _SIN[pose.yaw % 360]
    height = pose.height * p.stature // 100
    parts: list[tuple[int, list[Disc], int, Pattern | None, bool]] = []

    def at(left: int, forward: int, up: int, radius: int) -> tuple[int, int, int, int]:
        """A disc of the body as x, y, radius in pixels, and its depth (towards us) in thousandths."""
        wide = height * (1000 + pose.pitch * (up - 500) // 100)  # seen from above, heads are large and feet small
        depth = (forward * cos - left * sin) // _ONE
        x = pose.x + (left * cos + forward * sin) // _ONE * wide // 1_000_000
        return x, pose.ground - (up * 100 - depth * pose.pitch) * height // 100_000, radius * wide // 1_000_000, depth

    def add(points: list, material: int, lift: int = 0, pattern: Pattern | None = None, dark: bool = False) -> None:
        discs = [at(*point) for point in points]
        depth = sum(disc[3] for disc in discs) // len(discs) + lift
        parts.append((depth, [disc[:3] for disc in discs], material, pattern, dark))

    def both(*points: tuple[int, int, int, int]) -> list:
        """The points and their mirror images."""
        return [(side * left, *rest) for left, *rest in points for side in (-1, 1)]

    def swung(start: tuple[int, int, int], length: int, angle: int) -> tuple[int, int, int]:
        left, forward, up = start
        return left, forward + length * _SIN[angle % 360] // _ONE, up - length * _SIN[(angle + 90) % 360] // _ONE

    skin, shoe = sprite.material(p.skin, shade=84), sprite.material(p.shoe_colour)
    upper, lower = sprite.material(p.upper_colour, p.second_colour), sprite.material(p.lower_colour)
    bag, hair = sprite.material(p.bag_colour, shade=66), sprite.material(p.hair_colour, shade=70)
    leg_skin = sprite.material(p.tights, shade=84) if p.tights else skin

    shoulder, hip = 82 * p.build // 100, 82 * p.build * p.hips // 10_000
    chest_x, chest_y, _, _ = at(0, 0, 820, 0)
    pattern = None
    if p.pattern not in ("plain", "print", "sleeves"):
        pattern = Pattern(p.pattern, max(p.period * height // 1000, 4), chest_x, chest_y)
    long_upper = p.upper in ("coat", "dress")
    bare_legs = p.upper == "dress" or p.lower in ("skirt", "shorts")
    step = pose.swing * _SIN[pose.phase % 360] // _ONE

    for side in (-1, 1):
        far = side * sin > _ONE // 3  # the limb on the other side of the body lies in its shade
        # Leg: the knee bends while the leg comes forward.
        bend = max(side * _SIN[(pose.phase + 90) % 360] * pose.swing * 3 // 2 // _ONE, 0) + 4
        top = (side * hip * 3 // 4, 0, 490)
        knee = swung(top, 225, side * step)
        ankle = swung(knee, 215, side * step - bend)
        wide = {"wide": 12, "leggings": -10}.get(p.lower, 0) + (p.build - 100) // 4
        cloth = leg_skin if bare_legs else lower
        lift = -10 * side * sin // _ONE
        add([(*top, 50 + wide), (*knee, 36 + wide)], cloth, lift, dark=far)
        add([(*knee, 35 + wide), (*ankle, 25 + wide)], cloth, lift, dark=far)
        if p.lower == "shorts" and p.upper != "dress":
            add([(*top, 58 + wide), (*swung(top, 150, side * step), 50 + wide)], lower, lift + 1, dark=far)
        left, forward, up = swung(ankle, 14, side * step - bend)
        add([(left, forward - 8, up, 25), (left, forward + 52, up - 8, 17)], shoe, lift + 2, dark=far)
        if p.shoes == "boots":
            add([(left, forward, up + 20, 29), (*swung(knee, 110, side * step - bend), 34)], shoe, lift + 2, dark=far)
        # Arm: it swings against the leg of its side.
        top = (side * (shoulder + 34), 0, 775)
        elbow = swung(top, 150, -side * step)
        hand = swung(elbow, 140, -side * step + 14)
        sleeve = upper + 1 if p.pattern == "sleeves" else upper
        short = p.upper in ("tee", "dress", "vest")
        lift = -100 if far else 160 if side * sin < -_ONE // 3 else 30
        add([(*elbow, 23), (*hand, 18)], skin if short else sleeve, lift, pattern if not short else None, far)
        add([(*top, 30), (*elbow, 24)], skin if p.upper == "vest" else sleeve, lift + 1, pattern, far)
        if p.upper == "tee" or p.upper == "dress":
            add([(*swung(top, 85, -side * step), 26), (*elbow, 23)], skin, lift + 2, None, far)
        else:
            add([(*top, 32), (*swung(top, 30, -side * step), 32)], upper, lift + 2, pattern, far)
        add([(*swung(hand, 12, -side * step), 20)], skin, lift + 2, dark=far)
        if p.bag == "handbag" and side == p.bag_side:
            left, forward, up = hand
            add([(left, forward - 50, up - 70, 14), (left, forward + 50, up - 70, 14),
                 (left, forward - 62, up - 150, 14), (left, forward + 62, up - 150, 14)], bag, lift + 4)  # fmt: skip
            add([(left, forward - 26, up - 60, 6), (left, forward, up - 6, 6)], bag, lift + 3)

    # Trunk and what hangs from it.
    belly = 54 + max(p.build - 100, 0) // 2
    if not long_upper:
        add(both((hip, 0, 500, 54)), lower, 20)
    if p.lower == "skirt" and not long_upper:
        add([*both((hip, 0, 530, 50)), *both((hip + 26, 0, p.hem, 50))], lower, 120)
    add(
        [*both((shoulder, 0, 770, 46), (hip * 9 // 10, 6, 640, belly)), *both((hip, 0, 540, 54)), (0, 0, 806, 34)],
        upper,
        40,
        pattern,
    )
    if long_upper:
        flare = 34 if p.upper == "dress" else 14
        add([*both((hip, 0, 540, 54)), *both((hip + flare, 0, p.hem, 50))], upper, 130, pattern)
    if p.upper in ("jacket", "coat"):
        hem = p.hem if p.upper == "coat" else 520
        inner = sprite.material(p.inner_colour)
        add([*both((22, 46, 770, 18), (26, 50, 560, 18))], inner, 42)
        if p.upper == "coat":
            add([(0, 54, 540, 7), (0, 54, hem - 40, 7)], inner, 90, dark=True)
    if p.upper == "hoodie":
        add(both((26, -34, 830, 40)), upper, 44, pattern)
    if p.pattern == "print" and p.upper not in ("jacket", "coat"):
        shapes = ([(0, 46, 690, 44)], both((52, 40, 680, 20)), both((14, 46, 730, 16), (14, 46, 610, 16)),
                  [(0, 46, 760, 12), *both((46, 40, 650, 12))])  # fmt: skip
        add(shapes[p.print_shape], upper + 1, 46)
    if p.bag == "backpack":
        add([*both((52, -92, 760, 30)), *both((58, -96, 590, 34))], bag, 0)
        add(both((36, -122, 640, 16), (36, -122, 600, 16)), bag, 0, dark=True)
        for side in (-1, 1):
            add([(side * 58, 40, 815, 10), (side * 66, 46, 640, 10)], bag, 48)
    if p.bag == "shoulder":
        side = p.bag_side
        for forward in (48, -48):
            add([(-side * 56, forward, 812, 9), (side * (hip + 40), forward, 520, 9)], bag, 47)
        add([(side * (hip + 62), f, up, 20) for f in (-44, 44) for up in (510, 420)], bag, 62)

    # Head: face and hair trade places as the person turns.
    add([(0, 0, 850, 26), (0, 0, 815, 30)], skin, 45, dark=True)
    add([(0, 8, 915, 58), (0, 16, 888, 46)], skin, 60)
    eye = sprite.material((34, 30, 32))
    for side in (-1, 1):
        if side * 24 * sin // _ONE < 46 * cos // _ONE + 12:
            add([(side * 24, 56, 912, 15 if p.glasses else 8)], eye, 62)
    if p.hair == "bald":
        pass
    elif p.hair == "afro":
        add([(0, -26, 940, 84)], hair, 62)
    else:
        add([(0, -26, 934, 62), (0, -6, 956, 46)], hair, 66)
    if p.hair == "long":
        add([(0, -40, 920, 56), *both((28, -52, 760, 30))], hair, 62)
    if p.hair == "bob":
        add(both((34, -22, 930, 36), (40, -24, 868, 28)), hair, 61)
    if p.hair == "tail":
        add([(0, -82, 940, 22), (0, -104, 800, 15)], hair, 63)
    if p.hair == "bun":
        add([(0, -62, 984, 32)], hair, 63)
    if p.hat != "none":
        hat = sprite.material(p.hat_colour)
        if p.hat == "beanie":
            add(both((14, -10, 968, 50)), hat, 90)
        else:
            add([*both((26, -8, 962, 38)), (0, -8, 980, 38)], hat, 90)
            wide = ((100, 0, 950, 9), (60, 76, 950, 9), (60, -76, 950, 9))
            add(both(*(((34, 44, 948, 8), (24, 92, 942, 7)) if p.hat == "cap" else wide)), hat, 91, dark=True)

    for _, discs, material, fabric, dark in sorted(parts, key=lambda part: part[0]):
        sprite.hull(discs, material, fabric, dark)
