#!/usr/bin/env python3
"""From the notebooks that nbdev processed to pages that Sphinx reads, for a site without Quarto.

    python scripts/bridge.py TARGET

Names, order and titles come from _quarto.yml and the notebooks, so addresses equal Quarto's."""
import json
import re
import sys
from pathlib import Path
from shutil import copy, copytree, rmtree

import yaml

from docs_check import nbs, sidebar, slug
from links import addresses, root, settings

MARK = '\u200b'  # after a page's title, so that a class of that name keeps the anchor (conf.py)
CALLOUTS = re.compile(r'^::: *\{\.callout-(\w+)([^}]*)\}\n(?:#+ +([^\n]*)\n)?(.*?)\n:::$',
                      re.M | re.S)

def anchor(heading):
    "Sphinx asks for it (conf.py)"
    return 'page' if heading.endswith(MARK) else slug(heading)

def page(name):
    "Of a notebook: its name without the number, which is also its address"
    return re.sub(r'(^|/)\d+[a-z]?_', r'\1', name)

def callout(m):
    kind, options, title, body = m.groups()
    folded = '\n:collapsible: closed' * ('collapse="true"' in options)
    return f':::{{admonition}} {title or kind.title()}\n:class: {kind}{folded}\n\n{body}\n:::'

def markdown(text, depth):
    "A text of Quarto's as one of MyST's"
    home = re.escape(addresses(settings()['repository'])[1])
    up = '../' * depth
    text = re.sub(r'\A(?:#\|.*\n)+', '', text)
    text = CALLOUTS.sub(callout, text)
    text = re.sub(r'^(#+ .*) (\{\.api\})$', r'\2\n\1', text, flags=re.M)
    text = re.sub(r'<a id="([\w-]+)"></a>', r'[]{#\1}', text)
    text = re.sub(rf'\]\({home}([\w/]+)\.html', rf']({up}\1.ipynb', text)
    def renamed(m): return f']({page(m[1])}'
    return re.sub(r'\]\(((?:\.\./)*(?:\w+/)?\w+\.ipynb)', renamed, text)

def options(source):
    "The `#| name: value` lines of a cell, and the rest"
    lines = source.split('\n')
    said = [l[2:].split(':', 1) for l in lines if l.startswith('#|')]
    found = {k.strip(): (v or ['true'])[0].strip() for k, *v in said}
    return found, '\n'.join(l for l in lines if not l.startswith('#|')).strip('\n')

def text_cell(text): return dict(cell_type='markdown', metadata={}, source=text)

def unquoted(text): return yaml.safe_load(text) if text[:1] in '"\'' else text

def code(cell, depth):
    "A code cell, or the markdown that it made"
    said, source = options(cell['source'])
    shown = [o for o in cell['outputs'] if said.get('output') != 'false']
    if said.get('output') == 'asis':
        text = '\n\n'.join(''.join(o['data']['text/markdown']) for o in shown if 'data' in o)
        return text_cell(markdown(text, depth))
    for data in (o['data'] for o in shown if 'text/markdown' in o.get('data', {})):
        data['text/markdown'] = markdown(''.join(data['text/markdown']), depth)
    tags = ['remove-input'] * (said.get('echo') == 'false' or not source)
    tags += ['hide-input'] * (said.get('code-fold') == 'true')
    figure = {}
    if 'fig-alt' in said: figure['image'] = {'alt': unquoted(said['fig-alt'])}
    if 'fig-cap' in said: figure['figure'] = {'caption': unquoted(said['fig-cap'])}
    return cell | dict(metadata=dict(tags=tags, mystnb=figure), source=source, outputs=shown)

def convert(name):
    "The page of a processed notebook"
    nb = json.loads((root/'_proc'/name).read_text(encoding='utf-8'))
    depth = name.count('/')
    for c in nb['cells']:
        c['source'] = ''.join(c['source'])
        c.pop('id', None)  # as nbformat 4.4 has none
    front, *cells = nb['cells']
    about = yaml.safe_load(front['source'].strip('-\n '))
    title = f'# {about["title"]}{MARK}\n\n{{.subtitle}}\n{about.get("description", "")}'
    done = [text_cell(title)]
    for c in cells:
        if c['source'].startswith('<!-- WARNING'): continue
        if c['cell_type'] == 'code': done.append(code(c, depth))
        else: done.append(c | dict(source=markdown(c['source'], depth)))
    if name == 'index.ipynb': done.append(text_cell(contents()))
    meta = dict(kernelspec=nb['metadata'].get('kernelspec', {}), language_info={'name': 'python'},
                myst={'html_meta': {'description': str(about.get('description', ''))}})
    return dict(cells=done, metadata=meta, nbformat=4, nbformat_minor=4)

def contents():
    "The sidebar of _quarto.yml as Sphinx's"
    site = yaml.safe_load((root/'_quarto.yml').read_text(encoding='utf-8'))['website']
    def tree(section):
        names = [page(n.rsplit('.', 1)[0]) for n in section['contents'] if n != 'index.ipynb']
        head = f'```{{toctree}}\n:caption: {section["section"]}\n:hidden:\n\n'
        return head + '\n'.join(names) + '\n```'
    return '\n\n'.join(map(tree, site['sidebar']['contents']))

def main(target):
    from nbdev.serve import proc_nbs  # takes a second, and Sphinx needs none of it
    rmtree(target, ignore_errors=True)
    proc_nbs(str(nbs), n_workers=2, force=True)
    for name in sidebar():
        path = target/page(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith('.md'): text = markdown((nbs/name).read_text(encoding='utf-8'), 0)
        else: text = json.dumps(convert(name))
        path.write_text(text, encoding='utf-8')
    for folder in ('images', 'style'): copytree(nbs/folder, target/folder)
    copy(nbs/'llms.txt', target/'llms.txt')

if __name__ == '__main__': main(Path(sys.argv[1]))
