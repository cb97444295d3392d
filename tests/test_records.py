"""The records behind the tutorials.

They parse, name their command, agree with their experiment, and the pages show what they say."""
import inspect
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import docs_check
from benchmarks import search, study
from benchmarks.experiments import BACKBONE, EXPERIMENTS, HEADS, VALIDATION, Experiment
from benchmarks.records import SCHEMA, settings_of, today, trial_of
from ham_nb.backbone import NANO
from ham_nb.controls import Folded
from ham_nb.drift import DiscriminantHead
from ham_nb.ham import HAM
from ham_nb.images import toy
from ham_nb.learn import begin
from ham_nb.metrics import all_metrics
from ham_nb.scaling import start_importance
from ham_nb.stream import TaskStream

RECORDS = sorted(study.RECORDS.glob('*.json'))
each_record = pytest.mark.parametrize('path', RECORDS, ids=lambda p: p.stem)
KEPT = 'final_accuracy', 'average_incremental_accuracy', 'forgetting'
TABLES = [('tutorials/comparison', ''), ('tutorials/ablations', ''),
          ('tutorials/speed', ''), ('index', 'study('), ('tutorials/quickstart', 'RECORD')]

def as_json(o): return json.loads(json.dumps(o))

def small(stream, **settings):
    "`begin` with the bundled backbone"
    return begin(stream, **settings | dict(backbone=NANO, image_size=32, weights=None))

def toy_stream(e, root): return TaskStream(*toy(per_class=8), tasks=e.tasks, seed=e.seed)

# -- what they say

@each_record
def test_a_record_names_its_command_and_holds_its_numbers(path):
    r = json.loads(path.read_text())
    assert r['name'] == path.stem and r['command'] == study.command(path.stem, r)
    assert r['minutes'] > 0 and {'torch', 'timm', 'ham_nb', 'hardware'} <= r['versions'].keys()
    for head, found in r['heads'].items():
        again = all_metrics(found['accuracy_matrix'])
        for k in KEPT: assert found['metrics'][k] == pytest.approx(again[k], abs=1e-4), (head, k)

def assert_of(r, e):
    "A record is of an experiment"
    c, said, method, wanted = r['config'], settings_of(r), e.make_method(), e.settings()
    assert (said.method, said.settings) == (method.name, as_json(method.settings))
    assert said.train == as_json(vars(wanted['train']))
    assert [*r['heads']] == said.heads == wanted['head'].split(',')
    assert (c['tasks'], c['seed'], c['class_seed']) == (e.tasks, e.seed, e.seed)
    given = {k: p.default for k, p in inspect.signature(begin).parameters.items()} | wanted
    for k in 'drift_views', 'test_every', 'targets', 'rank': assert c[k] == given[k]

@each_record
def test_a_record_is_of_its_experiment(path):
    r = json.loads(path.read_text())
    assert_of(r, EXPERIMENTS[path.stem])
    c = r['config']
    assert c['precision'] == 'fp32' and c['preprocess']['size'] == 96 and c['backbone'] == BACKBONE
    assert c['dataset'] == 'cifar100' and c['limit_per_class'] == 100

def test_every_experiment_has_its_record(): assert study.wanted([]) == []

def test_old_settings_that_are_no_choice_any_more_are_compared():
    assert today('k-merge', dict(tau=.2, boost=1., merge='mean')) == ('k-merge', dict(tau=.2))
    assert today('ham', dict(anchor=20.)) == ('ham-anchored', dict(anchor=20.))
    with pytest.raises(ValueError, match='k-merge has first_importance 1.0, the record says 8.0'):
        today('k-merge', dict(boost=8.))

# -- what makes them

def test_experiments_can_be_made():
    assert len(EXPERIMENTS) > 50
    for name, e in EXPERIMENTS.items():
        assert re.fullmatch(r'[a-z0-9.-]+', name) and e.make_method().name == e.method
        assert e.method != 'joint' or e.tasks == 1

def kind(e): return '-'.join([e.method, *e.options, *e.train, *e.run])
KINDS = {kind(e): e for e in EXPERIMENTS.values()}

@pytest.mark.parametrize('e', KINDS.values(), ids=KINDS)
def test_an_experiment_of_each_kind_runs(e, monkeypatch):
    "Two tasks of the toy stream, one epoch, the bundled backbone"
    monkeypatch.setattr(Folded, 'at', 0)
    e = replace(e, tasks=min(e.tasks, 2), train=e.train | dict(epochs=1))
    settings = e.settings() | dict(head='discriminant', progress=False, device='cpu')
    run = small(toy_stream(e, None), method=e.make_method(), **settings).learn()
    assert run.tasks_done == e.tasks and 0 < run.card['metrics']['final_accuracy'] <= 1
    assert run.card['config']['method'] == e.method

def test_an_experiment_leaves_a_record_and_is_not_run_again(tmp_path, monkeypatch):
    "The whole way, on a toy stream with the bundled backbone"
    e = Experiment(tasks=4)
    monkeypatch.setattr(study, 'RECORDS', tmp_path/'records')
    monkeypatch.setattr(study, 'EXPERIMENTS', {'toy-4': e})
    monkeypatch.setattr(Experiment, 'stream', toy_stream)
    monkeypatch.setattr(study, 'begin', small)
    assert study.main(['--runs', str(tmp_path/'runs'), 'toy']) == 0
    r = study.record_of('toy-4')
    assert r['schema'] == SCHEMA and [*r['heads']] == HEADS.split(',') and len(r['reports']) == 4
    assert_of(r, e)
    assert study.wanted(['toy']) == []
    study.place('toy-4').unlink()
    assert study.main(['--runs', str(tmp_path/'runs'), 'toy']) == 0  # not the finished run again
    assert study.record_of('toy-4')['heads'] == r['heads']
    assert not (tmp_path/'runs'/'toy-4').exists()
    with pytest.raises(SystemExit, match='No experiment is named no'): study.wanted(['nothing'])

# -- the search

@pytest.fixture(scope='module')
def rows(): return {search.key(trial_of(r)): r for r in search.recorded()}

def test_the_search_is_that_of_its_plan(rows):
    found = json.loads(search.RECORD.read_text())
    assert found['command'] == search.COMMAND and found['figures'] == [*search.FIGURES]
    assert len(rows) == len(found['rows'])
    assert rows.keys() == {search.key(vars(t)) for t in search.plan()}
    reached = [v for r in rows.values() for figures in r['allowances'].values() for v in figures]
    assert all(0 <= v <= 1 for v in reached)

def test_the_default_is_what_the_search_found(rows):
    def row(*trial): return rows[search.key(vars(search.Trial(*trial)))]
    def reached(tasks, steps, share=.25):
        found = [row(tasks, order, *steps)['allowances'][f'{share:g}'] for order in VALIDATION]
        return np.mean([f[0] for f in found])
    best = {n: max(grid, key=lambda s: reached(n, s)) for n, grid in search.GRID.items()}
    ham = HAM()
    assert best == {50: (6, 4), 10: (3, 2)}
    at_fifty, at_ten = (search.starting(*best[tasks], tasks) for tasks in (50, 10))
    default = {k: ham.settings[k] for k in at_fifty}
    assert at_fifty == default
    for tasks, s in best.items():
        allowance = DiscriminantHead(1).allowance
        nearest = min(search.ALLOWANCES,
                      key=lambda a: abs(a * search.per_variance(tasks) - allowance))
        highest = max(reached(tasks, s, a) for a in search.ALLOWANCES)
        assert reached(tasks, s, nearest) > highest - .005
    for classes, rel in ((10, 1e-6), (50, .15)):
        starts = [start_importance(classes, *o.values()) for o in (default, at_ten)]
        assert starts[0] == pytest.approx(starts[1], rel=rel)

@pytest.mark.parametrize('tasks', search.GRID)
def test_a_trial_starts_its_tasks_where_it_says(tasks):
    for first, half in search.GRID[tasks]:
        classes = [(t + 1) * 100 // tasks for t in range(tasks)]
        steps = search.starting(first, half, tasks).values()
        starts = [start_importance(c, *steps) for c in classes]
        said = [first / (1 + t / half) if half else first for t in range(tasks)]
        assert starts == pytest.approx(said)

def test_a_trial_leaves_a_row(tmp_path, monkeypatch):
    monkeypatch.setattr(search, 'RECORD', tmp_path/'search.json')
    monkeypatch.setattr(Experiment, 'stream', lambda e, root: toy_stream(replace(e, tasks=2), root))
    monkeypatch.setattr(search, 'begin', small)
    t = search.Trial(50, 7, 3, 8, 'ham-anchored', dict(anchor=20.))
    o = SimpleNamespace(data_root=None, weights=None, device='cpu', precision=None)
    row = search.measure(t, o)
    search.write([row])
    assert search.recorded() == [row] and trial_of(row) == vars(t) and row['schema'] == SCHEMA
    assert [*row['allowances']] == [f'{a:g}' for a in search.ALLOWANCES]
    assert all(len(figures) == 3 for figures in row['allowances'].values())

# -- the pages

@pytest.mark.parametrize('page, cells', TABLES)
def test_the_pages_show_what_the_records_say(page, cells, monkeypatch):
    "Every stored table and number is the one that the cell draws from the records as they are"
    from execnb.shell import CaptureShell
    from nbdev.process import read_nb
    def ours(c): return c.cell_type == 'code' and (cells in c.source or 'import json' in c.source)
    def read():
        nb = read_nb(docs_check.nbs/f'{page}.ipynb')
        nb.cells = [c for c in nb.cells if ours(c)]
        return nb
    def shown(nb):
        found = [o['data'] for c in nb.cells for o in c.get('outputs', []) if 'data' in o]
        return [''.join(d.get('text/markdown', d['text/plain'])) for d in found]
    stored, again = shown(read()), read()
    monkeypatch.chdir((docs_check.nbs/page).parent)
    CaptureShell().run_all(again, exc_stop=True)
    assert stored and shown(again) == stored
