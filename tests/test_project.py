"The project itself: facts that stand in two places agree, and notebooks and modules keep the house rules."
import ast
import re
from importlib import import_module, metadata

import pytest
from packaging.requirements import Requirement

import docs_check
import links
import readme

try: import tomllib
except ImportError: import tomli as tomllib  # Python 3.10; nbdev brings it

root, cfg = links.root, links.settings()
pyproject = tomllib.loads((root/'pyproject.toml').read_text(encoding='utf-8'))
package = root/cfg['lib_name']
notebooks = docs_check.notebooks()
each_notebook = pytest.mark.parametrize('nb', notebooks, ids=lambda f: f.relative_to(docs_check.nbs).as_posix())

def lines(key): return cfg[key].strip().splitlines()
def source(cell): return ''.join(cell['source'])
def directives(cell): return {l[2:].split()[0] for l in source(cell).splitlines() if re.match(r'#\|\s*\w', l)}
def exported(nb): return [c for c in docs_check.cells(nb) if c['cell_type'] == 'code' and directives(c) & {'export', 'exports', 'exporti'}]

def module_of(nb):
    "Name of the module that a notebook exports, or None"
    m = re.search(r'^#\|\s*default_exp\s+(\S+)', '\n'.join(source(c) for c in docs_check.cells(nb) if c['cell_type'] == 'code'), re.M)
    return m and m[1]

modules = {module_of(nb): nb for nb in notebooks if module_of(nb)}  # in the order of the notebooks' numbers

@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "Metadata of the wheel that this tree gives"
    from build.util import project_wheel_metadata
    return project_wheel_metadata(root, isolated=False)

# -- one fact, two places

def test_version(built):
    assert built['Version'] == cfg['version'] == import_module(cfg['lib_name']).__version__
    assert re.search(r'^version: (.*)$', (root/'CITATION.cff').read_text(encoding='utf-8'), re.M)[1] == cfg['version']
    assert f"\n## {cfg['version']}\n" in (root/'CHANGELOG.md').read_text(encoding='utf-8')

def test_installed_version():
    assert metadata.version(cfg['lib_name']) == cfg['version'], 'install the package again: make dev'

def test_wheel_metadata(built):
    assert built['Name'].replace('-', '_') == cfg['lib_name'] == pyproject['project']['name']
    assert built['Summary'] == cfg['description']
    assert built['Requires-Python'] == pyproject['project']['requires-python'] == f">={cfg['min_python']}"
    assert built['License'] == 'Apache-2.0' or built['License-Expression'] == 'Apache-2.0'

def test_wheel_requirements(built):
    found = [Requirement(r) for r in built.get_all('Requires-Dist')]
    def names(reqs): return sorted((r.name, str(r.specifier)) for r in reqs)
    assert names(r for r in found if r.marker is None) == names(map(Requirement, lines('requirements')))
    assert names(r for r in found if r.marker and r.marker.evaluate({'extra': 'dev'})) == names(map(Requirement, lines('dev_requirements')))

def test_urls():
    repo, docs = links.addresses(cfg['repository'])
    assert pyproject['project']['urls'] == {'Repository': repo, 'Documentation': docs}
    assert cfg['git_url'] == repo

def test_nbdev_settings():
    for key in 'nbs_path', 'lib_path', 'doc_path', 'tst_flags': assert pyproject['tool']['nbdev'][key] == cfg[key]

def test_commands():
    declared = dict(re.split(r'\s*=\s*', l) for l in lines('console_scripts'))
    assert {'ham-train', 'ham-report'} <= set(declared)
    for command, target in declared.items():
        module, function = target.split(':')
        assert callable(getattr(import_module(module), function)), command
    installed = {e.name: e.value for e in metadata.distribution(cfg['lib_name']).entry_points if e.group == 'console_scripts'}
    assert installed == declared

def test_addresses():
    assert list(links.stale(cfg['repository'])) == [], 'run `make links`'

def test_relink_finds_stale_addresses():
    old = 'https://github.com/someone/ham_nb/x https://colab.research.google.com/github/someone/ham_nb/y https://someone.github.io/ham_nb/'
    new = 'https://github.com/a/ham_nb/x https://colab.research.google.com/github/a/ham_nb/y https://a.github.io/ham_nb/'
    assert links.relink(old, 'a/ham_nb') == new
    other = 'https://github.com/huggingface/peft https://github.com/x/ham_nb_fork'
    assert links.relink(other, 'a/ham_nb') == other

def test_readme_is_current():
    assert (root/'README.md').read_text(encoding='utf-8') == readme.readme(), 'run `make readme`'

def test_readme_sees_another_repository(monkeypatch):
    before = readme.readme()
    monkeypatch.setattr(readme, 'settings', lambda: {**cfg, 'repository': 'a/b'})
    assert 'https://github.com/a/b/' in readme.readme() != before

# -- notebooks

def test_docs_source():
    assert docs_check.errors() == []

def test_there_are_notebooks():
    assert {'index.ipynb', '00_lowrank.ipynb'} <= {nb.name for nb in notebooks}

@each_notebook
def test_first_cell(nb):
    first = next(c for c in docs_check.cells(nb) if c['cell_type'] == 'markdown')
    assert docs_check.cells(nb).index(first) == 0
    assert re.match(r'# \S.*\n+> \S', source(first)), 'a notebook starts with `# Title` and `> subtitle`'

@each_notebook
def test_size(nb):
    assert nb.stat().st_size <= docs_check.limit

@each_notebook
def test_exported_cells(nb):
    for c in exported(nb):
        code = [l for l in source(c).splitlines() if l.strip() and not l.startswith('#|')]
        assert len(code) <= 50, f'an exported cell has {len(code)} lines: {code[0]}'
        star = [n for n in ast.walk(ast.parse('\n'.join(code))) if isinstance(n, ast.ImportFrom) and n.names[0].name == '*']
        assert not star, f'{code[star[0].lineno - 1]}: import names, so that ruff can find a forgotten export'

# -- modules

def imported(path):
    "Modules of this package that the file at `path` imports, also inside functions"
    for n in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(n, ast.ImportFrom):
            name = '.'.join(filter(None, [cfg['lib_name'] if n.level else '', n.module]))
            names = [name] if name != cfg['lib_name'] else [f'{name}.{a.name}' for a in n.names]
        elif isinstance(n, ast.Import): names = [a.name for a in n.names]
        else: continue
        yield from (o.split('.')[1] for o in names if o.startswith(f"{cfg['lib_name']}."))

def test_every_module_has_its_notebook():
    assert {f.stem for f in package.glob('*.py')} - {'__init__', '_modidx'} == set(modules)

@pytest.mark.parametrize('module', modules)
def test_imports_only_from_above(module):
    order = list(modules)
    for other in imported(package/f'{module}.py'):
        assert other in order, f'{module} imports {other}, which no notebook exports'
        assert order.index(other) < order.index(module), f'{module} imports {other}, whose notebook comes later'

def test_assets_are_packaged():
    data = [f.name for f in (package/'assets').iterdir()]
    assert any(f.endswith('.safetensors') for f in data) and any(f.endswith('.json') for f in data)
    assert sum(f.stat().st_size for f in (package/'assets').iterdir()) < 2_500_000

def test_no_module_reads_pickles():
    for f in package.glob('*.py'):
        loads = re.findall(r'torch\.load\([^)]*\)', f.read_text(encoding='utf-8'))
        assert all('weights_only=True' in call for call in loads), f'{f.name}: {loads}'
