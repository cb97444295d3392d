#!/usr/bin/env python3
"""Carry `repository` of settings.ini to every address of this project: source, Colab, docs.

    python scripts/links.py            # rewrite
    python scripts/links.py --check    # change nothing, exit 1 if an address disagrees
"""
import re
import sys
from configparser import ConfigParser
from pathlib import Path

root = Path(__file__).resolve().parent.parent
# README.md and the exported modules are generated from these (make readme, make export).
patterns = ('nbs/**/*.ipynb', '_quarto.yml', 'pyproject.toml', 'CITATION.cff', 'CHANGELOG.md',
            'CONTRIBUTING.md', '.github/**/*.yml')

def settings():
    "The package metadata of settings.ini"
    parser = ConfigParser(delimiters='=')
    parser.read(root/'settings.ini', encoding='utf-8')
    return parser['DEFAULT']

def addresses(repository):
    "Home of the source and of the docs of `repository` (owner/name)"
    owner, name = repository.split('/')
    return f'https://github.com/{repository}', f'https://{owner}.github.io/{name}/'

def names():
    "Those under which this project's addresses may stand: the package's, the wanted, the written"
    project = (root/'pyproject.toml').read_text(encoding='utf-8')
    written = re.search(r'^Repository = ".*/([^/"]+)"', project, re.M)[1]
    return {settings()['lib_name'], settings()['repository'].split('/')[1], written}

def relink(text, repository, names=frozenset({'ham_nb'})):
    "`text` with each address of this project, whatever its owner, pointing to `repository`"
    owner, name = repository.split('/')
    ours = rf'(?:{"|".join(map(re.escape, sorted(names)))})(?![\w-])'
    source = rf'(github(?:\.com|usercontent\.com)?)/[\w.-]+/{ours}'
    docs = rf'https://[\w-]+\.github\.io/{ours}'
    text = re.sub(source, rf'\1/{repository}', text)
    return re.sub(docs, f'https://{owner}.github.io/{name}', text)

def files():
    found = (f for p in patterns for f in root.glob(p))
    return sorted(f for f in found if '.ipynb_checkpoints' not in f.parts)

def stale(repository):
    "Files with an address that disagrees with `repository`, and what they should hold"
    known = names()
    texts = {f: f.read_text(encoding='utf-8') for f in files()}
    return {f: new for f, old in texts.items() if (new := relink(old, repository, known)) != old}

def main(check):
    repository = settings()['repository']
    found = stale(repository)
    for f, text in found.items():
        done = 'does not agree with' if check else 'now points to'
        print(f'{f.relative_to(root)}: {done} {repository}')
        if not check: f.write_text(text, encoding='utf-8')
    if check and found: sys.exit('Run `make links`.')
    if not found: print(f'{len(files())} files agree with repository = {repository}')

if __name__ == '__main__': main('--check' in sys.argv[1:])
