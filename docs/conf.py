"""The site of these pages, for Sphinx; scripts/docs builds it.

It knows which files are pages and how they look; what they say is in them, and the reference pages
of commands, settings, problems and HTTP calls are written by tools/reference.py.
"""

from __future__ import annotations

import sys
from importlib.metadata import version as installed_version
from pathlib import Path
from shutil import copytree

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / part) for part in ("client", "server", "shared")]

project = "craftbox"
release = version = installed_version("craftbox")
copyright = "the authors of craftbox, Apache-2.0"  # noqa: A001 - Sphinx's name

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_sitemap",
    "sphinxext.opengraph",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 4
# Nothing on a page has to be fetched from elsewhere, so that the site works without a network.
html_math_renderer = "mathml"
html_theme = "pydata_sphinx_theme"
html_title = "craftbox"
html_show_sourcelink = False
# The reference of Python lists its modules itself.
html_domain_indices = False
templates_path = ["_templates"]
# All pages in the left column, since there are too many for a bar at the top.
html_sidebars = {"**": ["all-pages.html"]}
html_theme_options = {
    "navbar_center": [],
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "show_toc_level": 2,
}
html_favicon = "../server/craft_server/console/static/icon.svg"
html_static_path = ["_static"]
html_css_files = ["site.css"]

# A sitemap has whole addresses: scripts/docs -D site_url=https://where-the-site-will-be/
site_url = "https://craftbox.example/"
sitemap_url_scheme = "{link}"
ogp_site_name = "craftbox"
ogp_site_url = ""
ogp_social_cards = {"enable": False}
# What a button copies is the command, without the note behind it.
copybutton_exclude = ".linenos, .c1"
copybutton_selector = ", ".join(
    f"div.highlight-{kind} pre" for kind in ("sh", "python", "js", "ts", "toml")
)

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
# Docstrings write names in single backquotes.
default_role = "code"


def _inline_math(writer: HTML5Translator, node: nodes.math) -> None:
    writer.body.append(tex2mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def _math_block(writer: HTML5Translator, node: nodes.math_block) -> None:
    # Whoever scrolls by keyboard has to reach an equation that is wider than the screen.
    equation = tex2mathml(node.astext(), as_block=True)
    writer.body.append(f'<div class="equation" tabindex="0">{equation}</div>')
    raise nodes.SkipNode


def _show_as_written(
    _app: Sphinx, what: str, _name: str, _of: object, _options: object, lines: list[str]
) -> None:
    """Marks what a module's docstring sets in columns as literal, as its readers see it."""
    if what != "module":
        return
    for number in reversed(range(1, len(lines))):
        if lines[number].startswith("    ") and not lines[number - 1]:
            lines[number:number] = ["::", ""]


def _add_leaderboard(app: Sphinx, failure: Exception | None) -> None:
    if failure is None:
        copytree(Path(app.srcdir, "leaderboard"), app.outdir / "leaderboard", dirs_exist_ok=True)


def setup(app: Sphinx) -> None:
    """Adds the leaderboard as it was built, and equations as MathML, which browsers draw."""
    app.connect("build-finished", _add_leaderboard)
    app.connect("autodoc-process-docstring", _show_as_written)
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(_inline_math, None),
        block_renderers=(_math_block, None),
    )
