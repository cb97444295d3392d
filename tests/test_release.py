"Releases: what `make release` looks at, and workflows, which run only on GitHub"
import os
import re
import shlex
import sysconfig
from pathlib import Path

import pytest
import yaml
from packaging.version import Version

import links
import release

root, cfg = links.root, links.settings()

# -- scripts/release.py

@pytest.fixture
def commit(tmp_path, monkeypatch):
    "A repository with one commit, and git for it alone: no other is found, no settings are read"
    repo = tmp_path/'repo'
    repo.mkdir()
    monkeypatch.setattr(release, 'root', repo)
    alone = dict(GIT_CEILING_DIRECTORIES=tmp_path, GIT_DIR=repo/'.git', GIT_WORK_TREE=repo,
                 GIT_CONFIG_GLOBAL=os.devnull, GIT_CONFIG_SYSTEM=os.devnull)
    people = {f'GIT_{who}_{what}': 'a@b' for who in ('AUTHOR', 'COMMITTER')
              for what in ('NAME', 'EMAIL')}
    for k, v in {**alone, **people}.items(): monkeypatch.setenv(k, str(v))
    (repo/'CHANGELOG.md').write_text('# Notes\n\n## 0.2\n\n### New\n\nall\n\n## 0.1\n\nx\n')
    for args in 'init -q', 'add .', 'commit -qm 1': release.git(*args.split())
    return release.git

def found(version, tagged=False): return [*release.tree_problems(version, tagged)]

def test_the_commit_is_clean_and_not_tagged(commit):
    assert found('0.2') == []
    commit('tag', 'v0.2')
    assert 'v0.2 exists' in found('0.2')[0] and found('0.3') == []
    (release.root/'new').write_text('')
    assert '1 files' in found('0.3')[0]

def test_a_tag_stands_on_the_commit(commit):
    assert 'v0.2 is not on' in found('0.2', tagged=True)[0]
    commit('tag', '-a', 'v0.2', '-m', 'x')
    assert found('0.2', tagged=True) == []
    commit('commit', '--allow-empty', '-qm', '2')
    assert 'v0.2 is not on' in found('0.2', tagged=True)[0]

def test_notes_begin_with_the_version(commit):
    assert release.sections() == [('0.2', '### New\n\nall'), ('0.1', 'x')]
    assert [*release.note_problems('0.2')] == []
    assert "begins with '0.2'" in next(release.note_problems('0.1'))
    (release.root/'CHANGELOG.md').write_text('## 0.3\n\n## 0.2\n\nall\n')
    assert 'says nothing' in next(release.note_problems('0.3'))

def test_this_changelog_begins_with_the_version():
    assert [*release.note_problems(cfg['version'])] == []

def test_relative_links():
    text = '[a](https://x.y/z) [b](nbs/b.ipynb#c) [d](#d) `[e](e)` <img src="f.png">'
    text += '\n```\n[g](g)\n```'
    assert release.relative_links(text) == ['nbs/b.ipynb#c', 'f.png']

def test_required_follows_requirements_and_no_others():
    names = {d.name.lower() for d in release.required(['timm', 'nowhere; python_version < "3"'])}
    assert {'timm', 'torch', 'torchvision', 'safetensors', 'sympy'} <= names
    assert not {'pytest', 'nbdev', 'nowhere', 'ham_nb', 'ham-nb'} & names

def test_a_step_tells_what_failed(capsys):
    def fails():
        yield 'first'
        release.git('no-such-command')
    assert release.step('empty', iter(())) and not release.step('full', fails())
    yes, no, *said = capsys.readouterr().out.splitlines()
    assert yes.startswith('yes empty (') and no.startswith('no  full (') and 'first' in said[0]
    assert 'no-such-command' in ''.join(said[1:])

@pytest.mark.skipif(not (root/'.git').exists(), reason='not a git checkout')
def test_the_sdist_holds_every_tracked_file(tmp_path):
    tracked = release.export(tmp_path/'src')
    flags = '--sdist', '--no-isolation', '--outdir', tmp_path
    release.python('-m', 'build', *flags, cwd=tmp_path/'src')
    held = release.names(next(tmp_path.glob('*.gz')))
    assert [*release.sdist_problems(held, tracked)] == []
    assert {'settings.ini', 'nbs/00_lowrank.ipynb', 'tests/conftest.py'} <= held
    assert 'lacks setup.py' in next(release.sdist_problems(held - {'setup.py'}, tracked))
    assert 'not tracked' in next(release.sdist_problems(held | {'x'}, tracked))

def test_wheel_problems():
    tracked = {'ham_nb/a.py', 'ham_nb/assets/b', 'setup.py'}
    assert [*release.wheel_problems({'ham_nb/a.py', 'ham_nb/assets/b'}, tracked, 'ham_nb')] == []
    lacks, holds = release.wheel_problems({'ham_nb/a.py', 'tests/x.py'}, tracked, 'ham_nb')
    assert 'lacks ham_nb/assets/b' in lacks and 'holds tests/x.py' in holds

# -- workflows

class Loader(yaml.SafeLoader): "YAML 1.2 where it matters: `on` is a word"

Loader.yaml_implicit_resolvers = {
    k: [r for r in v if r[0] != 'tag:yaml.org,2002:bool'] if k in 'oO' else v
    for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}

files = sorted((root/'.github'/'workflows').glob('*.yml'))
flows = {f.stem: yaml.load(f.read_text(encoding='utf-8'), Loader) for f in files}
jobs = {f'{flow}.{name}': job for flow, o in flows.items() for name, job in o['jobs'].items()}
steps = [(name, step) for name, job in jobs.items() for step in job['steps']]
each_job = pytest.mark.parametrize('job', jobs.values(), ids=jobs)

def commands():
    "Each as its words; those of steps that are a program of many lines are left out"
    for _, step in steps:
        if len(lines := step.get('run', '').strip().splitlines()) == 1:
            line = re.sub(r'\$\{\{.*?\}\}', 'x', lines[0])
            yield from map(shlex.split, line.split(' && '))

def versions(job):
    "Pythons that a job asks for, its matrix filled in"
    matrix = job.get('strategy', {}).get('matrix', {})
    named = [*matrix.get('python', []), *(o['python'] for o in matrix.get('include', []))]
    pythons = [s['with'] for s in job['steps'] if 'setup-python' in s.get('uses', '')]
    asked = [o['python-version'] for o in pythons]
    return [v for a in asked for v in (named if 'matrix' in a else [a])]

def test_there_are_workflows(): assert {*flows} == {'docs', 'publish', 'test'}

def test_every_make_target_exists():
    makefile = (root/'Makefile').read_text(encoding='utf-8')
    targets = {*' '.join(re.findall(r'^([a-z][a-z -]*):(?!=)', makefile, re.M)).split()}
    called = [w for c in commands() if c[0] == 'make' for w in c[1:] if '=' not in w]
    assert {'dev', 'test', 'docs', 'release'} <= {*called} <= targets

def test_every_script_and_test_that_is_called_exists():
    words = [w for c in commands() for w in c]
    ours = [w for w in words if re.match(r'(scripts|tests|benchmarks|nbs|docs|\.ci)/', w)]
    assert ours and [w for w in ours if not (root/w).is_file()] == []

def test_every_command_of_the_environment_exists():
    called = {Path(w).name for c in commands() for w in c if re.match(r'\.venv/(bin|Scripts)/', w)}
    there = {f.stem for f in Path(sysconfig.get_path('scripts')).iterdir()}
    own = {l.split('=')[0].strip() for l in cfg['console_scripts'].strip().splitlines()}
    assert called and called <= there | own
    assert {c[0] for c in commands() if c[0].startswith('ham-')} <= own

@each_job
def test_pythons(job):
    assert all(Version(v) >= Version(cfg['min_python']) for v in versions(job))
    assert all(isinstance(v, str) for v in versions(job)), 'quote it: 3.10 is 3.1'

def test_the_oldest_python_is_tested():
    assert cfg['min_python'] in versions(jobs['test.test']) + versions(jobs['test.wheel'])

@each_job
def test_a_job_names_what_there_is(job):
    flow = next(o for o in flows.values() if job in o['jobs'].values())
    needs = job.get('needs', [])
    assert {*([needs] if isinstance(needs, str) else needs)} <= {*flow['jobs']}
    matrix = job.get('strategy', {}).get('matrix', {})
    known = {*matrix, *(k for o in matrix.get('include', []) for k in o)}
    assert {*re.findall(r'matrix\.(\w+)', yaml.dump(job))} <= known
    for o in matrix.get('include', []): assert {*o} == known - {'include'}, 'no empty values'
    uses = [s['uses'] for s in job['steps'] if 'uses' in s]
    assert all(re.fullmatch(r'[\w-]+/[\w./-]+@(v\d+|release/v\d+)', u) for u in uses)

def test_shell_lines_are_not_filled_in_with_names_of_branches_or_tags():
    for name, step in steps:
        filled = re.findall(r'\$\{\{(.*?)\}\}', step.get('run', ''))
        assert not [f for f in filled if 'github.' in f], name

def test_docs_are_built_by_make():
    assert ['make', 'docs'] in [shlex.split(s.get('run', '')) for s in jobs['docs.build']['steps']]

def test_only_a_tag_publishes():
    assert flows['publish']['on'] == {'push': {'tags': ['v*']}}
    publish = [n for n, s in steps if s.get('uses', '').startswith('pypa/gh-action-pypi-publish@')]
    assert publish == ['publish.publish']
    writers = {n for n, j in jobs.items() if 'write' in j.get('permissions', {}).values()}
    assert writers == {'docs.deploy', 'publish.publish', 'publish.announce'}
    assert all(o['permissions'] == {'contents': 'read'} for o in flows.values())

def test_what_is_published_was_checked():
    build, fresh, publish, announce = flows['publish']['jobs'].values()
    assert (fresh['needs'], publish['needs'], announce['needs']) == ('build', 'fresh', 'publish')
    called = [c for c in commands() if c[:2] == ['make', 'release']]
    assert called == [['make', 'release', 'FLAGS=--tagged --full --out dist']]
    assert publish['environment'] == 'pypi' and publish['permissions'] == {'id-token': 'write'}
    assert 'checkout' not in yaml.dump([fresh, publish]), 'only what was checked is at hand'
