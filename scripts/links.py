#!/usr/bin/env python3
"""Carry `repository` of settings.ini to every address of this project: source, Colab and docs links.

    python scripts/links.py            # rewrite
    python scripts/links.py --check    # change nothing, exit 1 if an address disagrees
"""
import re
import sys
from configparser import ConfigParser
from pathlib import Path

root = Path(__file__).resolve().parent.parent
# README.md and the exported modules are not here: they are generated from these (make readme, make export).
patterns = 'nbs/**/*.ipynb', '_quarto.yml', 'pyproject.toml', 'CITATION.cff', 'CHANGELOG.md', 'CONTRIBUTING.md', '.github/**/*.yml'

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
    "The names under which this project's addresses may stand: the package's, the one wanted, the one written so far"
    written = re.search(r'^Repository = ".*/([^/"]+)"', (root/'pyproject.toml').read_text(encoding='utf-8'), re.M)[1]
    return {settings()['lib_name'], settings()['repository'].split('/')[1], written}

def relink(text, repository, names=frozenset({'ham_nb'})):
    "`text` with every address of this project, whatever its owner, pointing to `repository`; other projects' stay as they are"
    owner, name = repository.split('/')
    ours = '|'.join(map(re.escape, sorted(names)))
    text = re.sub(rf'(github(?:\.com|usercontent\.com)?)/[\w.-]+/(?:{ours})(?![\w-])', rf'\1/{repository}', text)
    return re.sub(rf'https://[\w-]+\.github\.io/(?:{ours})(?![\w-])', f'https://{owner}.github.io/{name}', text)

def files(): return sorted(f for p in patterns for f in root.glob(p) if '.ipynb_checkpoints' not in f.parts)

def stale(repository):
    "Files with an address that disagrees with `repository`, and what they should hold"
    known = names()
    texts = {f: f.read_text(encoding='utf-8') for f in files()}
    return {f: new for f, old in texts.items() if (new := relink(old, repository, known)) != old}

def main(check):
    repository = settings()['repository']
    found = stale(repository)
    for f, text in found.items():
        print(f"{f.relative_to(root)}: {'does not agree with' if check else 'now points to'} {repository}")
        if not check: f.write_text(text, encoding='utf-8')
    if check and found: sys.exit('Run `make links`.')
    if not found: print(f'{len(files())} files agree with repository = {repository}')

if __name__ == '__main__': main('--check' in sys.argv[1:])
