"""What the walkthroughs teach with: maps as heat over an image, sliders that need no kernel, and answers checked."""

import base64
import html
import io
import itertools
import json
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from bidir.data.overlay import draw_overlay

MOVED = (  # what a slider does when it moves: the frame of all values together, and its own value in words
    "let box = this.closest('div'), data = JSON.parse(box.querySelector('script').textContent), at = [...box."
    "querySelectorAll('input')].reduce((k, i) => k * (+i.max + 1) + +i.value, 0); box.querySelector('img').src = 'data"
    ":image/png;base64,' + data.frames[at]; this.nextElementSibling.textContent = data.values[this.name][this.value]"
)


def heat(axis: Axes, image: Any, map: Any, limits: tuple[float, float] = (0, 1)) -> AxesImage:
    """Draw ``map`` (h, w), of any size, over ``image`` (H, W, 3) or (3, H, W) of 0..255, grey beneath it.
    One scale for all maps of the same ``limits``, clipped there. Returns what a colour bar needs."""
    below = axis.imshow(picture(image).mean(2), cmap="gray", vmin=0, vmax=255)
    axis.set(xticks=[], yticks=[])
    style = {"cmap": "cividis", "vmin": limits[0], "vmax": limits[1], "alpha": 0.6}  # read the same by the colour-blind
    return axis.imshow(_array(map), extent=below.get_extent(), **style)


def panels(shown: dict[str, Any], image: Any = None, limits: tuple[float, float] = (0, 1), rows: int = 1) -> Figure:
    """A figure with one panel per title, in ``rows``: a picture (H, W, 3) or (3, H, W) as it is; a map (h, w) of
    fractions as ``heat`` over ``image``; a mask (H, W) of whole numbers as overlay (255, ignored: hatched); a function
    of an axis draws there itself."""
    columns = -(-len(shown) // rows)
    figure, axes = plt.subplots(rows, columns, figsize=(1.9 * columns, 2.1 * rows), squeeze=False, layout="constrained")
    scale = None
    for axis, (title, value) in zip(axes.flat, shown.items(), strict=False):
        axis.set_title(title, fontsize=8, loc="center")
        if callable(value):
            value(axis)
            continue
        axis.axis("off")
        values = _array(value)
        if values.ndim == 3:
            axis.imshow(picture(values))
        elif values.dtype.kind == "f":
            scale = heat(axis, image, values, limits)
        else:
            axis.imshow(draw_overlay(picture(image), values.astype(np.uint8), names=()))
    for axis in axes.flat[len(shown) :]:
        axis.axis("off")
    if scale is not None:
        figure.set_figwidth(1.9 * columns + 0.7)
        figure.colorbar(scale, ax=axes, shrink=0.8, aspect=12 * rows)
    plt.close(figure)  # shown once, by who asked for it
    return figure


def slider(draw: Callable[..., Figure | np.ndarray], **values: Any) -> HTML:
    """One range input per name, and a frame, ``draw(name=value, ...)``, for each value or combination, drawn now: they
    move without a kernel and without a request; without script the first is shown. A frame is a figure or a picture
    (H, W, 3) uint8, which is shown twice as large. Keys move them too: JupyterLab is told to leave these alone."""
    options = {name: list(choices) for name, choices in values.items()}
    frames = [_png(draw(**dict(zip(options, one, strict=True)))) for one in itertools.product(*options.values())]
    words = {name: [f"{v:.4g}" if isinstance(v, float) else str(v) for v in chosen] for name, chosen in options.items()}
    data = json.dumps({"values": words, "frames": frames}).replace("<", "\\u003c")
    inputs = "".join(
        f'<label style="margin-right: 2em">{html.escape(name.replace("_", " "))} <input type="range" name="{name}" '
        f'min="0" max="{len(chosen) - 1}" value="0" oninput="{html.escape(MOVED)}" data-lm-suppress-shortcuts> '
        f"<output>{html.escape(chosen[0])}</output></label>"
        for name, chosen in words.items()
    )
    first = f'<img alt="drawn for the values above" style="max-width: 100%" src="data:image/png;base64,{frames[0]}">'
    return HTML(f'<div>{inputs}<br>{first}<script type="application/json">{data}</script></div>')


def check(name: str, answer: Any, expected: Callable[[], Any], hint: Any, tolerance: float = 1e-3) -> None:
    """Print whether ``answer`` is what ``expected()`` computes now, or how far it is and a hint; never raises.
    Numbers, arrays and tensors may differ by ``tolerance``, words by case. ``...`` and None are no answer yet.
    ``hint``: a sentence, or a function of the answer and of what was expected that returns one."""
    if answer is None or answer is ...:
        print(f"{name}: no answer yet." + (f" Hint: {hint}" if isinstance(hint, str) else ""))
        return
    try:
        wrong = _difference(answer, right := expected(), tolerance)
        said = hint if isinstance(hint, str) or not wrong else hint(answer, right)
        print(f"{name}: not yet, {wrong}. Hint: {said}" if wrong else f"{name}: right.")
    except Exception as error:  # a lesson runs on, whatever was answered
        print(f"{name}: not yet, this cannot be compared ({type(error).__name__}: {error}).")


def _difference(answer: Any, right: Any, tolerance: float) -> str:
    """What is wrong with an answer, without giving the right one away; "" if nothing is."""
    if isinstance(right, str):
        return "" if str(answer).strip().casefold() == right.casefold() else f"it is not {answer!r}"
    given, wanted = (_array(values).astype(float) for values in (answer, right))
    if given.shape != wanted.shape:
        return f"its shape is {given.shape}, not {wanted.shape}"
    if np.allclose(given, wanted, rtol=0, atol=tolerance, equal_nan=True):
        return ""
    return f"{answer} is not it" if given.ndim == 0 else f"some value is off by {np.abs(given - wanted).max():.3g}"


def picture(image: Any) -> np.ndarray:
    """(H, W, 3) or (3, H, W) of 0..255 -> (H, W, 3) uint8."""
    values = _array(image)
    return (values if values.shape[-1] == 3 else np.moveaxis(values, 0, 2)).round().clip(0, 255).astype(np.uint8)


def _array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _png(frame: Figure | np.ndarray) -> str:
    buffer = io.BytesIO()
    if isinstance(frame, Figure):
        with plt.rc_context({"savefig.bbox": None}):  # frames of one size
            frame.savefig(buffer, format="png", dpi=100)
        plt.close(frame)
    else:
        plt.imsave(buffer, np.repeat(np.repeat(picture(frame), 2, 0), 2, 1), format="png")
    return base64.b64encode(buffer.getvalue()).decode()
