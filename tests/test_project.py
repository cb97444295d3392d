"The project itself: facts that stand in two places agree, and the house rules are kept."
import re
from importlib import import_module, metadata

import pytest
from packaging.requirements import Requirement

import docs_check
import links
import readme
import rules

try: import tomllib
except ImportError: import tomli as tomllib  # Python 3.10; nbdev brings it

root, cfg = links.root, links.settings()
pyproject = tomllib.loads((root/'pyproject.toml').read_text(encoding='utf-8'))
package = root/cfg['lib_name']
notebooks = docs_check.notebooks()
each_notebook = pytest.mark.parametrize('nb', notebooks, ids=rules.name_of)

def lines(key): return cfg[key].strip().splitlines()
def text_of(name): return (root/name).read_text(encoding='utf-8')

@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "Metadata of the wheel that this tree gives"
    from build.util import project_wheel_metadata
    return project_wheel_metadata(root, isolated=False)

# -- one fact, two places

def test_version(built):
    assert built['Version'] == cfg['version'] == import_module(cfg['lib_name']).__version__
    assert re.search(r'^version: (.*)$', text_of('CITATION.cff'), re.M)[1] == cfg['version']
    assert f"\n## {cfg['version']}\n" in text_of('CHANGELOG.md')

def test_installed_version():
    assert metadata.version(cfg['lib_name']) == cfg['version'], 'install it again: make dev'

def test_wheel_metadata(built):
    project = pyproject['project']
    assert built['Name'].replace('-', '_') == cfg['lib_name'] == project['name']
    assert built['Summary'] == cfg['description']
    assert built['Requires-Python'] == project['requires-python'] == f">={cfg['min_python']}"
    assert built['License'] == 'Apache-2.0' or built['License-Expression'] == 'Apache-2.0'

def test_wheel_requirements(built):
    found = [Requirement(r) for r in built.get_all('Requires-Dist')]
    always = [r for r in found if r.marker is None]
    dev = [r for r in found if r.marker and r.marker.evaluate({'extra': 'dev'})]
    def names(reqs): return sorted((r.name, str(r.specifier)) for r in reqs)
    assert names(always) == names(map(Requirement, lines('requirements')))
    assert names(dev) == names(map(Requirement, lines('dev_requirements')))

def test_urls():
    repo, docs = links.addresses(cfg['repository'])
    assert pyproject['project']['urls'] == {'Repository': repo, 'Documentation': docs}
    assert cfg['git_url'] == repo

def test_nbdev_settings():
    for key in 'nbs_path', 'lib_path', 'doc_path', 'tst_flags':
        assert pyproject['tool']['nbdev'][key] == cfg[key]

def test_commands():
    declared = dict(re.split(r'\s*=\s*', l) for l in lines('console_scripts'))
    assert {'ham-train', 'ham-report'} <= set(declared)
    for command, target in declared.items():
        module, function = target.split(':')
        assert callable(getattr(import_module(module), function)), command
    points = metadata.distribution(cfg['lib_name']).entry_points
    assert {e.name: e.value for e in points if e.group == 'console_scripts'} == declared

def test_addresses():
    assert list(links.stale(cfg['repository'])) == [], 'run `make links`'

@pytest.mark.parametrize('address', [
    'https://github.com/{}/ham_nb/x', 'https://{}.github.io/ham_nb/',
    'https://colab.research.google.com/github/{}/ham_nb/y'])
def test_relink_finds_stale_addresses(address):
    assert links.relink(address.format('someone'), 'a/ham_nb') == address.format('a')

def test_relink_leaves_other_addresses():
    other = 'https://github.com/huggingface/peft https://github.com/x/ham_nb_fork'
    assert links.relink(other, 'a/ham_nb') == other

def test_readme_is_current():
    assert text_of('README.md') == readme.readme(), 'run `make readme`'

def test_readme_sees_another_repository(monkeypatch):
    before = readme.readme()
    monkeypatch.setattr(readme, 'settings', lambda: {**cfg, 'repository': 'a/b'})
    assert 'https://github.com/a/b/' in readme.readme() != before

# -- notebooks

def test_house_rules():
    assert [*map(str, rules.findings())] == [], 'see scripts/rules.py'

def test_docs_source():
    assert docs_check.errors() == []

def test_there_are_notebooks():
    assert {'index.ipynb', '00_lowrank.ipynb'} <= {nb.name for nb in notebooks}

@each_notebook
def test_first_cell(nb):
    first = next(c for c in docs_check.cells(nb) if c['cell_type'] == 'markdown')
    assert docs_check.cells(nb).index(first) == 0
    starts = re.match(r'# \S.*\n+> \S', rules.source(first))
    assert starts, 'a notebook starts with `# Title` and `> subtitle`'

@each_notebook
def test_size(nb):
    assert nb.stat().st_size <= docs_check.limit

# -- modules

def test_every_module_has_its_notebook():
    there = {f.stem for f in package.glob('*.py')} - {'__init__', '_modidx'}
    assert there == {*map(rules.module_of, notebooks)} - {None}

def test_assets_are_packaged():
    data = [*(package/'assets').iterdir()]
    assert {'.safetensors', '.json'} <= {f.suffix for f in data}
    assert sum(f.stat().st_size for f in data) < 2_500_000

def test_no_module_reads_pickles():
    for f in package.glob('*.py'):
        loads = re.findall(r'torch\.load\([^)]*\)', f.read_text(encoding='utf-8'))
        assert all('weights_only=True' in call for call in loads), f'{f.name}: {loads}'
