"""The documentation as a site: `make docs`."""

from importlib import metadata

project, author, copyright = "covidnet3d", "The covidnet3d contributors", "the covidnet3d contributors, Apache-2.0"
release = metadata.version("covidnet3d")
extensions = ["myst_parser"]
myst_heading_anchors = 3
exclude_patterns = ["generate", "static"]
nitpicky = True
suppress_warnings = ["misc.highlighting_failure"]  # a language that colours nothing is no fault of a page

html_theme = "furo"
html_static_path, html_css_files = ["static"], ["site.css"]
html_title = "covidnet3d"
html_show_sphinx = False
html_copy_source = False
