"""Drawing for ``scenes``: creatures that share a body and differ in one part, and their habitats."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw

Point = tuple[float, float]
Colour = tuple[int, int, int]

# name -> (own colour, habitat); the part that tells a creature apart is drawn by _part
CREATURES: dict[str, tuple[Colour, str]] = {
    "hare": ((176, 148, 120), "meadow"), "stag": ((150, 92, 52), "forest"), "lion": ((216, 172, 96), "savanna"),
    "ram": ((226, 220, 206), "snow"), "elephant": ((142, 144, 156), "shore"), "rhino": ((118, 112, 104), "desert"),
}  # fmt: skip
COATS: tuple[Colour, ...] = ((172, 128, 84), (140, 132, 126), (206, 186, 152), (112, 88, 70), (190, 154, 118))

# habitat -> sky top, sky bottom, ground far, ground near, what grows there
HABITATS: dict[str, tuple[Colour, Colour, Colour, Colour, str]] = {
    "meadow": ((120, 180, 235), (205, 230, 245), (126, 176, 84), (84, 140, 56), "flowers"),
    "forest": ((150, 185, 180), (190, 212, 190), (78, 104, 62), (52, 76, 44), "firs"),
    "savanna": ((240, 196, 130), (250, 226, 176), (202, 172, 92), (170, 134, 66), "acacias"),
    "snow": ((170, 195, 220), (222, 232, 242), (228, 236, 244), (246, 249, 252), "snowflakes"),
    "shore": ((110, 176, 222), (188, 224, 238), (72, 150, 180), (226, 206, 158), "waves"),
    "desert": ((236, 170, 120), (248, 214, 170), (220, 160, 98), (198, 130, 74), "cacti"),
}


def draw_habitat(name: str, size: int, random: np.random.Generator) -> tuple[np.ndarray, float]:
    """A habitat (size, size, 3) float in 0..255 and the height of its horizon as a fraction."""
    sky_top, sky_low, far, near, growth = HABITATS[name]
    horizon, rows = random.uniform(0.3, 0.48), np.linspace(0, 1, size)[:, None, None]
    sky = _blend(sky_top, sky_low, np.clip(rows / horizon, 0, 1))
    ground = _blend(far, near, np.clip((rows - horizon) / (1 - horizon), 0, 1) ** 0.7)
    pixels = np.where(rows < horizon, sky, ground).repeat(size, 1)
    coarse = random.normal(0, 1, (size // 8, size // 8))
    cloud = np.array(Image.fromarray(coarse.astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC))
    pixels += (cloud * np.where(rows[..., 0] < horizon, 4, 10))[..., None]
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    draw, x = ImageDraw.Draw(image), np.linspace(0, 1, 30)
    waves = [random.uniform(0.01, 0.035) * np.sin(2 * np.pi * (f * x + random.random())) for f in (1.3, 2.7)]
    hills = zip(x * size, (horizon - 0.04 + sum(waves)) * size, strict=True)
    draw.polygon([(0, horizon * size), *hills, (size, horizon * size)], fill=_shade(far, 0.86))
    for _ in range(int(random.integers(9, 16))):
        y = random.uniform(horizon, 1) if growth in ("flowers", "waves") else horizon + abs(random.normal(0, 0.12))
        _grow(draw, growth, random.uniform(0, 1) * size, y * size, size * (0.04 + 0.12 * (y - horizon)), random)
    light = np.asarray(image, dtype=np.float32) * random.uniform(0.85, 1.1)
    return light + random.normal(0, 5, (size, size, 1)), horizon


def draw_creature(
    name: str, size: int, centre: Point, length: float, part_size: float, similarity: float, random: np.random.Generator
) -> np.ndarray:
    """A creature on a transparent canvas (size, size, 4) float in 0..255.
    ``centre`` and body ``length`` in pixels; ``part_size`` scales the part only this class has;
    ``similarity`` 1 draws the coat from colours all classes share, 0 from the class's own."""
    own, coat = np.array(CREATURES[name][0]), np.array(COATS[random.integers(len(COATS))])
    tint = own + similarity * (coat - own) + random.normal(0, 12) + random.normal(0, 3, 3)
    colour = tuple(np.clip(tint, 20, 250).astype(int).tolist())
    layer = Image.new("RGBA", (size, size), (*colour, 0))
    draw = ImageDraw.Draw(layer)
    facing, tilt = (1 if random.random() < 0.5 else -1), random.normal(0, 0.06)
    cos, sin = np.cos(tilt), np.sin(tilt)

    def shape(points: np.ndarray | list[Point], shade: float | Colour = 1.0) -> None:
        x, y = np.array(points).T * length * [[facing], [1]]
        placed = zip(centre[0] + x * cos - y * sin, centre[1] + x * sin + y * cos, strict=True)
        fill = _shade(colour, shade) if isinstance(shade, float) else shade
        draw.polygon(list(placed), fill=(*fill, 255))

    _body(shape, random)
    head = np.array([0.62 + random.normal(0, 0.015), -0.36 + random.normal(0, 0.05)])
    _part(name, shape, head, part_size, behind=True)
    shape(_oval(head, 0.17, 0.115, 0.35))
    shape(_oval(head + (0.13, 0.055), 0.075, 0.06, 0.3), 0.88)
    shape(_oval(head + (0.035, -0.035), 0.02, 0.02), (24, 20, 20))
    _part(name, shape, head, part_size, behind=False)
    pixels = np.asarray(layer, dtype=np.float32).copy()
    rows = (np.arange(size)[:, None, None] - centre[1]) / length
    pixels[..., :3] *= np.clip(1.06 - 0.28 * rows, 0.72, 1.18) * (1 + random.normal(0, 0.05, (size, size, 1)))
    return pixels


def _body(shape: Callable[..., None], random: np.random.Generator) -> None:
    """The body every creature shares: four legs, trunk, neck, tail."""
    stride, leg = random.uniform(0.0, 0.07), random.uniform(0.36, 0.46)
    for x, side, shade in ((-0.3, 1, 0.7), (0.3, -1, 0.7), (-0.36, -1, 0.86), (0.36, 1, 0.86)):
        foot = x + side * stride
        shape([(x - 0.065, 0.0), (x + 0.065, 0.0), (foot + 0.04, leg), (foot - 0.045, leg)], shade)
        shape([(foot - 0.045, leg - 0.045), (foot + 0.04, leg - 0.045), (foot + 0.05, leg), (foot - 0.045, leg)], 0.45)
    shape([(-0.46, -0.12), (-0.62, 0.02), (-0.64, 0.2), (-0.6, 0.2), (-0.57, 0.05), (-0.44, 0.0)], 0.78)
    shape(_oval((0, 0), 0.5, 0.21))
    shape(_oval((0.02, 0.1), 0.4, 0.1), 0.92)
    shape([(0.22, -0.12), (0.47, 0.06), (0.7, -0.28), (0.54, -0.44)])


def _part(name: str, shape: Callable[..., None], head: np.ndarray, k: float, behind: bool) -> None:
    """The one part that tells ``name`` from the others, at the head and ``k`` times its normal size."""
    crown, cream, dark = head + (-0.06, -0.09), (238, 226, 196), (70, 56, 44)
    if name == "hare" and behind:
        for lean in (-0.16, 0.0):
            middle = crown + k * np.array([lean * 0.6 - 0.02, -0.17])
            shape(_oval(middle, 0.2 * k, 0.05 * k, 1.45 - lean), 0.9)
            shape(_oval(middle, 0.14 * k, 0.024 * k, 1.45 - lean), (226, 160, 160))
    elif name == "stag" and behind:
        for lean in (-0.12, 0.08):
            tip = crown + k * np.array([lean, -0.34])
            shape(_bar(crown, tip, 0.022 * k), dark)
            for t, reach in ((0.45, 0.13), (0.72, 0.1)):
                fork = crown + t * (tip - crown)
                shape(_bar(fork, fork + k * np.array([reach, -0.1]), 0.018 * k), dark)
                shape(_bar(fork, fork + k * np.array([-reach, -0.07]), 0.018 * k), dark)
    elif name == "lion" and behind:
        angle, radius = np.linspace(0, 2 * np.pi, 41)[:-1], 0.235 * k * (1 + 0.12 * (np.arange(40) % 2))
        shape(head + (-0.05, 0.02) + np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1), (122, 66, 28))
    elif name == "ram" and not behind:
        turn, reach = np.linspace(-1.9, 3.6, 40), k * np.linspace(0.16, 0.05, 40)
        spiral = crown + k * np.array([-0.04, 0.1]) + np.stack([reach * np.cos(-turn), reach * np.sin(-turn)], 1)
        for (a, b), w in zip(pairwise(spiral), np.linspace(0.045, 0.015, 39), strict=True):
            shape(_bar(a, b, w * k), (150, 118, 78))
        shape(_oval(spiral[18], 0.02 * k, 0.02 * k), (112, 84, 52))
    elif name == "elephant" and not behind:
        trunk = head + (0.16, 0.06) + k * np.array([(0, 0), (0.07, 0.12), (0.08, 0.26), (0.05, 0.36), (0.12, 0.4)])
        for (a, b), w in zip(pairwise(trunk), (0.05, 0.045, 0.036, 0.028), strict=True):
            shape(_bar(a, b, w * k), 0.84)
        shape(_oval(head + k * np.array([-0.13, 0.02]), 0.17 * k, 0.13 * k, 1.3), 0.76)
    elif name == "rhino" and not behind:
        nose = head + (0.16, 0.0)
        shape(nose + k * np.array([(-0.05, 0.0), (0.05, 0.03), (0.12, -0.1), (0.13, -0.25), (0.03, -0.13)]), cream)
        shape(nose + k * np.array([(-0.12, -0.05), (-0.05, -0.03), (-0.05, -0.14)]), cream)


def _grow(draw: ImageDraw.ImageDraw, kind: str, x: float, y: float, s: float, random: np.random.Generator) -> None:
    """One plant (or wave, or drift of snow) of size ``s`` with its foot at (x, y)."""
    tone = random.uniform(0.8, 1.1)
    if kind == "flowers":
        colour = ((232, 84, 96), (250, 214, 80), (240, 240, 250), (176, 110, 210))[random.integers(4)]
        draw.line((x, y, x, y - s * 0.7), fill=(60, 110, 50), width=2)
        draw.ellipse((x - s * 0.25, y - s, x + s * 0.25, y - s * 0.5), fill=colour)
    elif kind == "firs":
        draw.rectangle((x - s * 0.25, y - s, x + s * 0.25, y), fill=(82, 60, 42))
        for level in (1.0, 2.2, 3.4):
            wide, top = s * (2.1 - 0.4 * level), y - s * level
            draw.polygon([(x - wide, top), (x + wide, top), (x, top - 2.4 * s)], fill=_shade((44, 84, 54), tone))
    elif kind == "acacias":
        draw.line((x, y, x + s * 0.3, y - 2.4 * s), fill=(92, 66, 42), width=max(2, int(s * 0.25)))
        draw.ellipse((x - 2 * s, y - 3.2 * s, x + 2.4 * s, y - 2.2 * s), fill=_shade((112, 128, 58), tone))
    elif kind == "snowflakes":
        draw.ellipse((x - 2 * s, y - 0.35 * s, x + 2 * s, y + 0.4 * s), fill=_shade((236, 242, 250), min(tone, 1.0)))
        flake_x, flake_y = random.uniform(0, 1, 2) * (draw.im.size[0], y)
        draw.ellipse((flake_x - 3, flake_y - 3, flake_x + 3, flake_y + 3), fill=(255, 255, 255))
    elif kind == "waves":
        draw.arc((x - 2 * s, y - 0.5 * s, x + 2 * s, y + s), 200, 340, fill=(236, 246, 250), width=3)
    elif kind == "cacti":
        fill, w = _shade((76, 122, 70), tone), s * 0.28
        draw.rounded_rectangle((x - w, y - 2.6 * s, x + w, y), w, fill=fill)
        draw.rounded_rectangle((x - 4 * w, y - 1.9 * s, x - 2.6 * w, y - s), w * 0.7, fill=fill)
        draw.rounded_rectangle((x + 2.6 * w, y - 2.2 * s, x + 4 * w, y - 1.2 * s), w * 0.7, fill=fill)
        for arm in ((x - 4 * w, y - 1.2 * s, x, y - s), (x, y - 1.4 * s, x + 4 * w, y - 1.2 * s)):
            draw.rectangle(arm, fill=fill)


def _oval(centre: Point | np.ndarray, a: float, b: float, turn: float = 0.0) -> np.ndarray:
    """Points of an ellipse with half axes a, b, turned by ``turn`` radians."""
    t = np.linspace(0, 2 * np.pi, 36)
    x, y = a * np.cos(t), b * np.sin(t)
    return np.array(centre) + np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], 1)


def _bar(start: np.ndarray, end: np.ndarray, half_width: float) -> np.ndarray:
    """A thick line as a polygon."""
    along = end - start
    across = half_width * np.array([-along[1], along[0]]) / np.hypot(*along)
    over = 0.2 * half_width * along / np.hypot(*along)
    return np.array([start - over + across, end + over + across, end + over - across, start - over - across])


def _blend(a: Colour, b: Colour, t: np.ndarray) -> np.ndarray:
    return np.array(a) * (1 - t) + np.array(b) * t


def _shade(colour: Colour, factor: float) -> Colour:
    return tuple(int(min(255, c * factor)) for c in colour)
