"""The method as one picture: both branches, what each teaches the other, what each computes with the other's maps."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

HERE = Path(__file__).parent
BLUE, RED, GREY, INK = "#0072B2", "#D55E00", "#8A8A8A", "#222222"  # Branch-C, Branch-S (Okabe-Ito), passes, losses
LINES = {"pass": (1.0, "-"), "teach": (2.8, "-"), "take part": (1.5, (0, (3.5, 1.8)))}  # width, dashes

DOWN, RIGHT = np.mgrid[0:1:240j, 0:1:240j]
HEAD = ((RIGHT - 0.25) / 0.15) ** 2 + ((DOWN - 0.36) / 0.15) ** 2 < 1
BODY = ((RIGHT - 0.56) / 0.31) ** 2 + ((DOWN - 0.57) / 0.19) ** 2 < 1
ANIMAL = HEAD | BODY | (np.minimum(abs(RIGHT - 0.41), abs(RIGHT - 0.72)) < 0.05) & (abs(DOWN - 0.75) < 0.15)
CAM = np.exp(-((RIGHT - 0.27) ** 2 + (DOWN - 0.38) ** 2) / 0.03)  # a classifier looks at the part that tells
ROUGH = ANIMAL & (DOWN < 0.78) | ((RIGHT - 0.77) ** 2 + (DOWN - 0.46) ** 2 < 0.014)
SURE = (HEAD & (DOWN > 0.3)) | (BODY & (abs(RIGHT - 0.52) < 0.2))
FIELD = np.where((DOWN > 0.55)[..., None], (0.62, 0.76, 0.52), (0.78, 0.88, 0.95))

PICTURES = [  # x, y, what it shows
    (0.9, 5.05, np.where(ANIMAL[..., None], (0.55, 0.40, 0.28), FIELD)),
    (14.1, 7.6, plt.cm.Blues(CAM)),
    (14.1, 4.05, plt.cm.Blues(np.where(ROUGH, 0.8, 0.12))),
    (10.1, 3.75, plt.cm.Oranges(np.where(SURE, 0.7, 0.1))),
    (6.3, 4.57, plt.cm.Blues(0.85 * CAM + 0.12)),
    (12.1, 3.75, plt.cm.Oranges(np.where(ANIMAL, 0.1, 0.6))),
]
ROOMS = [(3.5, 4.9, 3.0, 3.9, "#F3F3F3"), (10.4, 8.25, 10.0, 2.75, "#E8F1F8"), (10.4, 1.4, 10.0, 2.75, "#FBEEE5")]
BOXES = [  # x, y, width, height, text, colour
    *((1.75 + 0.7 * k, 5.05, 0.5, (2.5, 1.9, 1.3, 1.3)[k - 1], f"$f_{k}$", GREY) for k in (1, 2, 3, 4)),
    (6.75, 8.95, 1.8, 0.95, "global max\npooling", BLUE),
    (8.65, 8.22, 0.9, 2.2, "1×1\nconv\n$W$", BLUE),
    (10.1, 8.95, 0.9, 0.75, "$z$", BLUE),
    (10.1, 7.5, 0.9, 0.75, "$P_c$", BLUE),
    (11.75, 8.95, 1.1, 0.75, "$L_{cls}$", INK),
    (14.1, 5.75, 1.3, 0.75, "BSP", BLUE),
    (14.1, 1.4, 1.2, 0.75, "$L_{c2s}$", INK),
    (10.1, 5.6, 1.2, 0.75, "$L_{s2c}$", INK),
    (8.2, 1.4, 1.8, 0.95, "MLP\ndecoder", RED),
    (10.1, 1.4, 0.9, 0.75, "$P_s$", RED),
]
PASSES = [  # corner points, from start to tip
    [(1.55, 5.05), (2.0, 5.05)], [(4.55, 5.7), (4.55, 8.95), (5.85, 8.95)], [(4.55, 7.5), (8.2, 7.5)],
    [(4.55, 2.95), (4.55, 1.4), (6.03, 1.4)], [(7.65, 8.95), (8.2, 8.95)], [(9.1, 8.95), (9.65, 8.95)],
    [(9.1, 7.5), (9.65, 7.5)], [(10.55, 8.95), (11.2, 8.95)], [(12.75, 8.95), (12.3, 8.95)],
    [(10.55, 7.5), (13.48, 7.5)], [(6.55, 1.4), (7.3, 1.4)], [(9.1, 1.4), (9.65, 1.4)],
]  # fmt: skip
C2S = [*([(14.1, a), (14.1, b)] for a, b in ((6.98, 6.13), (5.38, 4.68), (3.43, 1.78))), [(13.5, 1.25), (10.55, 1.25)]]
S2C = [[(10.1, start), (10.1, tip)] for start, tip in ((1.78, 3.13), (4.38, 5.22), (5.98, 7.12))]
OBJECTS = [[(9.8, 7.12), (9.8, 6.5), (6.3, 6.5), (6.3, 5.2)], [(6.3, 3.95), (6.3, 1.66)]]
BACKGROUND = [[(10.55, 1.58), (12.1, 1.58), (12.1, 3.13)], [(12.1, 4.38), (12.1, 5.75), (13.45, 5.75)]]
WORDS = [  # x, y, text
    (0.9, 4.15, "image"), (3.5, 3.28, "encoder"), (4.3, 7.15, "$f_4$"), (3.75, 2.35, "$f_1, …, f_4$"),
    (14.1, 8.48, "CAM"), (13.2, 8.95, "image\nlabels"), (15.0, 4.05, "$Y_c$"), (9.2, 3.75, "$Y_s$"),
    (7.45, 4.57, "object\nmap"), (11.1, 2.25, "background\nmap"), (6.7, 0.6, "$f_k$ × object map"),
]  # fmt: skip
NAMES = [(14.5, 9.35, "Branch-C", BLUE), (14.5, 0.4, "Branch-S", RED), (13.4, 2.85, "C → S", BLUE),
         (10.75, 6.5, "S → C", RED)]  # fmt: skip
LEGEND = [("pass", "forward pass", (GREY, GREY)), ("teach", "supervision", (BLUE, RED)),
          ("take part", "interaction", (BLUE, RED))]  # fmt: skip


def draw_method() -> Figure:
    """Encoder on the left, Branch-C above, Branch-S below, and between them what they give each other."""
    plt.style.use(HERE.parent / "bidir/study/style.mplstyle")
    figure = plt.figure(figsize=(7.8, 4.95), layout="none")
    axis = figure.add_axes((0, 0, 1, 1), xlim=(0, 15.6), ylim=(0, 9.9))
    axis.axis("off")
    for x, y, width, height, colour in ROOMS:
        _box(axis, x, y, width, height, fc=colour, lw=0, zorder=1)
    for x, y, width, height, text, colour in BOXES:
        _box(axis, x, y, width, height, fc="white", ec=colour, lw=1.2, zorder=2)
        axis.text(x, y, text, ha="center", va="center", size=9, linespacing=1.1, zorder=4)
    for x, y, values in PICTURES:
        axis.imshow(values, extent=(x - 0.62, x + 0.62, y - 0.62, y + 0.62), aspect="auto", zorder=3)
        axis.add_patch(plt.Rectangle((x - 0.62, y - 0.62), 1.24, 1.24, fill=False, ec=INK, lw=0.7, zorder=4))
    drawn = [(PASSES, GREY, "pass"), (C2S, BLUE, "teach"), (S2C, RED, "teach")]
    for ways, colour, kind in [*drawn, (OBJECTS, BLUE, "take part"), (BACKGROUND, RED, "take part")]:
        for points in ways:
            _arrow(axis, points, colour, kind)
    axis.plot(6.3, 1.4, "o", ms=13, mfc="white", mec=RED, mew=1.2, zorder=3)
    axis.plot(6.3, 1.4, "x", ms=5.5, mec=INK, mew=1.2, zorder=4)
    for x, y, text, *colour in WORDS + NAMES:
        look = {"color": colour[0], "weight": "bold"} if colour else {}
        axis.text(x, y, text, ha="center", va="center", size=9, **look)
    for row, (kind, text, colours) in enumerate(LEGEND):
        for part, colour in enumerate(colours):
            (width, dashes), x = LINES[kind], 0.3 + 0.7 * part
            axis.plot((x, x + 0.7), (9.35 - 0.55 * row,) * 2, color=colour, lw=width, ls=dashes, solid_capstyle="butt")
        axis.text(1.95, 9.35 - 0.55 * row, text, size=9, va="center")
    return figure


def _box(axis: Axes, x: float, y: float, width: float, height: float, **look: object) -> None:
    shape = "round,pad=0,rounding_size=0.15"
    axis.add_patch(FancyBboxPatch((x - width / 2, y - height / 2), width, height, shape, **look))


def _arrow(axis: Axes, points: list[tuple[float, float]], colour: str, kind: str) -> None:
    (width, dashes), before, tip = LINES[kind], *np.array(points[-2:])
    way = (tip - before) / np.linalg.norm(tip - before)
    line = np.array([*points[:-1], tip - 0.15 * way])  # ends inside the head
    axis.plot(*line.T, color=colour, lw=width, ls=dashes, zorder=2, solid_capstyle="butt")
    head = {"arrowstyle": "-|>", "color": colour, "lw": 0, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 9 + 2 * width}
    axis.annotate("", tip, tip - 0.3 * way, arrowprops=head, zorder=3)


if __name__ == "__main__":
    draw_method().savefig(HERE / "method.png", dpi=200)
