"""Drawn people nearer to photographs: no two images share a camera or a place, and nothing is flat.

The people of `people` from every side, in any posture and any dress, with folds and shading on their clothes, before
drawn scenes that are mixed with noise of all scales (whose spectrum falls as that of photographs does), in light with
a direction and cast shadows, in loose boxes, half hidden, and of any JPEG quality. What a network learns here it
cannot have learnt from a background or from a camera's tint. Tobin et al., "Domain Randomization for Transferring Deep
Neural Networks from Simulation to the Real World", IROS 2017, arXiv 1703.06907.

Unlike the other drawn datasets its arithmetic is in floats: another machine may round a pixel differently.
"""

from functools import cache

import numpy as np
from PIL import Image, ImageFilter

from reidlib.data.drawn.people import COLOURS, RGB, Dice, Person, Pose, Sprite, draw_person, random_person
from reidlib.data.drawn.scenes import SCENE, draw_obstacle, draw_scene

WARDROBE = dict(
    upper="tee*6 long*4 hoodie*3 jacket*5 coat*3 vest dress*2",
    upper_colour="black*6 white*5 grey*4 navy*3 blue*3 red*3 green*2 yellow pink*2 sky*2 brown wine olive beige*2 teal "
    "purple orange",
    pattern="plain*9 bands*2 stripes*2 checks*3 dots halves*2 print*4 sleeves*2",
    lower="trousers*6 wide*2 leggings*2 shorts*4 skirt*2",
    lower_colour="black*5 denim*5 grey*3 navy*2 beige*2 brown*2 white olive red blue wine green",
    shoes="sneakers*4 boots",
    shoe_colour="black*4 white*3 grey*2 red brown*2 blue tan",
    bag="none*4 backpack*3 shoulder*2 handbag*2",
    hat="none*9 cap*2 beanie hat",
)
_SCENES, _KINDS = 120, "street park brick shop plaza station market garage snow"
_SIZE = (256, 128)  # height, width of the canvas once halved: where light and texture are added
_FIELD = 512  # side of the fields of noise, which wrap around
_CLOTHES = ("upper_colour", "second_colour", "inner_colour", "lower_colour", "shoe_colour", "bag_colour", "hat_colour")


def wild_person(dice: Dice) -> Person:
    """Somebody in clothes of any colour: a named one, shifted and brightened or darkened."""
    person = random_person(dice, WARDROBE)

    def dyed(colour: RGB) -> RGB:
        if dice.chance(12):
            colour = COLOURS[dice.pick(" ".join(COLOURS))]
        light = dice.between(70, 125)
        return tuple(min(max(c * light // 100 + dice.between(-22, 22), 12), 245) for c in colour)

    clothes = {name: dyed(getattr(person, name)) for name in _CLOTHES}
    return person._replace(**clothes, period=dice.between(14, 60), stature=dice.between(88, 108))


def draw_wild(person: Person, dice: Dice, size: tuple[int, int]) -> Image.Image:
    """An image of `person`, RGB, `size` (height, width), in a place, posture and light that depend on `dice` alone."""
    sprite, behind = Sprite(), Sprite()
    pitch = dice.between(0, 26)

    def pose(x: int, ground: int, height: int) -> Pose:
        swing = dice.between(2, 12) if dice.chance(30) else dice.between(12, 36)
        return Pose(x, ground, height, dice.roll(360), dice.roll(360), swing, pitch)

    for _ in range(dice.roll(3) if dice.chance(45) else 0):  # other people, further away or nearer
        side, height = 2 * dice.roll(2) - 1, dice.between(240, 450)
        other = pose(128 + side * dice.between(50, 130), 350 + (height - 200) // 2 + dice.between(-20, 20), height)
        if len(behind.colours) < 90:
            draw_person(behind, wild_person(dice), other)
    own = pose(128 + dice.between(-18, 18), 482 + dice.between(-12, 8), dice.between(408, 450))
    draw_person(sprite, person, own)
    front = Sprite()
    if dice.chance(14):
        draw_obstacle(front, dice)
    elif dice.chance(8):  # somebody walks past in front, at the side
        side = 2 * dice.roll(2) - 1
        draw_person(front, wild_person(dice), pose(128 + side * dice.between(95, 140), 500, 460))

    pixels = _background(dice)
    fields = _fields()
    if dice.chance(60):  # a shadow on the ground
        shade = Sprite()
        foot = (own.x - dice.between(-20, 70), own.ground - 8, 10)
        head = (own.x + dice.between(-20, 110), own.ground - dice.between(4, 60), dice.between(6, 16))
        shade.hull([foot, head], shade.material((0, 0, 0)))
        pixels *= 1 - _rgba(shade)[..., 3:] * dice.between(15, 55) / 100
    light = _light(dice)
    for layer in (behind, sprite, front):
        if not layer.index.any():
            continue
        rgba = _rgba(layer)
        rough = fields[1 + dice.roll(2) if dice.chance(25) else 4 + dice.roll(4)]
        folds = _crop(rough, dice, stretch=dice.between(0, 1))
        weave = _crop(fields[0], dice)
        shaded = rgba[..., :3] * (light + folds * dice.between(4, 20) / 100 + weave * dice.roll(6) / 100)[..., None]
        shaded += dice.roll(14) / 255 * (1 + folds[..., None])  # what dark cloth reflects
        pixels += (shaded - pixels) * rgba[..., 3:]
    if dice.chance(30):  # the edge of a cast shadow, somewhere across the image
        pixels *= _cast_shadow(dice)[..., None]
    return _photograph(pixels, dice, size)


def _rgba(sprite: Sprite) -> np.ndarray:
    """The sprite at half its size, float32 (256, 128, 4) in [0, 1]."""
    colours = np.array([(*colour, 255) for colour in sprite.colours], np.uint8)
    colours[:4] = 0
    image = Image.fromarray(sprite.index, "P")
    image.putpalette(colours.tobytes(), "RGBA")
    image = image.convert("RGBA").reduce(2)
    return np.asarray(image).astype(np.float32) / 255


@cache
def _fields() -> list[np.ndarray]:
    """Noise that wraps around, float32 (512, 512), mean 0 and deviation 1: fine first, then ever smoother."""
    rng = np.random.Generator(np.random.PCG64(7))
    y, x = np.meshgrid(np.fft.fftfreq(_FIELD), np.fft.rfftfreq(_FIELD), indexing="ij")
    frequency = np.hypot(x, y)
    frequency[0, 0] = 1
    fields = []
    for power in (0.3, 0.8, 1.1, 1.1, 1.4, 1.4, 1.7, 2.0):
        spectrum = np.fft.rfft2(rng.standard_normal((_FIELD, _FIELD))) / frequency**power
        spectrum[0, 0] = 0
        field = np.fft.irfft2(spectrum, s=(_FIELD, _FIELD))
        fields.append((field / field.std()).astype(np.float32))
    return fields


def _crop(field: np.ndarray, dice: Dice, stretch: int = 0) -> np.ndarray:
    """A random part of a field, (256, 128); with `stretch` the same in lines twice as wide as high, as of folds."""
    y, x = dice.roll(_FIELD - _SIZE[0]), dice.roll(_FIELD - 2 * _SIZE[1])
    part = field[y : y + _SIZE[0], x : x + _SIZE[1]]
    return np.repeat(part[:, : _SIZE[1] // 2], 2, axis=1) if stretch else part


def _light(dice: Dice) -> np.ndarray:
    """Light from a side and from above, (256, 128): a factor for the colours of people."""
    across = np.linspace(-1, 1, _SIZE[1], dtype=np.float32) * (dice.between(-45, 45) / 100)
    down = np.linspace(1, -1, _SIZE[0], dtype=np.float32)[:, None] * (dice.between(-12, 25) / 100)
    return np.float32(dice.between(78, 118) / 100) * (1 + across * 1.3) * (1 + down)


def _cast_shadow(dice: Dice) -> np.ndarray:
    angle, sharp = dice.roll(628) / 100, dice.between(4, 40)
    y, x = np.mgrid[-1 : 1 : _SIZE[0] * 1j, -0.5 : 0.5 : _SIZE[1] * 1j].astype(np.float32)
    edge = np.cos(angle) * x + np.sin(angle) * y + dice.between(-50, 50) / 100
    return 1 - dice.between(15, 60) / 100 / (1 + np.exp(-sharp * edge))


@cache
def _scene(number: int) -> np.ndarray:
    dice = Dice(17, number)
    return draw_scene(dice.pick(_KINDS), dice)


def _background(dice: Dice) -> np.ndarray:
    """What is behind the people, float32 (256, 128, 3): a part of a scene, clutter and coloured noise."""
    scene = _scene(dice.roll(_SCENES))
    height = dice.between(200, 600)
    top, left = dice.roll(SCENE[0] - height + 1), dice.roll(SCENE[1] - height // 2)
    view = Image.fromarray(scene[top : top + height, left : left + height // 2]).resize(
        _SIZE[::-1], Image.Resampling.BOX
    )
    if dice.chance(50):
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if dice.chance(50):  # out of focus
        view = view.filter(ImageFilter.BoxBlur(dice.between(1, 6)))
    pixels = np.asarray(view).astype(np.float32) / 255
    if dice.chance(60):  # the same place in other paint
        mix = np.array([[dice.between(-40, 40) for _ in range(3)] for _ in range(3)], np.float32) / 100 + np.eye(3)
        pixels = pixels @ (mix / np.abs(mix).sum(0)).astype(np.float32)
    if dice.chance(50):
        sprite = Sprite()
        for _ in range(dice.between(1, 9)):
            material = sprite.material(tuple(dice.between(10, 240) for _ in range(3)))
            x, y, w, h = dice.between(-20, 276), dice.between(-20, 520), dice.between(4, 90), dice.between(4, 200)
            if dice.chance(50):
                sprite.box(x - w, y - h, w, h, material)
            else:
                sprite.hull([(x, y, w // 4 + 2), (x + w, y - h, h // 8 + 2), (x - w // 2, y - h // 2, 3)], material)
        rgba = _rgba(sprite)
        pixels += (rgba[..., :3] - pixels) * rgba[..., 3:]
    fields = _fields()
    rough = _crop(fields[1 + dice.roll(len(fields) - 1)], dice) * dice.between(0, 30) / 100
    pixels *= (1 + rough)[..., None]
    if dice.chance(50):  # leaves, gravel, crowds: blobs of two colours
        mask = np.clip(_crop(fields[2 + dice.roll(4)], dice) * dice.between(1, 6) + dice.between(-3, 2), 0, 1)[
            ..., None
        ]
        paint = np.array([dice.between(10, 235) for _ in range(3)], np.float32) / 255
        paint = paint * (1 + _crop(fields[1], dice) * dice.between(5, 35) / 100)[..., None]
        pixels += (paint - pixels) * mask
    if dice.chance(70):  # most places are greyer than clothes
        grey = pixels.mean(-1, keepdims=True)
        pixels = grey + (pixels - grey) * (dice.between(5, 80) / 100)
    return pixels


def _photograph(pixels: np.ndarray, dice: Dice, size: tuple[int, int]) -> Image.Image:
    """Camera and detector: exposure, cast, saturation, focus, noise, and a loose box."""
    gains = [100 + dice.between(-12, 12) for _ in range(3)]
    pixels = pixels * (np.array(gains, np.float32) * dice.between(80, 122) / 10_000)
    grey = pixels.mean(-1, keepdims=True)
    pixels = grey + (pixels - grey) * (dice.between(65, 125) / 100)
    image = Image.fromarray((np.clip(pixels, 0, 1) * 255).astype(np.uint8))
    jitter = [dice.between(-9, 9) for _ in range(4)]
    box = [14 + jitter[0], 6 + jitter[1], 114 + jitter[2], 249 + jitter[3]]
    if dice.chance(15):  # cut off below, above or at a side
        side = dice.pick("3*4 1 0 2")
        box[int(side)] += dice.between(16, 70 if side in "13" else 30) * (1 if side in "01" else -1)
    if dice.chance(15):  # too large a box
        box = [0, 0, _SIZE[1], _SIZE[0]]
    left, top, right, bottom = box
    image = image.resize(
        size[::-1], Image.Resampling.BOX, (max(left, 0), max(top, 0), min(right, 128), min(bottom, 256))
    )
    grain = _noise(dice, size)
    return Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))


def _noise(dice: Dice, size: tuple[int, int]) -> np.ndarray:
    coloured = dice.bytes(*size, 3).astype(np.int16) - dice.bytes(*size, 1)
    return coloured * dice.roll(9) // 128
