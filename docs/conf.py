"Sphinx settings of the site without Quarto: `make site` (scripts/bridge.py makes the pages)"
import sys
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent/'scripts'))
from links import addresses, settings

cfg = settings()
project, release, copyright = cfg['lib_name'], cfg['version'], cfg['copyright']
repository, html_baseurl = addresses(cfg['repository'])
extensions = ['myst_nb', 'sphinx_copybutton']

nb_execution_mode = 'off'
nb_render_markdown_format = 'myst'
nb_mime_priority_overrides = [('html', 'text/markdown', 3)]
nb_code_prompt_show = 'Show the code'
nb_code_prompt_hide = 'Hide the code'
myst_enable_extensions = ['dollarmath', 'amsmath', 'colon_fence', 'attrs_inline', 'attrs_block']
myst_heading_anchors = 4
myst_heading_slug_func = 'bridge.anchor'
smartquotes = False  # else --out becomes a dash
mathjax_path = 'tex-svg.js'

html_theme = 'furo'
html_title = project
html_static_path = [str(here/'static'), str(here/'node_modules/mathjax/es5/tex-svg.js')]
html_extra_path = [str(here.parent/'build/pages/llms.txt')]
html_css_files = ['site.css']
html_favicon = str(here.parent/'nbs/style/favicon.svg')
html_use_index = False
html_copy_source = False
html_show_sphinx = False
html_theme_options = {'source_repository': repository, 'top_of_page_buttons': []}


def setup(app):
    "Captions of the sidebar are headings of no level, which readers of screens cannot place"
    def place(app, page, template, context, doctree):
        tree, role = context.get('furo_navigation_tree', ''), 'role="heading"'
        context['furo_navigation_tree'] = tree.replace(role, f'{role} aria-level="2"')
    app.connect('html-page-context', place, priority=900)
