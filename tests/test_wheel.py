"The wheel, installed beside nothing but its requirements, used from an empty folder"
import json
import os
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path
from shutil import copy, copytree, ignore_patterns

import pytest

import links

root, cfg = links.root, links.settings()

# This environment plays a fresh one: the wheel comes first on the path, and what only developers have is not found
clean = '''
import sys
dev = {'nbdev', 'execnb', 'peft', 'tensorboard', 'pytest', 'hypothesis', 'jupyterlab',
       'ipywidgets', 'IPython', 'ipykernel', 'ruff', 'build'}
class WithoutDev:
    def __init__(self, finder): self.finder = finder
    def __getattr__(self, name): return getattr(self.finder, name)
    def find_spec(self, name, *args): return None if name.split('.')[0] in dev else self.finder.find_spec(name, *args)
sys.meta_path[:] = map(WithoutDev, sys.meta_path)
sys.path.insert(0, sys.argv.pop(1))
'''
command = clean + '''
from importlib.metadata import distributions
wheel = next(d for d in distributions(path=sys.path[:1]) if d.metadata['Name'] in ('ham_nb', 'ham-nb'))
run, = (e.load() for e in wheel.entry_points if e.group == 'console_scripts' and e.name == sys.argv[1])
sys.argv = sys.argv[1:]
sys.exit(run())
'''

@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "Built from a copy, so that the tree stays clean and files of an earlier build stay out"
    tmp = tmp_path_factory.mktemp('wheel')
    for f in 'ham_nb', 'nbs', 'tests', 'scripts': copytree(root/f, tmp/'src'/f, ignore=ignore_patterns('__pycache__'))
    for f in 'setup.py', 'settings.ini', 'pyproject.toml', 'README.md', 'LICENSE': copy(root/f, tmp/'src')
    pip('wheel', '--no-deps', '--no-build-isolation', '--wheel-dir', tmp, tmp/'src')
    return next(tmp.glob('*.whl'))

@pytest.fixture(scope='module')
def installed(wheel):
    pip('install', '--no-deps', '--no-index', '--target', wheel.parent/'site', wheel)
    return wheel.parent/'site'

def pip(*args):
    done = subprocess.run([sys.executable, '-m', 'pip', '--disable-pip-version-check', '--quiet', *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

def isolated(code, *args, cwd):
    "Run code without PYTHONPATH, user packages and the current folder"
    env = {k: v for k, v in os.environ.items() if not k.startswith('PYTHON')}
    done = subprocess.run([sys.executable, '-I', '-c', code, *args], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout

def test_contents(wheel):
    assert wheel.stat().st_size <= 3_000_000
    with zipfile.ZipFile(wheel) as z: names = z.namelist()
    package = {f.relative_to(root).as_posix() for f in (root/'ham_nb').rglob('*') if f.is_file() and '__pycache__' not in f.parts}
    assert {n for n in names if '.dist-info/' not in n} == package  # all of the package and nothing else: no notebooks, no tests
    assert 'ham_nb/assets/nano_vit.safetensors' in package
    assert not [n for n in names if n.endswith('.ipynb')]

def test_metadata(wheel):
    info = f"ham_nb-{cfg['version']}.dist-info"
    with zipfile.ZipFile(wheel) as z:
        m = message_from_string(z.read(f'{info}/METADATA').decode())
        assert m['Version'] == cfg['version'] and any(n.startswith(info) and n.endswith('LICENSE') for n in z.namelist())
        assert {'ham-train = ham_nb.cli:train_command', 'ham-report = ham_nb.cli:report_command'} <= {
            *z.read(f'{info}/entry_points.txt').decode().splitlines()}

def test_dev_extras_are_out_of_reach(installed, tmp_path):
    isolated(clean + 'from importlib.util import find_spec; assert not any(map(find_spec, dev))', str(installed), cwd=tmp_path)

def test_every_module_imports_from_an_empty_folder(installed, tmp_path):
    code = clean + """
import importlib, ham_nb
for m in sys.argv[1:]: importlib.import_module(f'ham_nb.{m}')
print(ham_nb.__version__, ham_nb.__file__)
"""
    version, file = isolated(code, str(installed), *(f.stem for f in (root/'ham_nb').glob('[!_]*.py')), cwd=tmp_path).split()
    assert version == cfg['version'] and Path(file).is_relative_to(installed)

def test_train_and_report_from_an_empty_folder(installed, tmp_path):
    tiny = '--dataset digits --tasks 5 --limit-per-class 8 --epochs 1 --device cpu --out runs/first'.split()
    isolated(command, str(installed), 'ham-train', *tiny, cwd=tmp_path)
    card = json.loads((tmp_path/'runs'/'first'/'results.json').read_text())
    assert len(card['accuracy_matrix']) == 5 and card['versions']['ham_nb'] == cfg['version']
    assert '| runs/first | ham |' in isolated(command, str(installed), 'ham-report', 'runs/first', cwd=tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {'runs'}
