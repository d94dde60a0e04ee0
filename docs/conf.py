"""Sphinx: MyST pages, furo's looks, API from docstrings. Needs no network."""

from importlib.metadata import version as installed_version

project = "lightning-ft"
author = "The lightning-ft authors"
project_copyright = author
version = release = installed_version("lightning-ft")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]
nitpicky = False

html_theme = "furo"
html_title = f"lightning-ft {release}"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autoclass_content = "class"
autodoc_class_signature = "mixed"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False

# the button copies what one types, not the prompt, nor the output
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_line_continuation_character = "\\"
