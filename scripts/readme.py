#!/usr/bin/env python3
"""Write README.md from nbs/index.ipynb, without Quarto.

    python scripts/readme.py            # write
    python scripts/readme.py --check    # change nothing, exit 1 if README.md is not current
"""
import json
import re
import sys

from links import addresses, root, settings

source, target = root/'nbs'/'index.ipynb', root/'README.md'
note = '<!-- Generated from nbs/index.ipynb by `make readme`. Edit the notebook, not this file. -->'

def text(o): return ''.join(o) if isinstance(o, list) else o

def directives(src):
    "Split a cell into its `#| name` directives and the rest"
    lines = src.split('\n')
    n = next((i for i, l in enumerate(lines) if not l.startswith('#|')), len(lines))
    return {l[2:].strip() for l in lines[:n]}, '\n'.join(lines[n:]).strip()

def badges(cfg):
    repo, docs = addresses(cfg['repository'])
    tests, pages = (f'{repo}/actions/workflows/{name}.yml' for name in ('test', 'docs'))
    return f'[![tests]({tests}/badge.svg)]({tests})\n[![docs]({pages}/badge.svg)]({docs})'

def relocate(md):
    "Relative links and images of nbs/, seen from the top folder"
    md = re.sub(r'(\]\()(?!\w+:|#|/)(?:\./)?([^)\s]+)', r'\1nbs/\2', md)
    return re.sub(r'(src=")(?!\w+:|/)(?:\./)?([^"]+)', r'\1nbs/\2', md).replace('nbs/../', '')

def callouts(md):
    "Quarto's `::: {.callout-note}` boxes as block quotes"
    def quote(m): return '\n'.join(f'> {l}'.rstrip() for l in m[1].strip().split('\n'))
    return re.sub(r'^:::+ *\{\.callout[^}]*\}\n(.*?)\n:::+ *$', quote, md, flags=re.M | re.S)

def markdown(cell):
    found, src = directives(text(cell['source']))
    return '' if 'hide' in found else callouts(relocate(src))

def output(out):
    "A text or markdown output; no image: figures of the README are linked from a markdown cell"
    data = out.get('data', {})
    if 'text/markdown' in data: return relocate(text(data['text/markdown']).strip())
    is_image = any(k.startswith('image/') for k in data)
    if out['output_type'] == 'stream': plain = text(out['text']) if out['name'] == 'stdout' else ''
    else: plain = '' if is_image else text(data.get('text/plain', ''))
    return f'```\n{plain.strip()}\n```' if plain.strip() else ''

def code(cell):
    found, src = directives(text(cell['source']))
    if found & {'hide', 'include: false'}: return ''
    if {o.split()[0] for o in found if o} & {'default_exp', 'export', 'exporti'}: return ''
    parts = [] if 'echo: false' in found or not src else [f'```python\n{src}\n```']
    if 'output: false' not in found: parts += [output(o) for o in cell['outputs']]
    return '\n\n'.join(filter(None, parts))

def readme():
    "The text of README.md"
    cells = json.loads(source.read_text(encoding='utf-8'))['cells']
    kinds = {'markdown': markdown, 'code': code}
    parts = [kinds[c['cell_type']](c) for c in cells if c['cell_type'] in kinds]
    title, *rest = filter(None, parts)
    heading, *below = title.split('\n', 1)  # badges stand between the title and its subtitle
    parts = [note, heading, badges(settings()), *(b.strip() for b in below), *rest]
    return '\n\n'.join(parts).strip() + '\n'

def main(check):
    wanted = readme()
    current = target.read_text(encoding='utf-8') if target.exists() else ''
    if wanted == current: return print('README.md is current')
    if check: sys.exit('nbs/index.ipynb gives another README.md: run `make readme` and commit it.')
    target.write_text(wanted, encoding='utf-8')
    print('README.md written')

if __name__ == '__main__': main('--check' in sys.argv[1:])
