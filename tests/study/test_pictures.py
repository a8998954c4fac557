"""Pictures of masks: class names are text, whatever is in them."""

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from bidir.data.split import Split
from bidir.study.figures import use_style
from bidir.study.pictures import draw_masks


def test_a_class_name_with_dollars_is_no_formula(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    mask = np.zeros((64, 64), np.uint8)
    mask[10:50, 10:50] = 1
    split = Split(("$x_$$",), (tmp_path / "a.png",), np.array([[True]]), None, (0, 1))
    with plt.rc_context():
        use_style()
        figure = draw_masks(split, [0], {"$Y_c$": {0: mask}}, ["a$_b$ (50 %)"])
        figure.savefig(tmp_path / "figure.png")
    assert "$x_$$" in [text.get_text() for axis in figure.axes for text in axis.texts]
    plt.close(figure)
