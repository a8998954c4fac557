"""The book: documentation, walkthroughs and figures as a site that needs neither a server nor the network."""

from docutils.nodes import Element, SkipNode
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

project, author, copyright = "bidir", "the bidir authors", "MIT licence"
extensions = ["myst_nb", "sphinx.ext.autodoc"]
root_doc = "docs/index"  # sources are a copy of the project, so that notebooks and figures are where they are
include_patterns = ["*.md", "docs/*.md", "notebooks/*.ipynb", "results/README.md", "results/*/[ft]*s/*.md"]
html_theme, html_title, html_math_renderer = "sphinx_book_theme", "bidir", "mathml"
html_theme_options = {"use_download_button": False, "use_fullscreen_button": False, "show_navbar_depth": 1}
html_static_path, html_css_files, html_show_copyright, html_use_index = ["book.css"], ["book.css"], False, False
myst_enable_extensions, myst_heading_anchors = ["dollarmath", "amsmath"], 3
nb_execution_excludepatterns = [f"notebooks/{start}*" for start in (0, 1, 2, 30, 4, 5)]  # they need runs of one's own
nb_execution_mode, nb_execution_timeout, nb_execution_raise_on_error = "cache", 600, True
nb_output_stderr, nb_render_markdown_format = "remove", "myst"  # no progress bars; tables of Markdown as tables
nb_ipywidgets_js = {}  # sliders of the walkthroughs need none
suppress_warnings = ["toc.not_included"]  # tables and workbench notebooks: linked, in no table of contents
autodoc_typehints, autodoc_member_order = "none", "bysource"


def equation(translator: HTML5Translator, node: Element) -> None:
    """A node of mathematics as MathML; where it is wider than the page, it scrolls by itself."""
    block = node.tagname == "math_block"
    drawn = tex2mathml(node.astext(), as_block=block)
    translator.body.append(f'<div style="overflow-x: auto; margin: 1em 0">{drawn}</div>' if block else drawn)
    raise SkipNode


def setup(app: Sphinx) -> None:
    """Equations as MathML, which browsers draw by themselves, in place of a script from the network."""
    app.add_html_math_renderer("mathml", (equation, None), (equation, None))
