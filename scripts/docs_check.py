#!/usr/bin/env python3
"""Check the source of the docs site without Quarto.

Sidebar, links and their headings, images, sizes of notebooks, stored errors, cells for Colab.
"""
import json
import re
import sys

import yaml

from links import addresses, root, settings

nbs = root/'nbs'
limit = 300_000  # bytes of one notebook with its outputs
_link = re.compile(r'\]\(([^)\s]+)[^)]*\)|(?:src|href)="([^"]+)"')

def notebooks():
    "All of them, in the order of their names"
    def is_page(f): return not any(p.startswith(('.', '_')) for p in f.relative_to(nbs).parts)
    return sorted(f for f in nbs.rglob('*.ipynb') if is_page(f))

def cells(path): return json.loads(path.read_text(encoding='utf-8'))['cells']

def sidebar():
    "Every page that _quarto.yml names, in order"
    def pages(items):
        for o in items:
            if isinstance(o, str): yield o
            else:
                yield from [o['href']] if 'href' in o else []
                yield from pages(o.get('contents', []))
    settings = yaml.safe_load((root/'_quarto.yml').read_text(encoding='utf-8'))
    return list(pages(settings['website']['sidebar']['contents']))

def sidebar_errors():
    named, there = sidebar(), {f.relative_to(nbs).as_posix() for f in notebooks()}
    for o in dict.fromkeys(named):
        if named.count(o) > 1: yield f'_quarto.yml: {o} is in the sidebar twice'
        if not (nbs/o).exists(): yield f'_quarto.yml: {o} is in the sidebar but not in nbs/'
    yield from (f'nbs/{o}: not in the sidebar of _quarto.yml' for o in sorted(there - set(named)))

def _exists(page, target):
    "Is there a file, or the notebook that becomes it, where `target` points to from `page`?"
    path = page.parent/target.split('#')[0].split('?')[0]
    if path.exists(): return True
    # a page is published under its notebook's name without the number
    pages = {re.sub(r'^\d+[a-zA-Z]?_', '', f.stem) for f in path.parent.glob('*.ipynb')}
    return path.suffix == '.html' and path.stem in pages

def _targets(cell):
    "Where the links and images of a cell point to, code and addresses aside"
    text = re.sub(r'```.*?```|`[^`\n]*`', '', ''.join(cell['source']), flags=re.S)
    found = (a or b for a, b in _link.findall(text))
    return [t for t in found if not re.match(r'\w+:|#|/', t)]

def slug(heading):
    "The anchor of a heading, as Quarto spells it"
    plain = re.sub(r'[^\w\s.-]', '', heading.lower()).strip()
    return re.sub(r'^[^a-z]+', '', re.sub(r'\s', '-', plain))

def anchors(path):
    "What a link can name after `#` on a page: headings, as Quarto spells them, and own anchors"
    found = set()
    for text in (''.join(c['source']) for c in cells(path) if c['cell_type'] == 'markdown'):
        found |= {*re.findall(r'<a id="([^"]+)"', text), *re.findall(r'\{#([\w-]+)', text)}
        for h in re.findall(r'^#{1,6} +(.*?)[ #]*$', text, re.M):
            found.add(slug(h))
    return found

def link_errors():
    known = {}
    for f in notebooks():
        for target in (t for c in cells(f) if c['cell_type'] == 'markdown' for t in _targets(c)):
            if not _exists(f, target):
                yield f'{f.relative_to(root)}: no file behind the link {target}'
                continue
            name, _, anchor = target.partition('#')
            if not anchor or not name.endswith('.ipynb'): continue
            page = (f.parent/name).resolve()
            if page not in known: known[page] = anchors(page)
            if anchor not in known[page]:
                yield f'{f.relative_to(root)}: no heading behind the link {target}'

def notebook_errors():
    for f in notebooks():
        name, size = f.relative_to(root), f.stat().st_size
        if size > limit: yield f'{name}: {size:,} bytes, more than {limit:,}'
        for i, c in enumerate(cells(f)):
            if any(o['output_type'] == 'error' for o in c.get('outputs', [])):
                yield f'{name}: cell {i} stores an error'

def colab(path):
    "The two cells by which a page runs in Colab: a badge, and an installation where it is needed"
    source, _ = addresses(settings()['repository'])
    page, depth = path.relative_to(nbs), len(path.relative_to(nbs).parts) - 1
    notebook = f'{source}/blob/{settings()["branch"]}/nbs/{page.as_posix()}'
    notebook = notebook.replace('https://github.com', 'https://colab.research.google.com/github')
    faq = 'faq.ipynb' if depth else 'tutorials/faq.ipynb'
    badge = (f'[![Open in Colab]({"../" * depth}style/colab.svg)]({notebook}) '
             f'([memory and minutes there]({faq}#on-colab))')
    install = f'''#| hide
# Where the package is missing, as on Colab; HAM_NB can name another source, such as a wheel.
import importlib.util, os, subprocess, sys
if importlib.util.find_spec('{settings()["lib_name"]}') is None:
    source = os.environ.get('HAM_NB', 'git+{source}')
    subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', source], check=True)'''
    return badge, install

def colab_errors():
    for f in (f for f in notebooks() if f.parent.name == 'tutorials' or f.stem == 'index'):
        there = [''.join(c['source']) for c in cells(f)]
        for kind, text in zip(('badge', 'installation'), colab(f)):
            if text not in there: yield f'{f.relative_to(root)}: lacks the cell for Colab:\n{text}'

def errors():
    "All that can be checked without executing a cell"
    return [*sidebar_errors(), *link_errors(), *notebook_errors(), *colab_errors()]

def main():
    found = errors()
    if found: sys.exit('\n'.join(found))
    print(f'{len(notebooks())} pages: sidebar, links, sizes and outputs are right')

if __name__ == '__main__': main()
