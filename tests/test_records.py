"The records behind the tutorials: they parse, name their command, agree with their experiment, and the pages show what they say"
import inspect
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

import docs_check
from benchmarks import search, study
from benchmarks.experiments import EXPERIMENTS, HEADS, LENGTHS, METHODS, ORDERS, VALIDATION, Experiment
from ham_nb.backbone import NANO
from ham_nb.learn import begin
from ham_nb.images import toy
from ham_nb.stream import TaskStream
from ham_nb.ham import HAM
from ham_nb.heads import DiscriminantHead
from ham_nb.metrics import all_metrics

RECORDS = sorted(study.RECORDS.glob('*.json'))
each_record = pytest.mark.parametrize('path', RECORDS, ids=lambda p: p.stem)
KEPT = 'final_accuracy', 'average_incremental_accuracy', 'forgetting'

@each_record
def test_a_record_names_its_command_and_holds_its_numbers(path):
    r = json.loads(path.read_text())
    assert r['name'] == path.stem and r['command'] == study.command(path.stem, r)
    assert r['minutes'] > 0 and {'torch', 'timm', 'ham_nb', 'hardware'} <= r['versions'].keys()
    for head, found in r['heads'].items():
        again = all_metrics(found['accuracy_matrix'])
        for k in KEPT: assert found['metrics'][k] == pytest.approx(again[k], abs=1e-4), (head, k)

@each_record
def test_a_record_is_of_its_experiment(path):
    r, e = json.loads(path.read_text()), EXPERIMENTS[path.stem]
    c, method = r['config'], e.make_method()
    assert (c['method'], c['method_settings']) == (method.name, json.loads(json.dumps(method.settings)))
    assert (c['tasks'], c['seed'], c['class_seed'], c['limit_per_class']) == (e.tasks, e.seed, e.seed, 100)
    wanted = json.loads(json.dumps(vars(e.settings()['train'])))
    heads = e.settings()['head'].split(',')
    assert c['train'] == wanted and [*r['heads']] == [c['head'], *c['beside']] == heads
    defaults = {k: p.default for k, p in inspect.signature(begin).parameters.items()}
    for k in 'backbone', 'drift_views', 'test_every', 'targets', 'rank': assert c[k] == (defaults | e.settings())[k]
    assert c['precision'] == 'fp32' and c['preprocess']['size'] == e.settings()['image_size'] and c['dataset'] == 'cifar100'

def test_every_experiment_has_its_record(): assert study.wanted([]) == []

def test_ham_ends_first_and_forgets_less_than_eight_points_at_ten_tasks():
    "In the mean of the class orders, under the default head"
    def reached(method, tasks, k):
        return np.mean([study.record_of(f'{method}-{tasks}-{s}')['heads']['discriminant']['metrics'][k] for s in ORDERS])
    for tasks in LENGTHS: assert max(METHODS, key=lambda m: reached(m, tasks, 'final_accuracy')) == 'ham'
    assert reached('ham', 10, 'forgetting') < .08

def test_experiments_can_be_made():
    assert len(EXPERIMENTS) > 50
    for name, e in EXPERIMENTS.items():
        assert re.fullmatch(r'[a-z0-9.-]+', name) and e.make_method().settings is not None
        assert e.method != 'joint' or e.tasks == 1

def test_an_experiment_leaves_a_record_and_is_not_run_again(tmp_path, monkeypatch):
    "The whole way, on a toy stream with the bundled backbone"
    e = Experiment('ham', tasks=4)
    monkeypatch.setattr(study, 'RECORDS', tmp_path/'records')
    monkeypatch.setattr(study, 'EXPERIMENTS', {'toy-4': e})
    monkeypatch.setattr(Experiment, 'stream', lambda self, root: TaskStream(*toy(per_class=8), tasks=4, seed=self.seed))
    def begin_small(stream, **settings): return begin(stream, **settings | dict(backbone=NANO, image_size=32, weights=None))
    monkeypatch.setattr(study, 'begin', begin_small)
    assert study.main(['--runs', str(tmp_path/'runs'), 'toy']) == 0
    r = json.loads((tmp_path/'records'/'toy-4.json').read_text())
    assert r['name'] == 'toy-4' and [*r['heads']] == HEADS.split(',') and len(r['reports']) == 4
    assert study.wanted(['toy']) == []
    study.place('toy-4').unlink()
    assert study.main(['--runs', str(tmp_path/'runs'), 'toy']) == 0  # measured again, not read from the finished run
    again = json.loads((tmp_path/'records'/'toy-4.json').read_text())
    assert again['heads'] == r['heads'] and not (tmp_path/'runs'/'toy-4').exists()
    with pytest.raises(SystemExit, match='No experiment is named nothing'): study.wanted(['nothing'])

def test_the_search_is_that_of_its_plan_and_the_default_is_its_result():
    found = json.loads(search.RECORD.read_text())
    rows = {search.key(r): r for r in found['rows']}
    assert found['command'] == search.COMMAND and found['figures'] == [*search.FIGURES]
    assert len(rows) == len(found['rows']) and rows.keys() == {search.key(vars(t)) for t in search.plan()}
    assert all(0 <= v <= 1 for r in rows.values() for figures in r['allowances'].values() for v in figures)
    def reached(tasks, s, share=.25):
        return np.mean([rows[search.key(vars(search.Trial(tasks, o, *s)))]['allowances'][f'{share:g}'][0] for o in VALIDATION])
    best = {tasks: max(grid, key=lambda s: reached(tasks, s)) for tasks, grid in search.GRID.items()}
    assert best == {50: (6, 4), 10: (3, 2)} and search.boosted(*best[50], 50) == dict(boost=HAM.boost, fade=HAM.fade)
    for tasks, s in best.items():
        nearest = min(search.ALLOWANCES, key=lambda a: abs(a * search.per_variance(tasks) - DiscriminantHead(1).allowance))
        assert reached(tasks, s, nearest) > max(reached(tasks, s, a) for a in search.ALLOWANCES) - .005
    at_ten = HAM(**search.boosted(*best[10], 10)).start_importance
    assert HAM().start_importance(10) == pytest.approx(at_ten(10)) and HAM().start_importance(50) == pytest.approx(at_ten(50), rel=.15)

@pytest.mark.parametrize('tasks', search.GRID)
def test_a_trial_starts_its_tasks_where_it_says(tasks):
    for first, half in search.GRID[tasks]:
        starts = [HAM(**search.boosted(first, half, tasks)).start_importance((t + 1) * 100 // tasks) for t in range(tasks)]
        assert starts == pytest.approx([first / (1 + t / half) if half else first for t in range(tasks)])

def test_a_trial_leaves_a_row(tmp_path, monkeypatch):
    monkeypatch.setattr(search, 'RECORD', tmp_path/'search.json')
    monkeypatch.setattr(Experiment, 'stream', lambda self, root: TaskStream(*toy(per_class=8), tasks=2, seed=self.seed))
    monkeypatch.setattr(search, 'begin', lambda stream, **s: begin(stream, **s | dict(backbone=NANO, image_size=32, weights=None)))
    t = search.Trial(50, 7, 3, 8, options=dict(anchor=20.))
    row = search.measure(t, SimpleNamespace(data_root=None, weights=None, device='cpu', precision=None))
    search.write([row])
    assert search.recorded() == [row] and search.key(row) == search.key(vars(t))
    assert [*row['allowances']] == [f'{a:g}' for a in search.ALLOWANCES] and all(len(v) == 3 for v in row['allowances'].values())

@pytest.mark.parametrize('page, cells', [('tutorials/comparison', ''), ('tutorials/ablations', ''), ('index', 'results/study')])
def test_the_pages_show_what_the_records_say(page, cells, monkeypatch):
    "Every stored table and number is the one that the cell draws from the records as they are"
    from execnb.shell import CaptureShell
    from nbdev.process import read_nb
    def read():
        nb = read_nb(docs_check.nbs/f'{page}.ipynb')
        nb.cells = [c for c in nb.cells if c.cell_type == 'code' and (cells in c.source or 'import json' in c.source)]
        return nb
    def shown(nb):
        found = [o['data'] for c in nb.cells for o in c.get('outputs', []) if 'data' in o]
        return [''.join(d.get('text/markdown', d['text/plain'])) for d in found]
    stored, again = shown(read()), read()
    monkeypatch.chdir((docs_check.nbs/page).parent)
    CaptureShell().run_all(again, exc_stop=True)
    assert stored and shown(again) == stored
