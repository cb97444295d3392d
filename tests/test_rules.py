"The house rules: each finds what breaks it and lets pass what does not."
import json

import pytest

import docs_check
import rules

hide = '#| hide\n'
shown = [dict(output_type='execute_result', data={'text/plain': '1'})]
image = [dict(output_type='display_data', data={'image/png': ''})]

def md(text): return dict(cell_type='markdown', source=text)
def py(text, outputs=()): return dict(cell_type='code', source=text, outputs=list(outputs))
def ex(text): return py('#| export\n' + text)
def lines(n): return '\n'.join(f'x{i} = {i}' for i in range(n))
def words(n): return ' '.join(['word'] * n)

@pytest.fixture
def tree(tmp_path, monkeypatch):
    "Writes notebooks, given as name -> cells, into a tree of their own, the package in front"
    monkeypatch.setattr(rules, 'root', tmp_path)
    monkeypatch.setattr(docs_check, 'nbs', tmp_path/'nbs')
    (tmp_path/'nbs'/'tutorials').mkdir(parents=True)
    (tmp_path/'ham_nb').mkdir()
    init = '"A package"\nfrom ham_nb.late import Late, early\nfrom .early import Early\n'
    (tmp_path/'ham_nb'/'__init__.py').write_text(init)
    def write(**nbs):
        early = [py('#| default_exp early'), ex('class Early:\n    "Base"\n    level = 0\n')]
        early.append(ex('@patch\ndef go(self: Early, x): # Number\n    "Go"\n'))
        nbs = dict(a00_early=early, a09_late=[py('#| default_exp late')]) | nbs
        for name, cells in nbs.items():
            path = tmp_path/'nbs'/f'{name[name[0] == "a":].replace("__", "/")}.ipynb'
            path.write_text(json.dumps(dict(cells=cells)))
        return tmp_path
    return write

def found(root, rule, nb='05_x.ipynb'):
    return [str(f) for f in rules.check(root/'nbs'/nb, rules.package()) if f.rule == rule]

figure = '#| fig-cap: What it is\n#| fig-alt: What it shows\nplot()'
hidden = py(f'{hide}import math')

# rule, cells with a finding, cells without
cases = [
    ('syntax', [py('def')], [py('%time x = 1\n!ls\nif x:\n    !ls\ny = !ls'), py('%%bash\nls -l')]),
    ('module', [ex(lines(25))] * 10 + [ex('y = 1')],
               [ex(lines(25) + '\n\n# c')] * 10 + [py(lines(9))]),
    ('cell', [ex(lines(26))], [ex(lines(25) + '\n# comment'), py(lines(26))]),
    ('cell', [py('#| exporti\nx = 1\n' + 'import os\n' * 25)], [ex('import os\n' * 26)]),
    ('line', [md(f'```sh\n{"x" * 101}\n```')], [md(f'```sh\n{"x" * 100}\n```')]),
    ('line', [py('x' * 101)], [py('x' * 100), md('x' * 101), py(f'#| fig-alt: {words(40)}\nx')]),
    ('import', [py('import ham_nb.late')], [py('import ham_nb.early, ham_nb')]),
    ('import', [py('from ham_nb.late import f')], [py('from ham_nb.early import f')]),
    ('import', [py('from ham_nb import late')], [py('from ham_nb import early, x')]),
    ('import', [py('from ham_nb import Late')], [py('from ham_nb import Early')]),
    ('import', [py('%time\ndef f():\n    from .late import f')], [py('from .early import f')]),
    ('import', [py('from .gone import f')], [py('from gone import f\nimport ham_nb')]),
    ('star', [ex('from math import *')], [ex('from math import pi\nx = 2 * 3'), md('import *')]),
    ('star', [py('%time\ndef f():\n    from ham_nb import *')], [py('import math as m')]),
    ('parameter', [ex('def f(a): pass')], [ex('def f(self, a): pass # A')]),
    ('parameter', [ex('def f(\n    a,\n    b, # B\n): pass')],
                  [ex('def f(\n    a, # A\n    *b, # B\n    _c=1,\n): pass')]),
    ('parameter', [ex('def f(**kwargs): pass')], [ex('def _f(**kwargs): pass')]),
    ('parameter', [ex('class A:\n    def __init__(self, a): pass')],
                  [ex('class A:\n    def __eq__(self, a): pass\n    def f(self): pass')]),
    ('parameter', [ex('@dataclass(frozen=True)\nclass A:\n    x: int')],
                  [ex('@dataclass\nclass A:\n    x: int # X\n    _y: int = 0\n    z = 1'),
                   ex('class B:\n    x: int'), py('def f(a): pass')]),
    ('parameter', [ex('@patch\ndef f(self: A, x): pass')],
                  [ex('@patch\ndef f(self: _A, x): pass\ndef g():\n    def h(a): pass')]),
    ('parameter', [ex('class A(nn.Module):\n    def go(self, x): pass')],
                  [ex('class A(Early):\n    "A"'), ex('class B(A):\n    "B"'),
                   ex('@patch\ndef go(self: B, x): pass')]),
    ('docstring', [ex('def f(): return 1')], [ex('def f():\n    "F"')]),
    ('docstring', [ex('class A: pass')], [ex('class _A:\n    def f(self): pass')]),
    ('docstring', [ex('class A:\n    "A"\n    @property\n    def f(self): return 1')],
                  [ex('class A:\n    "A"\n    def __init__(self): pass')]),
    ('docstring', [ex('@patch\ndef other(self: A): pass\nclass A(Early): "A"')],
                  [ex('@patch\ndef go(self: A): pass\nclass A(Early): "A"'),
                   ex('class C(Early):\n    "C"\n    @property\n    def level(self): pass')]),
    ('values', [ex(lines(25))] * 3,
               [ex(lines(25)), ex(lines(25)), py('x1', shown), ex(lines(25))]),
    ('values', [ex(lines(31)), py(hide + 'x1', shown), py('x1'), ex(lines(30))],
               [ex(lines(30))] * 2 + [ex('import os\n' * 70)]),
    ('values', [ex(lines(31)), py('1', shown), ex(lines(30))],  # a value of something else
               [ex(lines(31)), py('y = x1'), py('y', shown), ex(lines(30))]),
    ('values', [ex(lines(31)), py('y = 1'), py('y.z', shown), ex(lines(30))],
               [ex(lines(31)), ex('@patch\ndef z(self: A): "Z"'), py('y.z', shown), ex(lines(30))]),
    ('sentence', [md(words(36))], [md(words(35))]),
    ('sentence', [md(f'{words(18)}; {words(9)}: {words(9)}.')], [md(f'{words(18)}. {words(18)}.')]),
    ('sentence', [md(f'{words(18)}, e.g. {words(18)}')],
                 [md(f'{words(35)}:\n\n- {words(35)}\n- a')]),
    ('sentence', [md(f'{words(33)} `a` $b$ [c](d)')],
                 [md(f'{words(32)} `a b c d` $a + b$ [c d e](f)')]),
    ('sentence', [md(f'> {words(18)}\n> {words(18)}')],
                 [md('# {0}\n\n| {0} |\n\n```\n{0}\n```\n::: {0}'.format(words(40)))]),
    ('heading', [md('## A\n\ntext'), md('### A')], [md('## A'), md('## B\n\n```\n## A\n```')]),
    ('figure', [py('plot()', image)],
               [py(figure, image), py('plot()'), py(hide + 'plot()', image)]),
    ('figure', [py('#| fig-cap:\n#| fig-alt: B', image)],
               [py('#| fig-cap:\n#|   - A\n#| fig-alt: B', image)]),
    ('visible', [hidden, py('math.pi')], [hidden, py('import math\nmath.pi')]),
    ('visible', [hidden, py('def f(): return math.pi')], [hidden, py(hide + 'math.pi'), py('pi')]),
    ('assertions', [py('assert x\n' * 4 + lines(35))], [py('assert x\n' * 4 + lines(36))]),
    ('assertions', [py('test_eq(1, 1)\nwith expect_fail(): pass\nassert x\nassert_close(x, x)')],
                   [py('assert x\n' * 3), py('test_data(1)\n# assert x'), py(hide + 'assert x'),
                    ex('assert x')]),
]

@pytest.mark.parametrize('rule,bad,good', cases)
def test_rule(tree, rule, bad, good):
    assert len(found(tree(a05_x=bad), rule)) == 1
    assert found(tree(a05_x=good), rule) == found(tree(a05_x=good), 'syntax') == []

def test_there_is_a_case_for_every_rule():
    assert {c[0] for c in cases} == {*rules.RULES}

def test_each_bare_parameter_is_a_finding(tree):
    root = tree(a05_x=[md('# X'), ex('class A:\n    def f(self, a, b): pass # Both')])
    assert found(root, 'parameter') == [
        f'nbs/05_x.ipynb[1] parameter: A.f: {p} has no comment of its own' for p in 'ab']

def test_only_numbered_notebooks_have_an_order(tree):
    upward = [hidden, py('from ham_nb.late import f\nmath.pi')]
    root = tree(a05_x=upward, index=upward, tutorials__01_t=upward)
    for rule in 'import', 'visible':
        assert found(root, rule)
        assert not any(found(root, rule, nb) for nb in ('index.ipynb', 'tutorials/01_t.ipynb'))

def test_order_of_rooms(tree):
    use = [py('from ham_nb.after import f')]
    root = tree(**{'23_x': use, '23a_after': [py('#| default_exp after')], '24_x': use})
    rooms = docs_check.notebooks()
    assert [nb.stem for nb in rooms] == ['00_early', '09_late', '23_x', '23a_after', '24_x']
    assert [*map(rules.number, rooms)] == sorted(map(rules.number, rooms))
    assert found(root, 'import', '23_x.ipynb') and not found(root, 'import', '24_x.ipynb')

def test_long_lines_of_files(tree):
    (tree()/'setup.py').write_text(f'# short\n#{"x" * 100}\n')
    told = ['setup.py:2 line: 101 characters (at most 100)']
    assert [*map(str, rules.findings())] == told

def test_a_line_of_a_cell_is_told_as_its_cell(tree):
    assert found(tree(a05_x=[md('# X'), py('x' * 104)]), 'line') == [
        'nbs/05_x.ipynb[1] line: 104 characters (at most 100)']

def test_exceptions(tree, monkeypatch):
    root = tree(a05_x=[py('x' * 101), py('def')])
    monkeypatch.setattr(rules, 'EXCEPTIONS', {('nbs/05_x.ipynb', 'line'): 'an address'})
    assert not found(root, 'line') and found(root, 'syntax')

def test_command(tree, capsys):
    root = tree(a05_x=[md('# A\n\n# A')], a06_x=[py('x' * 101)])
    clean, long = (str(root/'nbs'/f'{n}_x.ipynb') for n in ('05', '06'))
    told, error = "'A' stands twice", '06_x.ipynb[0] line: 101'
    for args, texts in ([], [told, error]), ([clean], [told]), ([long], [error]):
        assert rules.main(args) == 1
        out = capsys.readouterr().out
        assert [t for t in (told, error) if t in out] == texts
        assert out.endswith(f'{len(texts)} findings, 0 exceptions\n')
    (root/'nbs/06_x.ipynb').unlink()
    assert rules.main([str(root/'nbs/00_early.ipynb')]) == 0

def test_helpers(tree):
    cells = md('# X'), py('#| default_exp x'), py('#|export\n#| slow\nx = 1')
    nb = tree(a05_x=cells)/'nbs/05_x.ipynb'
    assert rules.module_of(nb) == 'x'
    assert [rules.directives(c) for c in rules.exported(nb)] == [{'export', 'slow'}]
    assert rules.source(rules.exported(nb)[0]).endswith('x = 1')
