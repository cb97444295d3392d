#!/usr/bin/env python3
"""Check the source of the docs site without Quarto: sidebar, links, images, notebook sizes, stored errors, nbdev's processing."""
import json
import re
import sys

import yaml

from links import root

nbs = root/'nbs'
limit = 300_000  # bytes of one notebook with its outputs
_link = re.compile(r'\]\(([^)\s]+)[^)]*\)|(?:src|href)="([^"]+)"')

def notebooks(): return sorted(f for f in nbs.rglob('*.ipynb') if not any(p.startswith(('.', '_')) for p in f.relative_to(nbs).parts))

def cells(path): return json.loads(path.read_text(encoding='utf-8'))['cells']

def sidebar():
    "Every page that _quarto.yml names, in order"
    def pages(items):
        for o in items:
            if isinstance(o, str): yield o
            else: yield from ([o['href']] if 'href' in o else []) + list(pages(o.get('contents', [])))
    return list(pages(yaml.safe_load((root/'_quarto.yml').read_text(encoding='utf-8'))['website']['sidebar']['contents']))

def sidebar_errors():
    named, there = sidebar(), {f.relative_to(nbs).as_posix() for f in notebooks()}
    yield from (f'_quarto.yml: {o} is in the sidebar twice' for o in sorted({o for o in named if named.count(o) > 1}))
    yield from (f'_quarto.yml: {o} is in the sidebar but not in nbs/' for o in named if not (nbs/o).exists())
    yield from (f'nbs/{o}: not in the sidebar of _quarto.yml' for o in sorted(there - set(named)))

def _exists(page, target):
    "Is there a file, or the notebook that becomes it, where `target` points to from the folder of `page`?"
    path = page.parent/target.split('#')[0].split('?')[0]
    if path.exists(): return True
    # a page is published under its notebook's name without the number
    return path.suffix == '.html' and any(re.sub(r'^\d+[a-zA-Z]?_', '', f.stem) == path.stem for f in path.parent.glob('*.ipynb'))

def link_errors():
    for f in notebooks():
        for c in cells(f):
            if c['cell_type'] != 'markdown': continue
            for target in (a or b for a, b in _link.findall(re.sub(r'```.*?```|`[^`\n]*`', '', ''.join(c['source']), flags=re.S))):
                if re.match(r'\w+:|#|/', target): continue
                if not _exists(f, target): yield f'{f.relative_to(root)}: no file behind the link {target}'

def notebook_errors():
    for f in notebooks():
        if f.stat().st_size > limit: yield f'{f.relative_to(root)}: {f.stat().st_size:,} bytes, more than {limit:,}'
        for i, c in enumerate(cells(f)):
            if any(o['output_type'] == 'error' for o in c.get('outputs', [])): yield f'{f.relative_to(root)}: cell {i} stores an error'

def processing_errors():
    "Run nbdev's own processing (it executes imports and exported cells) on every page"
    from nbdev.processors import FilterDefaults
    from nbdev.process import read_nb
    for f in notebooks():
        try: FilterDefaults()(read_nb(f))
        except Exception as e: yield f'{f.relative_to(root)}: {type(e).__name__}: {e}'

def errors():
    "All that can be checked without executing a cell"
    return [*sidebar_errors(), *link_errors(), *notebook_errors()]

def main():
    found = errors() + list(processing_errors())
    if found: sys.exit('\n'.join(found))
    print(f'{len(notebooks())} pages: sidebar, links, sizes, outputs and processing are right')

if __name__ == '__main__': main()
