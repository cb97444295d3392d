"""How the package's own names stand on the pages, with and without Quarto.

nbdev finds both classes by `renderer` and `doc_procs` in pyproject.toml."""
import ast
import inspect
import re
from functools import cache
from importlib import import_module
from pathlib import Path

from fastcore.docments import MarkdownRenderer, docments
from nbdev.process import Processor
from nbdev.showdoc import showdoc_nm

from links import addresses, settings

empty = inspect.Parameter.empty
UNSAID = None, empty, type(None)
METHOD = 14  # rooms below it are the method: their code is open, that of all others folded
package = settings()['lib_name']

@cache
def modules():
    "Qualified name -> the module that exports it"
    found = import_module(f'{package}._modidx').d['syms']
    return {name.split('.', 2)[2]: module for module, names in found.items() for name in names}

def exported(name):
    "What a qualified name stands for: pages run as __main__, where dataclasses lose their source"
    o = import_module(modules()[name])
    for part in name.split('.'): o = inspect.getattr_static(o, part)
    return getattr(o, '__func__', o)

def full_name(name, o):
    "A method that a decorator such as `torch.no_grad` wraps has lost its class: found by its line"
    def same(other): return other.endswith(f'.{name}') and exported(other).__doc__ == o.__doc__
    return name if name in modules() else next(filter(same, modules()), name)

def meanings(o, name):
    "Parameter -> meaning, type, default; an override inherits what it does not say"
    found = docments(o, full=True)
    owner, _, method = name.rpartition('.')
    for base in exported(owner).__mro__[1:] if owner else ():
        if method not in vars(base): continue
        for k, said in docments(vars(base)[method], full=True).items():
            for key, value in said.items():
                if k in found and found[k][key] in UNSAID: found[k][key] = value
    rest = re.search(r'^ *(\*\*\w+),? *# *(.*)$', source(o), re.M)
    if rest and found['return']['docment'] == rest[2]:  # docments gives it to what comes back
        found['return']['docment'] = None
        found[rest[1]] = dict(docment=rest[2], anno=empty, default=empty)
    return {k: v for k, v in found.items() if k != 'self' and (v['docment'] or not loose(v))}

def loose(said):
    "Is it one of `*args` and `**kwargs`?"
    kinds = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    return said.get('kind') in kinds

def source(o):
    try: return inspect.getsource(o)
    except (OSError, TypeError): return ''

def kind(annotation):
    "A type as it is written in the source, without a bar, which would end a cell of a table"
    if annotation in UNSAID: return ''
    text = re.sub(r'(?:\w+\.)+(?=\w)', '', inspect.formatannotation(annotation))
    return f'`{text}`'.replace(' | ', '` or `')

def short(value, limit=30):
    "A value, or its kind where it is long: an object with many fields, a function"
    text = repr(value)
    return text if len(text) <= limit else f'{type(value).__name__}(…)'

def row(name, said):
    default = '' if said['default'] is empty else f'`{short(said["default"])}`'
    meaning = (said['docment'] or '').replace('|', '\\|')
    return f'| {name} | {kind(said["anno"])} | {default} | {meaning} |'

def table(found):
    "A line for each parameter, and one for what comes back"
    rows = [row(f'`{k}`', said) for k, said in found.items() if k != 'return']
    back = found.get('return')
    if back and (back['docment'] or back['anno'] not in UNSAID):
        rows.append(row('*returns*', {**back, 'default': empty}))
    head = ['| parameter | type | default | meaning |', '| --- | --- | --- | --- |']
    return '\n'.join([*head, *rows]) if rows else ''

def address(o, name):
    "Of its lines in the repository"
    try: lines, start = inspect.getsourcelines(o)
    except (OSError, TypeError): return ''
    source, _ = addresses(settings()['repository'])
    path = modules()[name].replace('.', '/')
    return f'{source}/blob/{settings()["branch"]}/{path}.py#L{start}-L{start + len(lines) - 1}'

def defined(cell):
    "Names of the functions and classes of a cell, methods with their class"
    kinds = ast.FunctionDef, ast.ClassDef
    names = (showdoc_nm(o) for o in cell.parsed_() if isinstance(o, kinds))
    return [n for name in names for n in (name if isinstance(name, list) else [name])]

class Reference(MarkdownRenderer):
    "The name with its class, one line, the source, and a table of parameters"
    def _repr_markdown_(self):
        name = full_name(self.nm, self.sym)
        o = exported(name) if name in modules() else self.sym
        if isinstance(o, property): o = o.fget
        link = address(o, name) if name in modules() else ''
        line = f'{self.docs} ([source]({link}))' if link else self.docs
        shown = name.replace('__', r'\_\_')
        heading = f'{"#" * self.title_level} {shown} {{.api}}'
        return '\n\n'.join(filter(None, [heading, line, table(meanings(o, name))]))

class Exports(Processor):
    "The names of a cell in the order of their definition, then its code, folded beyond the method"
    def begin(self):
        room = re.match(r'\d+', Path(self.nb.path_).name)
        fold = 'show' if room and int(room[0]) < METHOD else 'true'
        made = {c.source.split('show_doc(')[1][:-1]: c for c in self.nb.cells if 'has_sd' in c}
        cells = []
        for c in self.nb.cells:
            if 'has_sd' in c: continue
            if 'exports' in getattr(c, 'directives_', ()):
                cells += [made[n] for n in defined(c) if n in made]
                c.source = c.source.replace('#| code-fold: show', f'#| code-fold: {fold}', 1)
            cells.append(c)
        self.nb.cells = cells
