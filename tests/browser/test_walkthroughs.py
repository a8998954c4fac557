"""The sliders of walkthroughs, moved by hand: in JupyterLab, in a notebook executed elsewhere, in HTML; the book."""

from pathlib import Path

import pytest
from nbconvert import HTMLExporter

from bidir.study.notebooks import run_notebook

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("ignore::DeprecationWarning")]  # of the kernel
LESSON, SLIDERS = "95_is_it_better", 3
FIRST = 'img[alt="drawn for the values above"]'
READY = "image => image.complete && image.naturalWidth > 0"
BOOK = Path(__file__).parents[2] / "docs" / "_build" / "html"
PAGES = ("docs", "notebooks", "results", ".")
WIDER = """() => [...document.querySelectorAll('body *')]
    .filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1 && e.offsetParent)
    .map(e => e.tagName + ' ' + e.className).slice(0, 5)"""


def move(page):
    """Move each slider of a page to its last value and back, by its keys: how many there are, and those that do not
    change what is seen, picture and words."""
    knobs, stuck = page.locator("input[type=range]").all(), []
    for knob in knobs:
        picture, words = knob.locator("xpath=ancestor::div[1]").locator("img"), knob.locator("xpath=../output")
        seen = []
        for key in ("Home", "End", "Home"):
            knob.press(key)
            page.wait_for_function(READY, arg=picture.element_handle())
            seen.append((picture.screenshot(), words.inner_text()))
        first, second, back = seen
        if first[0] == second[0] or first[1] == second[1] or first != back:
            stuck.append(knob.get_attribute("name"))
    return len(knobs), stuck


@pytest.fixture
def open_file(chromium):
    """Opens a file of this machine in a window of a width, and lists what it asks for."""
    pages = []

    def opened(path, width=1280):
        page = chromium.new_page(viewport={"width": width, "height": 844})
        pages.append(page)
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        return page, asked

    yield opened
    for page in pages:
        page.close()


@pytest.fixture(scope="module")
def executed(project):
    """A lesson that needs no training, executed by papermill beside its source; nobody has trusted it."""
    path = project / "notebooks" / f"{LESSON}_executed.ipynb"
    run_notebook(LESSON, {}, path)
    return path


def test_sliders_move_in_a_live_notebook(open_notebook):
    book = open_notebook(LESSON)
    book.run_all()
    assert book.errors() == []
    assert move(book.page) == (SLIDERS, [])


def test_sliders_move_in_an_executed_notebook_once_it_is_trusted(open_page, executed):
    page = open_page(f"/lab/tree/notebooks/{executed.name}?reset")
    page.wait_for_function("window.jupyterapp?.shell.currentWidget?.context?.isReady", timeout=60_000, polling=200)
    first = page.locator(FIRST)
    first.first.wait_for()
    assert first.count() == SLIDERS
    assert all(picture.evaluate(READY) for picture in first.all())  # the first frame is there before
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:trust') }")
    page.click(".jp-Dialog .jp-mod-accept")
    page.wait_for_function(f"document.querySelectorAll('input[type=range][oninput]').length == {SLIDERS}")
    assert move(page) == (SLIDERS, [])


def test_sliders_move_in_exported_html_without_a_request(open_file, executed):
    path = executed.with_suffix(".html")
    path.write_text(HTMLExporter(require_js_url="", mathjax_url="").from_filename(executed)[0])
    page, asked = open_file(path)
    assert move(page) == (SLIDERS, [])
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]


@pytest.fixture(scope="module")
def book():
    """The book as ``make book`` left it; skips where it was not built."""
    if not (BOOK / "docs" / "index.html").is_file():
        pytest.skip("no book: make book")
    return BOOK


@pytest.mark.parametrize("width", [1280, 390])
def test_the_book_fits_its_window_and_asks_for_nothing(open_file, book, width):
    pages = sorted(path for folder in PAGES for path in (book / folder).glob("*.html"))
    assert len(pages) > 30
    for path in pages:
        page, asked = open_file(path, width)
        wide, shown = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert wide <= shown, (path.name, page.evaluate(WIDER))
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == [], path.name
        page.close()


@pytest.mark.parametrize("lesson", range(91, 96))
def test_every_slider_of_the_book_moves(open_file, book, lesson):
    (path,) = (book / "notebooks").glob(f"{lesson}_*.html")
    page, asked = open_file(path)
    count, stuck = move(page)
    assert count > 0
    assert stuck == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def test_the_book_is_searched_without_a_server(open_file, book):
    page, asked = open_file(book / "docs" / "index.html")
    page.keyboard.press("Control+k")
    page.keyboard.type("pseudo-label")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results li a")
    assert "From a blob to a pseudo-label" in page.inner_text("#search-results")
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
