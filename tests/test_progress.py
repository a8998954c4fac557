"""Progress in a notebook: one line of plain output, replaced in place, and none of it on standard error."""

import nbformat
from nbclient import NotebookClient

from bidir.progress import bar

CELLS = """
import time
from bidir.progress import Stopped, bar
for _ in bar(range(3), "three"): time.sleep(0.6)
raise Stopped("stopped at iteration 2; run again to go on")
"""


def test_a_notebook_shows_a_line_and_no_box_of_errors(tmp_path):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELLS)])
    NotebookClient(book, kernel_name="python3", allow_errors=True).execute()
    line, error = book.cells[0].outputs
    assert line.output_type == "display_data"
    assert "three: 100%" in line.data["text/plain"]
    assert error.traceback == ["stopped at iteration 2; run again to go on"]


def test_at_a_terminal_it_is_tqdms_own(capsys):
    assert list(bar(range(3), "three")) == [0, 1, 2]
    assert "three: 100%" in capsys.readouterr().err
    assert list(bar(range(3), "three", hidden=True)) == [0, 1, 2]
    assert not capsys.readouterr().err
