"""What the walkthroughs teach with: one scale of heat, sliders whole in themselves, checks that never raise."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from bidir.data.overlay import draw_overlay
from bidir.teach import check, heat, panels, picture, slider

GREY = np.full((8, 12, 3), 128, np.uint8)


@pytest.fixture
def axis():
    figure, axis = plt.subplots()
    yield axis
    plt.close(figure)


def test_heat_covers_the_image_whatever_the_size_of_the_map(axis):
    drawn = heat(axis, GREY, torch.rand(2, 3))
    assert drawn.get_extent() == axis.images[0].get_extent() == [-0.5, 11.5, 7.5, -0.5]


def test_heat_has_one_scale_for_all_maps(axis):
    low, high = heat(axis, GREY, np.full((2, 3), 0.2)), heat(axis, GREY, np.full((2, 3), 0.8))
    assert low.get_clim() == high.get_clim() == (0, 1)
    assert heat(axis, GREY, np.zeros((2, 3)), limits=(-2, 2)).get_clim() == (-2, 2)


def test_heat_is_read_by_lightness_alone(axis):
    """Larger values are lighter throughout, also to who does not tell red from green (Machado 2009, severity 1)."""
    colours = heat(axis, GREY, np.zeros((2, 3))).cmap(np.linspace(0, 1, 50))[:, :3]
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    blind = np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]])
    for seen in (linear, linear @ blind.T):
        assert (np.diff(seen @ [0.2126, 0.7152, 0.0722]) > 0).all()


@pytest.mark.parametrize("image", [GREY, torch.full((3, 8, 12), 128.0), GREY.astype(float)])
def test_pictures_come_as_arrays_or_as_tensors(image):
    assert (picture(image) == GREY).all()
    assert picture(image).dtype == np.uint8


def test_panels_draw_what_they_are_given():
    mask = np.zeros((8, 12), np.int64)
    mask[2:6, 2:6] = 3
    shown = {"photo": GREY, "map": np.full((2, 3), 0.5), "mask": mask, "curve": lambda axis: axis.plot([0, 1], [2, 3])}
    figure = panels(shown, GREY)
    photo, heated, overlay, curve = figure.axes[:4]
    assert [one.get_title() for one in figure.axes[:4]] == [*shown]
    assert (photo.images[0].get_array() == GREY).all()
    assert (heated.images[1].get_array() == 0.5).all()
    assert (overlay.images[0].get_array() == draw_overlay(GREY, mask.astype(np.uint8), ())).all()
    assert curve.lines[0].get_ydata().tolist() == [2, 3]
    assert len(figure.axes) == 5  # the fifth: one colour bar
    assert not plt.get_fignums()


def test_panels_in_rows():
    figure = panels({str(k): GREY for k in range(5)}, rows=2)
    assert [len(axis.images) for axis in figure.axes] == [1, 1, 1, 1, 1, 0]


class Page(HTMLParser):
    """The tags of a page, with their attributes, and the text within scripts."""

    def __init__(self, text):
        super().__init__()
        self.found, self.script, self.inside = [], "", False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self.inside = tag == "script"

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        self.script += data if self.inside else ""

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def level(frame):
    """The grey of a frame's PNG."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(frame))).convert("L")).mean().round()


def test_a_slider_has_one_frame_per_value_and_shows_the_first():
    page = Page(slider(lambda grey: np.full((4, 4, 3), grey, np.uint8), grey=[10, 90, 200]).data)
    data = json.loads(page.script)
    assert [level(frame) for frame in data["frames"]] == [10, 90, 200]
    assert data["values"] == {"grey": ["10", "90", "200"]}
    (image,), (knob,) = page.all("img"), page.all("input")
    assert image["src"] == "data:image/png;base64," + data["frames"][0]
    assert (knob["type"], knob["min"], knob["max"], knob["value"]) == ("range", "0", "2", "0")


def test_two_sliders_have_a_frame_for_each_pair_the_last_name_fastest():
    page = Page(slider(lambda a, b: np.full((4, 4, 3), 10 * a + b, np.uint8), a=(1, 2, 3), b=(0, 5)).data)
    assert [level(frame) for frame in json.loads(page.script)["frames"]] == [10, 15, 20, 25, 30, 35]
    assert [knob["name"] for knob in page.all("input")] == ["a", "b"]
    assert [knob["max"] for knob in page.all("input")] == ["2", "1"]


def test_a_slider_asks_nobody_for_anything():
    page = slider(lambda k: panels({"map": np.full((2, 2), k)}, GREY), k=[0.0, 0.5]).data
    assert not re.search(r"https?:|//|@import|require\(|fetch\(", re.sub(r"base64,[^\"]+|\"frames\".*?\]", "", page))
    assert {"src", "href"} & {name for _, attributes in Page(page).found for name in attributes} == {"src"}
    assert all(attributes["src"].startswith("data:") for attributes in Page(page).all("img"))


def test_a_slider_takes_values_that_html_would_read():
    page = Page(slider(lambda word: GREY, word=["</script><b>", "a & b"]).data)
    assert json.loads(page.script)["values"]["word"] == ["</script><b>", "a & b"]
    assert not page.all("b")


def test_frames_of_figures_are_of_one_size_whatever_is_drawn():
    with plt.rc_context({"savefig.bbox": "tight"}):
        page = Page(slider(lambda size: panels({"x" * size: GREY}), size=[1, 60]).data)
    sizes = {Image.open(io.BytesIO(base64.b64decode(frame))).size for frame in json.loads(page.script)["frames"]}
    assert len(sizes) == 1


HALF = np.array([0.5, 0.25])


@pytest.mark.parametrize(
    ("answer", "expected", "said"),
    [
        (0.5, lambda: 0.5, "right."),
        (0.5004, lambda: 0.5, "right."),
        (torch.tensor([0.5, 0.25]), lambda: HALF, "right."),
        ("b ", lambda: "B", "right."),
        (..., lambda: 0.5, "no answer yet. Hint: look again"),
        (None, lambda: 0.5, "no answer yet. Hint: look again"),
        (0.6, lambda: 0.5, "not yet, 0.6 is not it. Hint: look again"),
        ("A", lambda: "B", "not yet, it is not 'A'. Hint: look again"),
        ([0.5, 0.75], lambda: HALF, "not yet, some value is off by 0.5. Hint: look again"),
        ([0.5], lambda: HALF, "not yet, its shape is (1,), not (2,). Hint: look again"),
        (float("nan"), lambda: 0.5, "not yet, nan is not it. Hint: look again"),
        ("half", lambda: 0.5, "not yet, this cannot be compared"),
        ([[1], [1, 2]], lambda: HALF, "not yet, this cannot be compared"),
        (0.5, lambda: 1 / 0, "not yet, this cannot be compared (ZeroDivisionError"),
        (len, lambda: 0.5, "not yet, this cannot be compared"),
    ],
)
def test_a_check_says_what_is_wrong_and_never_raises(capsys, answer, expected, said):
    check("half", answer, expected, "look again")
    assert capsys.readouterr().out.startswith(f"half: {said}")


def test_a_hint_may_depend_on_the_answer(capsys):
    for answer in (1, 3, ..., 2):
        check("two", answer, lambda: 2, lambda given, right: "go up" if given < right else "go down")
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(". ")[2] for line in lines] == ["Hint: go up", "Hint: go down", "two: no answer yet.",
                                                            "two: right."]  # fmt: skip


def test_the_expected_answer_is_computed_when_it_is_asked_for(capsys):
    state = {"right": 1}
    for state["right"] in (1, 2):
        check("now", 2, lambda: state["right"], "later")
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()] == ["now: not yet", "now: right."]
