"""Sphinx's settings of the book. Its source tree is assembled by shrinkbook.book; nothing here needs the network."""

project = "shrinkbook"
author = "The shrinkbook authors"
copyright = "the shrinkbook authors, Apache-2.0"
language = "en"

extensions = ["myst_nb", "sphinxcontrib.bibtex", "sphinx_copybutton", "sphinx.ext.mathjax"]
exclude_patterns = ["chapters.md", "citation.md", "counts.md", "words.md"]
nitpicky = True

nb_execution_mode = "off"
nb_merge_streams = True
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 2

bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "plain"
bibtex_reference_style = "author_year"
suppress_warnings: list[str] = []

numfig = True
math_number_all = False
mathjax_path = "mathjax/tex-svg.js"  # MathJax 3.2.2, one file with its fonts inside

html_theme = "sphinx_book_theme"
html_title = "shrinkbook"
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_show_sourcelink = False
html_last_updated_fmt = None
html_theme_options = {
    "navbar_persistent": [],  # else the theme shows a second search bar
    "use_download_button": True,
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "show_navbar_depth": 1,
    "footer_content_items": ["copyright.html"],
}
