"""Progress and interruption as a person sees them, at a terminal and in a notebook."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


class _Line:
    """A file for tqdm: one line of a notebook's output, replaced at each writing; kept in the executed notebook too."""

    def __init__(self) -> None:
        from IPython.display import display

        self.shown = display({"text/plain": ""}, raw=True, display_id=True)

    def write(self, text: str) -> None:
        if text.strip():
            self.shown.update({"text/plain": text.strip()}, raw=True)

    def flush(self) -> None:
        """Nothing is held back."""


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    return hasattr(sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None, "kernel")


def bar(items: Iterable[Any], name: str, total: int | None = None, hidden: bool = False, **options: Any) -> tqdm:
    """``items`` with a progress bar: tqdm's, in a notebook as plain output in place of a red box of errors."""
    place = {"file": _Line(), "ncols": 100} if in_notebook() and not hidden else {}
    return tqdm(items, name, total, disable=hidden, mininterval=1, **place, **options)


class Stopped(KeyboardInterrupt):
    """Ctrl-C, or a notebook's stop button, with what to do next in place of a traceback."""

    def _render_traceback_(self) -> list[str]:  # what IPython shows
        return [str(self)]
