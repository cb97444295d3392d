"The wheel, installed beside nothing but its requirements, used from an empty folder"
import json
import os
import re
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path
from shutil import copy, copytree, ignore_patterns

import pytest

import links

root, cfg = links.root, links.settings()

# This environment plays a fresh one: the wheel comes first on the path,
# and what only developers have is not found.
clean = '''
import sys
dev = {'nbdev', 'execnb', 'peft', 'tensorboard', 'pytest', 'xdist', 'hypothesis', 'jupyterlab',
       'ipywidgets', 'IPython', 'ipykernel', 'ruff', 'build'}
class WithoutDev:
    def __init__(self, finder): self.finder = finder
    def __getattr__(self, name): return getattr(self.finder, name)
    def find_spec(self, name, *args):
        if name.split('.')[0] not in dev: return self.finder.find_spec(name, *args)
sys.meta_path[:] = map(WithoutDev, sys.meta_path)
sys.path.insert(0, sys.argv.pop(1))
'''
command = clean + '''
from importlib.metadata import distributions
found = distributions(path=sys.path[:1])
wheel = next(d for d in found if d.metadata['Name'] in ('ham_nb', 'ham-nb'))
sys.argv = sys.argv[1:]
run, = wheel.entry_points.select(group='console_scripts', name=sys.argv[0])
sys.exit(run.load()())
'''

@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "Built from a copy, so that the tree stays clean and files of an earlier build stay out"
    tmp = tmp_path_factory.mktemp('wheel')
    src, caches = tmp/'src', ignore_patterns('__pycache__')
    for f in 'ham_nb', 'nbs', 'tests', 'scripts': copytree(root/f, src/f, ignore=caches)
    for f in 'setup.py', 'settings.ini', 'pyproject.toml', 'README.md', 'LICENSE': copy(root/f, src)
    pip('wheel', '--no-deps', '--no-build-isolation', '--wheel-dir', tmp, src)
    return next(tmp.glob('*.whl'))

@pytest.fixture(scope='module')
def installed(wheel):
    pip('install', '--no-deps', '--no-index', '--target', wheel.parent/'site', wheel)
    return wheel.parent/'site'

def run(*args, **kwargs):
    "What python prints with these arguments"
    done = subprocess.run([sys.executable, *args], capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, done.stderr
    return done.stdout

def pip(*args): run('-m', 'pip', '--disable-pip-version-check', '--quiet', *args)

def isolated(code, *args, cwd):
    "Run code without PYTHONPATH, user packages and the current folder"
    env = {k: v for k, v in os.environ.items() if not k.startswith('PYTHON')}
    return run('-I', '-c', code, *args, cwd=cwd, env=env, timeout=300)

def test_contents(wheel):
    assert wheel.stat().st_size <= 3_000_000
    with zipfile.ZipFile(wheel) as z: names = {n for n in z.namelist() if '.dist-info/' not in n}
    files = [f for f in (root/'ham_nb').rglob('*') if f.is_file() and '__pycache__' not in f.parts]
    # all of the package and nothing else: no notebooks, no tests
    assert names == {f.relative_to(root).as_posix() for f in files}
    assert 'ham_nb/assets/nano_vit.safetensors' in names

def test_metadata(wheel):
    info = f"ham_nb-{cfg['version']}.dist-info"
    with zipfile.ZipFile(wheel) as z:
        held = {n for n in z.namelist() if n.startswith(info)}
        wanted = 'METADATA', 'entry_points.txt'
        metadata, commands = (z.read(f'{info}/{f}').decode() for f in wanted)
    assert message_from_string(metadata)['Version'] == cfg['version']
    assert any(n.endswith('LICENSE') for n in held)
    declared = {f'ham-{c} = ham_nb.cli:{c}_command' for c in ('train', 'report')}
    assert declared <= {*commands.splitlines()}

def test_dev_extras_are_out_of_reach(installed, tmp_path):
    code = clean + 'from importlib.util import find_spec; assert not any(map(find_spec, dev))'
    isolated(code, str(installed), cwd=tmp_path)

def test_every_module_imports_from_an_empty_folder(installed, tmp_path):
    code = clean + """
import importlib, ham_nb
for m in sys.argv[1:]: importlib.import_module(f'ham_nb.{m}')
print(ham_nb.__version__, ham_nb.__file__)
"""
    modules = [f.stem for f in (root/'ham_nb').glob('[!_]*.py')]
    version, file = isolated(code, str(installed), *modules, cwd=tmp_path).split()
    assert version == cfg['version'] and Path(file).is_relative_to(installed)

def test_train_and_report_from_an_empty_folder(installed, tmp_path):
    tiny = '--dataset digits --tasks 2 --limit-per-class 8 --epochs 1 --device cpu --out runs/first'
    isolated(command, str(installed), 'ham-train', *tiny.split(), cwd=tmp_path)
    card = json.loads((tmp_path/'runs'/'first'/'results.json').read_text())
    assert len(card['accuracy_matrix']) == 2 and card['versions']['ham_nb'] == cfg['version']
    told = isolated(command, str(installed), 'ham-report', 'runs/first', cwd=tmp_path)
    assert re.search(r'\| runs/first +\| ham +\|', told)
    assert {p.name for p in tmp_path.iterdir()} == {'runs'}

# -- the pages, as Colab finds them: a notebook alone, and no package yet

PAGES = [root/'nbs/index.ipynb', *sorted((root/'nbs/tutorials').glob('*.ipynb'))]

@pytest.fixture(scope='module')
def bare(tmp_path_factory):
    "Python of an environment that sees all packages of this one but ours"
    home = tmp_path_factory.mktemp('bare')/'env'
    run('-m', 'venv', '--without-pip', str(home))
    python = home/('Scripts' if os.name == 'nt' else 'bin')/'python'
    def packages(python): return run_with(python, '-c', paths).strip()
    paths = 'import sysconfig; print(sysconfig.get_path("purelib"))'
    Path(packages(python), 'all.pth').write_text(packages(sys.executable))
    return python

def run_with(python, *args, **kwargs):
    done = subprocess.run([python, *args], capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout

execute = '''
import sys
from execnb.shell import CaptureShell
from fastcore.nbio import read_nb
shell = CaptureShell()
shell.run_all(read_nb(sys.argv[1]), exc_stop=True)
if shell.exc: raise shell.exc
import ham_nb
print(ham_nb.__file__)
'''

@pytest.mark.trial
@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.stem)
def test_a_page_runs_from_the_wheel_in_an_empty_folder(page, wheel, bare, tmp_path):
    "All its cells, within three minutes: the first installs the wheel, which HAM_NB names"
    env = {**os.environ, 'HAM_NB': str(wheel), 'PIP_DISABLE_PIP_VERSION_CHECK': '1'}
    env.pop('PYTHONPATH', None)
    told = run_with(bare, '-c', execute, str(page), cwd=tmp_path, env=env, timeout=180)
    assert Path(told.split()[-1]).is_relative_to(bare.parents[1])
