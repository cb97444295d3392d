#!/usr/bin/env python3
"""Check that the last commit can be released. The work tree stays as it is.

    python scripts/release.py             # every check, on what is installed here
    python scripts/release.py --full      # builds and installs as pip does: downloads 3 GB twice
    python scripts/release.py --tagged    # the tag is there already, on this commit
    python scripts/release.py --out dist  # keeps the wheel and the sdist that passed
    python scripts/release.py --notes     # only prints the version's section of CHANGELOG.md

The commit is built, not the work tree: no build folder, no list of files of an earlier build. The
sdist is built first and the wheel from it. The tests of the project (tests/test_project.py) run
in the unpacked sdist: they compare the versions, and show that it holds what tests need.

Wheel and sdist are then installed, each into an environment of its own, and used from an empty
folder. Without --full that environment holds links to installed packages: those that settings.ini
requires, those that they require, and so on. Nothing else of this environment can be imported, so
a requirement that is missing in settings.ini is found. What it does not show: that pip finds
versions that go together, and that the oldest ones do. --full and test.yml show that.
"""
import json
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from argparse import ArgumentParser
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from shutil import copy, unpack_archive
from tempfile import TemporaryDirectory
from time import perf_counter

from packaging.metadata import Metadata
from packaging.requirements import Requirement

from links import root, settings

WHEEL, SDIST = 3_000_000, 10_000_000  # bytes at most

# In the new environment, from an empty folder: version, place, files of the package and their sizes
LOOK = '''
import json, sys
from importlib.metadata import distribution
from importlib.resources import files
from pathlib import Path
name, = sys.argv[1:]
module, found = __import__(name), distribution(name)
for e in found.entry_points.select(group='console_scripts'): e.load()
top = Path(module.__file__).parent
sizes = {f.relative_to(top.parent).as_posix(): f.stat().st_size for f in top.rglob('*')
         if f.is_file() and '__pycache__' not in f.parts}
assets = [f.name for f in files(f'{name}.assets').iterdir()]
print(json.dumps([module.__version__, found.version, str(top), sizes, assets]))
'''
TRAIN = '--dataset digits --tasks 2 --limit-per-class 8 --epochs 1 --device cpu --out runs/first'

def run(*args, cwd):
    "What a command prints; without PYTHONPATH and the like, and without downloads of weights"
    env = {k: v for k, v in os.environ.items() if not k.startswith('PYTHON')}
    env |= dict(MPLBACKEND='agg', HF_HUB_OFFLINE='1', PIP_DISABLE_PIP_VERSION_CHECK='1')
    env.setdefault('OMP_NUM_THREADS', '1')  # on shared cores threads wait for each other
    done = subprocess.run([*map(str, args)], cwd=cwd, env=env, capture_output=True, text=True)
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()[-15:]
        raise RuntimeError('\n'.join([' '.join(map(str, args)), *said]))
    return done.stdout.strip()

def git(*args): return run('git', *args, cwd=root)
def python(*args, cwd): return run(sys.executable, *args, cwd=cwd)

# -- the commit

def sections():
    "Head and body of each version in CHANGELOG.md, the newest first"
    parts = re.split(r'^## (.*)\n', (root/'CHANGELOG.md').read_text('utf-8'), flags=re.M)
    return [(h.strip(), b.strip()) for h, b in zip(parts[1::2], parts[2::2])]

def note_problems(version):
    head, body = next(iter(sections()), ('', ''))
    if head != version: yield f'CHANGELOG.md begins with {head!r}, not with {version!r}'
    elif not body: yield f'CHANGELOG.md says nothing about {version}'

def tree_problems(version, tagged):
    changed, tag = git('status', '--porcelain').splitlines(), f'v{version}'
    if changed: yield f'{len(changed)} files of the work tree are not committed: {changed[0]} …'
    at = git('tag', '--list', tag) and git('rev-parse', f'{tag}^{{commit}}')
    if tagged and at != git('rev-parse', 'HEAD'): yield f'the tag {tag} is not on this commit'
    if at and not tagged: yield f'the tag {tag} exists: settings.ini needs a new version'

def export(folder):
    "Write the files of the last commit into a folder, and give their names"
    git('archive', '--output', folder.with_suffix('.tar'), 'HEAD')
    unpack_archive(folder.with_suffix('.tar'), folder, filter='data')
    return {f.relative_to(folder).as_posix() for f in folder.rglob('*') if not f.is_dir()}

# -- the two files

def names(path):
    "What a wheel or an sdist holds, without the folder around an sdist"
    if path.suffix == '.whl':
        with zipfile.ZipFile(path) as z: return {*z.namelist()}
    with tarfile.open(path) as t: return {f.name.split('/', 1)[1] for f in t if f.isfile()}

def build(src, out, full):
    "Sdist of the commit in `src`, and the wheel that the sdist gives"
    python('-m', 'build', '--outdir', out, *([] if full else ['--no-isolation']), '.', cwd=src)

def by_build(f): return f in ('PKG-INFO', 'setup.cfg') or '.egg-info/' in f

def sdist_problems(held, tracked):
    "The sdist holds every tracked file, and what a build adds"
    for f in sorted(tracked - held): yield f'the sdist lacks {f}: see MANIFEST.in'
    for f in sorted(held - tracked):
        if not by_build(f): yield f'the sdist holds {f}, which is not tracked'

def wheel_problems(held, tracked, lib):
    "The wheel holds the package and nothing else"
    wanted = {f for f in tracked if f.startswith(f'{lib}/')}
    held = {f for f in held if '.dist-info/' not in f}
    for f in sorted(wanted - held): yield f'the wheel lacks {f}: see package_data of setup.py'
    for f in sorted(held - wanted): yield f'the wheel holds {f}, which is not of the package'

def relative_links(text):
    "Targets in Markdown that lead nowhere on the page of a package registry, which shows README.md"
    text = re.sub(r'^```.*?^```|`[^`\n]*`', '', text, flags=re.M | re.S)
    found = re.findall(r'\]\(([^)\s]+)|(?:src|href)="([^"]+)"', text)
    return [t for t in map(''.join, found) if not re.match(r'\w+:|#', t)]

def file_problems(wheel, sdist, tracked, lib):
    if {wheel, sdist} != (made := {*wheel.parent.iterdir()}):
        return (yield f'built {sorted(f.name for f in made)}, not {[wheel.name, sdist.name]}')
    for f, most in (wheel, WHEEL), (sdist, SDIST):
        if (size := f.stat().st_size) > most: yield f'{f.name}: {size:,} bytes, {most:,} at most'
    yield from sdist_problems(names(sdist), tracked)
    yield from wheel_problems(held := names(wheel), tracked, lib)
    with zipfile.ZipFile(wheel) as z:
        raw = z.read(next(f for f in held if f.endswith('.dist-info/METADATA')))
    about = Metadata.from_email(raw)  # as a registry checks it: a wrong field raises
    if links := relative_links(about.description or ''):
        yield f'{len(links)} links of README.md are relative, as {links[0]}: dead on a registry'

def test_problems(folder):
    try: python('-m', 'pytest', '-q', '-p', 'no:cacheprovider', 'tests/test_project.py', cwd=folder)
    except RuntimeError as e: yield str(e)

# -- an environment of their own

def required(requirements):
    "Installed packages that the requirements name, and those that these require, and so on"
    todo, found = [(r, ()) for r in map(Requirement, requirements)], {}
    while todo:
        req, extras = todo.pop()
        asked = (req.marker.evaluate({'extra': e}) for e in ('', *extras)) if req.marker else [True]
        if not any(asked): continue
        key = req.name.lower().replace('_', '-'), frozenset(req.extras)
        if key in found: continue
        found[key] = dist = distribution(req.name)
        todo += [(r, req.extras) for r in map(Requirement, dist.requires or ())]
    return [*found.values()]

def link(dists, site):
    "Make installed packages importable from another folder"
    for d in dists:
        for top in {f.parts[0] for f in d.files or ()} - {'..', '__pycache__'}:
            if not (site/top).exists(): (site/top).symlink_to(d.locate_file(top))

def install(path, folder, full):
    "A new environment with one of the two files in it; its folder of commands"
    venv.create(folder, with_pip=full)
    bin = folder/'bin'
    if full: run(bin/'python', '-m', 'pip', 'install', path, cwd=folder)
    else:
        quiet = '-m', 'pip', '--python', bin/'python', 'install', '--no-deps', '--no-index'
        if path.suffix == '.gz':  # as pip does with an sdist, with this environment's setuptools
            python('-m', 'pip', 'wheel', '--no-deps', '--no-index', '--no-build-isolation',
                   '--wheel-dir', folder/'built', path, cwd=folder)
            path, = (folder/'built').glob('*.whl')
        python(*quiet, path, cwd=folder)
        code = 'import sysconfig; print(sysconfig.get_path("purelib"))'
        site = Path(run(bin/'python', '-c', code, cwd=folder))
        link(required(settings()['requirements'].strip().splitlines()), site)
    return bin

def use_problems(bin, empty, version, wanted, lib):
    "What a user does first, from an empty folder"
    look = json.loads(run(bin/'python', '-I', '-c', LOOK, lib, cwd=empty))
    own, installed, top, sizes, assets = look
    if {own, installed} != {version}: yield f'it calls itself {own}, and pip calls it {installed}'
    if not Path(top).resolve().is_relative_to(bin.parent.resolve()): yield f'{lib} comes from {top}'
    if sizes != wanted: yield f'files differ: {sorted(dict(sizes.items() ^ wanted.items()))}'
    if not {'results', 'figures.mplstyle', 'nano_vit.safetensors'} <= {*assets}:
        yield f'{lib}.assets holds only {assets}'
    run(bin/'ham-train', *TRAIN.split(), cwd=empty)
    if 'runs/first' not in (told := run(bin/'ham-report', 'runs/first', cwd=empty)):
        yield f'ham-report says nothing of its run: {told}'

# -- all of it

def step(title, problems):
    "Say what a generator of problems finds, and how long it looked"
    start, found = perf_counter(), []
    try: found += problems
    except (RuntimeError, PackageNotFoundError) as e: found.append(str(e))
    seconds = perf_counter() - start
    print(f'{"no" if found else "yes":4}{title} ({seconds:.0f} s)', flush=True)
    for p in found: print('      ' + p.replace('\n', '\n      '), flush=True)
    return not found

def check(version, full=False, tagged=False, out=None):
    "Every step, and whether all found nothing; the two files go to `out` if so"
    lib = settings()['lib_name']
    with TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        tracked = export(tmp/'src')
        wheel = tmp/'dist'/f'{lib}-{version}-py3-none-any.whl'
        sdist = tmp/'dist'/f'{lib}-{version}.tar.gz'

        def commit():
            yield from tree_problems(version, tagged)
            yield from note_problems(version)
        def built():
            build(tmp/'src', tmp/'dist', full)
            yield from file_problems(wheel, sdist, tracked, lib)
        def tested():
            unpack_archive(sdist, tmp, filter='data')
            yield from test_problems(tmp/f'{lib}-{version}')
        def used(path):
            with TemporaryDirectory() as t:  # one after the other: each is 6 GB with --full
                (empty := Path(t)/'empty').mkdir()
                bin = install(path, Path(t)/'venv', full)
                package = (f for f in tracked if f.startswith(f'{lib}/'))
                sizes = {f: (tmp/'src'/f).stat().st_size for f in package}
                yield from use_problems(bin, empty, version, sizes, lib)

        fine = step('the commit is clean, its version new and in CHANGELOG.md', commit())
        fine &= step('wheel and sdist hold what they should', built())
        if not (wheel.exists() and sdist.exists()): return False
        for f in wheel, sdist:
            print(f'      {f.name}: {f.stat().st_size:,} bytes, {len(names(f))} files', flush=True)
        fine &= step('tests of the project pass in the unpacked sdist', tested())
        for f in wheel, sdist:
            fine &= step(f'{f.name}, installed, works in an empty folder', used(f))
        if out and fine:
            Path(out).mkdir(parents=True, exist_ok=True)
            for f in wheel, sdist: print(f'{copy(f, out)} written')
    return fine

def main():
    p = ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--full', action='store_true', help='build and install as pip does, 3 GB twice')
    p.add_argument('--tagged', action='store_true', help='the tag is there, on this commit')
    p.add_argument('--out', help='folder for the wheel and the sdist that passed; must be empty')
    p.add_argument('--notes', action='store_true', help='only print the section of CHANGELOG.md')
    args, version = p.parse_args(), settings()['version']
    if args.notes: return print(dict(sections())[version])
    if args.out and any(Path(args.out).glob('*')): sys.exit(f'{args.out} is not empty.')
    if not check(version, args.full, args.tagged, args.out):
        sys.exit(f'{version} cannot be released yet.')
    print(f'{version} can be released: CONTRIBUTING.md says how.')

if __name__ == '__main__': main()
