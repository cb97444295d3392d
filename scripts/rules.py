#!/usr/bin/env python3
"""The house rules that can be counted, for notebooks and Python files.

    python scripts/rules.py                  # every finding, and exit code 1 if there is one
    python scripts/rules.py nbs/05_*.ipynb   # only these notebooks

An exported cell has `#| export`, `#| exports` or `#| exporti`; a hidden one has `#| hide`.
A line of code is neither blank nor only a comment or directive; imports stand alone in a cell.
A notebook whose name starts with digits is numbered; tutorials are not. The order is that of the
names: 23_train, 23a_callbacks, 24_run.
Public is a name without a leading underscore, at the top of an exported cell or in a public class;
a method patched onto a class belongs to it. An override is a method with a name that a base
class of this package has too, which documents it.

How code is cut:
  syntax      a code cell parses, magics and shell lines aside
  module      at most 250 lines of code in the exported cells of a notebook
  cell        at most 25 lines of code in an exported cell, imports aside
  line        at most 100 characters, in every code cell and fence, tests, benchmarks and scripts;
              directives aside, which nbdev and Quarto read from one line
  import      no cell of a numbered notebook imports a module of a later one, or one of none
  star        no cell imports `*`, which hides from ruff a name whose cell lacks `#| export`
  parameter   each one of a public function and each field of a public dataclass has a comment on
              its line that no other shares; not `self`, `_x`, overrides, dunders but `__init__`
              and `__call__`
  docstring   every public function, class and method has one; not overrides and dunders

How it is told:
  values      at most 60 exported lines of code, imports aside, in a row without a cell that shows
              a value of the code above: neither exported nor hidden, with an output, and with a
              name that an exported cell defines, or one that was made with such a name
  sentence    at most 35 words; a code span, a formula or a link is one word, a list item, a
              paragraph and `.`, `?`, `!` end it, a semicolon and a colon do not
  heading     none twice in a notebook
  figure      a cell that shows an image has a fig-cap and a fig-alt
  visible     a visible cell of a numbered notebook uses no name that only hidden cells import
  assertions  at most one line in ten of the cells that are neither exported nor hidden, or three
"""
import ast
import io
import re
import sys
import tokenize
from argparse import ArgumentParser
from collections import Counter, defaultdict
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from docs_check import cells, notebooks
from links import root, settings

MODULE, CELL, LINE, VALUES, WORDS = 250, 25, 100, 60, 35
FEW, ONE_IN = 3, 10  # assertions
EXCEPTIONS = {}  # (file, rule): reason, as ('nbs/05_grouping.ipynb', 'module'): 'one long table'

lib = settings()['lib_name']
functions = ast.FunctionDef, ast.AsyncFunctionDef

class Finding(NamedTuple):
    file: str   # Below the top folder
    place: str  # `[index of the cell]`, `:line of the file` or nothing
    rule: str
    text: str

    def __str__(self): return f'{self.file}{self.place} {self.rule}: {self.text}'

class Package(NamedTuple):
    modules: dict   # Module -> the number of its notebook, or None
    names: dict     # Name in `__init__.py` -> the module it comes from
    bases: dict     # Class -> names of its bases
    names_of: dict  # Class -> names that its body defines or a patch adds

# -- cells

def source(cell): return ''.join(cell['source'])
def directives(cell):
    "The words that follow `#|`"
    return {l[2:].split()[0] for l in source(cell).splitlines() if re.match(r'#\|\s*\w', l)}

def is_exported(cell): return bool(directives(cell) & {'export', 'exports', 'exporti'})
def is_hidden(cell): return 'hide' in directives(cell)
def is_open(cell): return not is_exported(cell) and not is_hidden(cell)

def of_type(nb, kind):
    "The cells of this type with their index among all"
    return [(i, c) for i, c in enumerate(cells(nb)) if c['cell_type'] == kind]

def code(nb): return of_type(nb, 'code')
def exported(nb): return [c for _, c in code(nb) if is_exported(c)]

def module_of(nb):
    "Name of the module that a notebook exports, or None"
    text = '\n'.join(source(c) for _, c in code(nb))
    m = re.search(r'^#\|\s*default_exp\s+(\S+)', text, re.M)
    return m and m[1]

def number(nb):
    "(5, '') of 05_grouping.ipynb, or None"
    m = 'tutorials' not in nb.parts and re.match(r'(\d+)([a-z]?)_', nb.name)
    return (int(m[1]), m[2]) if m else None

def lines_of_code(cell):
    return [l for l in source(cell).splitlines() if l.strip() and not l.strip().startswith('#')]

# -- Python in cells

@lru_cache(None)
def parsed(text):
    "The syntax tree of `text`, or None"
    try: return ast.parse(text)
    except SyntaxError: return None

def python(cell):
    "What Python reads of a cell: magics and shell lines give way, line by line"
    text = source(cell)
    if parsed(text): return text
    if re.match(r'(\s*#.*\n|\s*\n)*%%(?!time|capture)', text): return ''
    text = re.sub(r'^([ \t]*)[%!].*$', r'\1pass', text, flags=re.M)
    return re.sub(r'^([ \t]*[\w, ]+=[ \t]*)[%!].*$', r'\1None', text, flags=re.M)

def tree(cell):
    "The syntax tree of a cell, empty if it has none (rule `syntax`)"
    return parsed(python(cell)) or ast.parse('')

def commented(text):
    "Numbers of the lines of `text` with a comment"
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {t.start[0] for t in tokens if t.type == tokenize.COMMENT and t.string.strip('# ')}

def only_imports(cell):
    body = tree(cell).body
    return bool(body) and all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in body)

def last_name(node): return (re.findall(r'\w+', ast.unparse(node)) or [''])[-1]

def decorators(n):
    return {last_name(d.func if isinstance(d, ast.Call) else d) for d in n.decorator_list}

def patched(f):
    "The class that a function is patched onto, or ''"
    first = [*f.args.posonlyargs, *f.args.args][:1]
    return last_name(first[0].annotation) if 'patch' in decorators(f) and first else ''

def is_dunder(name): return name.startswith('__') and name.endswith('__')

def definitions(body, owner=''):
    "Public functions, classes and methods, each with the class that it belongs to"
    for n in body:
        if isinstance(n, functions) and (is_dunder(n.name) or n.name[0] != '_'):
            where = owner or patched(n)
            if not where.startswith('_'): yield n, where
        elif isinstance(n, ast.ClassDef) and n.name[0] != '_':
            yield n, owner
            yield from definitions(n.body, n.name)

def public(nb):
    "What the exported cells of a notebook define: index, cell, node, class that it belongs to"
    for i, c in code(nb):
        if is_exported(c): yield from ((i, c, n, owner) for n, owner in definitions(tree(c).body))

# -- the package

def init_names():
    "Name -> module, for the names that `__init__.py` imports from modules of the package"
    path = root/lib/'__init__.py'
    found = ast.walk(ast.parse(path.read_text(encoding='utf-8') if path.exists() else ''))
    froms = [n for n in found if isinstance(n, ast.ImportFrom) and n.module]
    return {a.asname or a.name: n.module.split('.')[-1] for n in froms for a in n.names
            if n.level or n.module.startswith(f'{lib}.')}

def defines(n):
    "Names that a statement of a class body defines: a method, a field, attributes"
    if isinstance(n, functions): return {n.name}
    targets = getattr(n, 'targets', [getattr(n, 'target', None)])
    return {t.id for o in targets if o for t in ast.walk(o) if isinstance(t, ast.Name)}

def package():
    "What rules about one notebook have to know of all"
    bases, names_of = defaultdict(set), defaultdict(set)
    for nb in notebooks():
        for n in (n for c in exported(nb) for n in ast.walk(tree(c))):
            if isinstance(n, ast.ClassDef):
                bases[n.name] |= {last_name(b) for b in n.bases}
                names_of[n.name] |= set().union(*map(defines, n.body))
            elif isinstance(n, functions) and patched(n): names_of[patched(n)].add(n.name)
    modules = {m: number(nb) for nb in notebooks() if (m := module_of(nb))}
    return Package(modules, init_names(), dict(bases), dict(names_of))

def ancestors(name, bases):
    "The bases of a class, theirs, and so on"
    found, todo = set(), [name]
    while todo:
        new = bases.get(todo.pop(), set()) - found
        found |= new
        todo += new
    return found

def is_override(n, owner, pkg):
    return any(n.name in pkg.names_of.get(b, ()) for b in ancestors(owner, pkg.bases) - {owner})

def imported(n, pkg):
    "Modules of the package that one node of a syntax tree imports"
    if isinstance(n, ast.Import):
        return [a.name.split('.')[1] for a in n.names if a.name.startswith(f'{lib}.')]
    if not isinstance(n, ast.ImportFrom): return []
    name = '.'.join(filter(None, [lib if n.level else '', n.module]))
    if name != lib: return [name.split('.')[1]] if name.startswith(f'{lib}.') else []
    known = pkg.names | {m: m for m in pkg.modules}
    return [known[a.name] for a in n.names if a.name in known]

# -- how code is cut: each rule yields (index of the cell or None, text)

def syntax(nb, pkg):
    for i, c in code(nb):
        if parsed(python(c)) is None: yield i, 'the cell does not parse'

def module(nb, pkg):
    n = sum(len(lines_of_code(c)) for c in exported(nb))
    if n > MODULE: yield None, f'{n} lines of code (at most {MODULE})'

def cell(nb, pkg):
    for i, c in code(nb):
        n = len(lines_of_code(c))
        if is_exported(c) and n > CELL and not only_imports(c):
            yield i, f'{n} lines of code (at most {CELL})'

def long_lines(text):
    "Number from 1 and message of every line that is too long"
    for k, l in enumerate(text.splitlines(), 1):
        if len(l) > LINE and not l.startswith('#|'):
            yield k, f'{len(l)} characters (at most {LINE})'

def line(nb, pkg):
    for i, c in enumerate(cells(nb)):
        fences = re.findall(r'^```.*?^```', source(c), re.M | re.S)
        text = source(c) if c['cell_type'] == 'code' else '\n'.join(fences)
        yield from ((i, said) for _, said in long_lines(text))

def upward(nb, pkg):
    own = number(nb)
    for i, c in code(nb) if own else ():
        for m in dict.fromkeys(m for n in ast.walk(tree(c)) for m in imported(n, pkg)):
            if m not in pkg.modules: yield i, f'{lib}.{m} is of no notebook'
            elif (pkg.modules[m] or own) > own: yield i, f'{lib}.{m} is of a later notebook'

def star(nb, pkg):
    for i, n in ((i, n) for i, c in code(nb) for n in ast.walk(tree(c))):
        if isinstance(n, ast.ImportFrom) and n.names[0].name == '*':
            yield i, f'{ast.unparse(n)}: name what it imports'

def parameters(f):
    a = f.args
    found = [*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg]
    return [(p.arg, p) for p in found if p and p.arg not in ('self', 'cls') and p.arg[0] != '_']

def fields(cls):
    if 'dataclass' not in decorators(cls): return []
    found = [n for n in cls.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
    return [(n.target.id, n) for n in found
            if n.target.id[0] != '_' and 'ClassVar' not in ast.unparse(n.annotation)]

def parameter(nb, pkg):
    for i, c, n, owner in public(nb):
        if isinstance(n, ast.ClassDef): found = fields(n)
        elif is_dunder(n.name) and n.name not in ('__init__', '__call__'): continue
        elif is_override(n, owner, pkg): continue
        else: found = parameters(n)
        own, with_comment = Counter(p.lineno for _, p in found), commented(python(c))
        for name, p in found:
            alone = own[p.lineno] == 1 and with_comment & {*range(p.lineno, p.end_lineno + 1)}
            if not alone: yield i, f'{qualified(n, owner)}: {name} has no comment of its own'

def qualified(n, owner): return f'{owner}.{n.name}' if owner else n.name

def docstring(nb, pkg):
    for i, _, n, owner in public(nb):
        if is_dunder(n.name) or ast.get_docstring(n): continue
        if not is_override(n, owner, pkg): yield i, f'{qualified(n, owner)} has none'

# -- how it is told

def values(nb, pkg):
    at, total, known = None, 0, set()
    for i, c in [*code(nb), (None, None)]:  # the end of a notebook ends a stretch, as a value does
        uses = c and is_open(c) and mentions(tree(c)) & known
        if c is None or uses and c.get('outputs'):
            if total > VALUES: yield at, f'{total} exported lines show no value (at most {VALUES})'
            at, total = None, 0
        elif is_exported(c) and not only_imports(c):
            at, total = i if at is None else at, total + len(lines_of_code(c))
            known |= binds(tree(c)) - imports(tree(c))
        if uses: known |= binds(tree(c))

_abbreviated = re.compile(r'\b(e\.g|i\.e|cf|vs|al|resp|approx|Fig|Eq|Sec|Tab|No)\.(?=\s)')

_spans = {r'<!--.*?-->': '', r'(`+)(?!`)[^\n]+?(?<!`)\1(?!`)': 'Code',
          r'(?<!\\)\$\$.+?\$\$': 'Formula', r'(?<![\\$])\$[^$\n]+?\$': 'Formula',
          r'!?\[(?:[^\[\]]|\[[^\]]*\])*\]\([^)]*\)': 'Link', r'<?https?://[^\s>)]+>?': 'Link',
          r'</?\w[^>]*>': ''}

def one_word(text):
    "Code spans, formulas, links and addresses as one word each; comments and tags as none"
    for pattern, word in _spans.items(): text = re.sub(pattern, word, text, flags=re.S)
    return text

def plain(text):
    "Markdown without its code fences"
    return re.sub(r'^[ \t>]*(```+|~~~+).*?^[ \t>]*\1[ \t]*$', '', text, flags=re.S | re.M)

def paragraphs(text):
    "Paragraphs and list items, in which code, formulas and links are one word"
    text = one_word(plain(text))
    text = re.sub(r'^[ \t>]*(#{1,6} .*|:::.*|\|.*|[-:| ]+)$', '', text, flags=re.M)
    text = re.sub(r'^[ \t]*>[ \t]?', '', text, flags=re.M)
    return re.split(r'\n\s*\n|^\s*(?:[-*+]|\d+[.)])\s+', text, flags=re.M)

def sentences(text):
    for p in paragraphs(text):
        p = _abbreviated.sub(r'\1', p)
        for s in re.split(r'(?<=[.?!])(?<!\.\.)[\'")\]*_”’]*\s+', p): yield s.split()

def sentence(nb, pkg):
    for i, c in of_type(nb, 'markdown'):
        for words in sentences(source(c)):
            n = sum(bool(re.search(r'\w', w)) for w in words)
            if n > WORDS: yield i, f'{n} words (at most {WORDS}): {" ".join(words[:6])} …'

def heading(nb, pkg):
    seen = set()
    for i, c in of_type(nb, 'markdown'):
        for h in re.findall(r'^#{1,6} +(.*?)[ #]*$', plain(source(c)), re.M):
            if h.casefold() in seen: yield i, f'{h!r} stands twice'
            seen.add(h.casefold())

def figure(nb, pkg):
    for i, c in code(nb):
        kinds = {k for o in c.get('outputs', []) for k in o.get('data', {})}
        if is_hidden(c) or not kinds & {'image/png', 'image/svg+xml'}: continue
        lacks = [k for k in ('fig-cap', 'fig-alt') if not re.search(
            rf'^#\|[ \t]*{k}:[ \t]*(\n#\|[ \t]*-[ \t]*)?\S', source(c), re.M)]
        if lacks: yield i, f'no {" and no ".join(lacks)}'

def imports(t):
    "Names that imports of a syntax tree bind"
    found = [n for n in ast.walk(t) if isinstance(n, (ast.Import, ast.ImportFrom))]
    return {(a.asname or a.name).split('.')[0] for n in found for a in n.names}

def binds(t):
    "All names that a syntax tree binds"
    def names(n):
        if isinstance(n, (*functions, ast.ClassDef, ast.ExceptHandler)): return n.name
        if isinstance(n, ast.arg): return n.arg
        return n.id if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load) else None
    return imports(t) | {names(n) for n in ast.walk(t)}

def mentions(t):
    "Names and attributes that a syntax tree reads"
    found = [n for n in ast.walk(t) if isinstance(n, (ast.Name, ast.Attribute))]
    return {n.attr if isinstance(n, ast.Attribute) else n.id for n in found
            if isinstance(n.ctx, ast.Load)}

def visible(nb, pkg):
    if number(nb) is None: return
    hidden = {n for _, c in code(nb) if is_hidden(c) for n in imports(tree(c))}
    shown = [(i, tree(c)) for i, c in code(nb) if not is_hidden(c)]
    hidden -= {n for _, t in shown for n in binds(t)}
    for i, t in shown:
        used = {n.id for n in ast.walk(t) if isinstance(n, ast.Name)} & hidden
        yield from ((i, f'{n} is imported in a hidden cell') for n in sorted(used))
        hidden -= used

_asserts = re.compile(r'\bassert\b|\bassert_\w+\(|\bexpect_fail\(|'
                      r'\btest_(eq|eq_type|ne|close|is|shuffled|stdout|warns|fail|sig)\(')

def assertions(nb, pkg):
    found = [l for _, c in code(nb) if is_open(c) for l in lines_of_code(c)]
    n = sum(bool(_asserts.search(l)) for l in found)
    allowed = max(FEW, len(found) // ONE_IN)
    if n > allowed: yield None, f'{n} in {len(found)} lines (at most {allowed})'

# -- all of them

RULES = {f.__name__: f for f in (syntax, module, cell, line, star, parameter, docstring,
                                 values, sentence, heading, figure, visible, assertions)}
RULES |= {'import': upward}

def name_of(path): return path.relative_to(root).as_posix() if root in path.parents else str(path)

def check(nb, pkg):
    "The findings in a notebook, in the order of its cells"
    file = name_of(nb)
    active = {rule: f for rule, f in RULES.items() if (file, rule) not in EXCEPTIONS}
    found = [(i, rule, text) for rule, f in active.items() for i, text in f(nb, pkg)]
    found.sort(key=lambda o: -1 if o[0] is None else o[0])
    return [Finding(file, '' if i is None else f'[{i}]', *rest) for i, *rest in found]

def check_files():
    "The lines of Python files that are too long"
    patterns = 'setup.py', 'tests/*.py', 'benchmarks/*.py', 'scripts/*.py'
    for path in sorted(f for p in patterns for f in root.glob(p)):
        if (name_of(path), 'line') in EXCEPTIONS: continue
        for k, text in long_lines(path.read_text(encoding='utf-8')):
            yield Finding(name_of(path), f':{k}', 'line', text)

def findings(paths=()):
    "All findings in these notebooks, or in all and the Python files"
    pkg, nbs = package(), [Path(p).resolve() for p in paths] or notebooks()
    found = [f for nb in nbs for f in check(nb, pkg)]
    return found if paths else found + [*check_files()]

def main(argv=None):
    "Print the findings; 1 if there is one"
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('notebooks', nargs='*')
    found = findings(parser.parse_args(argv).notebooks)
    for f in found: print(f)
    print(f'{len(found)} findings, {len(EXCEPTIONS)} exceptions')
    return int(bool(found))

if __name__ == '__main__': sys.exit(main())
