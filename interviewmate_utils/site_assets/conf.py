"""Sphinx settings of the report site; `site.build` adds the title and the comparison figure. Nothing may need a network."""

extensions = ["myst_nb"]
html_theme = "furo"
html_css_files = ["custom.css"]
html_copy_source = False
html_show_copyright = False
html_show_search_summary = False  # it fetches pages, which browsers refuse for files
html_use_index = False
mathjax_path = "not-included.js"  # the default is a CDN; formulas stay as typed
nb_code_prompt_show = "Show code"
nb_code_prompt_hide = "Hide code"
nb_execution_mode = "off"
nb_ipywidgets_js = {}
nb_merge_streams = True
smartquotes = False  # would turn `--option` in prose into a dash
