"""The search behind the defaults: `python -m benchmarks.search --data-root DIR`.

Each run leaves a row in ham_nb/assets/results/search.json, see `benchmarks.records`. It is tested
on 20 further training images of each class, in class orders that no reported run uses. Runs that
have a row are skipped."""
import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context

import torch

from ham_nb.drift import DiscriminantHead
from ham_nb.learn import begin

from .experiments import VALIDATION, Experiment
from .records import SCHEMA, trial_of
from .study import ROOT, commit, parser, rounded

COMMAND = 'python -m benchmarks.search --data-root DIR --weights FILE'
RECORD = ROOT/'ham_nb/assets/results/search.json'
# in the unit of the record, see `per_variance`
ALLOWANCES = 0., .15, .2, .25, .3, .4, .5
FIGURES = 'final_accuracy', 'average_incremental_accuracy', 'forgetting'
GRID = {50: ((1, 0), (2, 5), (2, 10), (3, 2), (3, 4), (3, 8), (4, 2), (4, 4), (4, 8), (5, 3),
             (6, 2), (6, 4), (8, 2), (10, 4)),
        10: ((1, 0), (2, 2), (2, 5), (2, 10), (3, 2), (3, 4), (3, 8), (4, 2), (4, 4), (5, 3),
             (6, 2), (6, 4), (8, 2))}
SD_LORA = ((50, (1, 0)), (50, (3, 8)), (50, (4, 4)), (50, (6, 4)), (10, (1, 0)), (10, (3, 8)))


@dataclass(frozen=True)
class Trial:
    "A run on validation images: tasks start at `first`, after `half` tasks half of it is left"
    tasks: int
    seed: int
    first: float
    half: float # 0 keeps it
    method: str = 'ham'
    options: dict = field(default_factory=dict)
    run: dict = field(default_factory=dict)

    def experiment(self) -> Experiment:
        options = starting(self.first, self.half, self.tasks) | self.options
        return Experiment(self.method, options, self.tasks, self.seed, run=self.run,
                          validation=True)


def starting(first: float, half: float, tasks: int) -> dict:
    "The settings of HAM that start its tasks so; they count classes"
    if not half: return dict(first_importance=float(first), halving_classes=0.)
    rest = half - 1
    return dict(first_importance=first * half / rest, halving_classes=100 / tasks * rest)


def per_variance(tasks: int) -> float:
    """Times an allowance of the record, which is a share of the squared miss of a class left out,
    a share of the variance"""
    classes = 100 // tasks
    return classes / (classes - 1)


def plan() -> list:
    "Steps of HAM and of SD-LoRA in two orders, then variants of HAM in one"
    trials = [Trial(tasks, seed, *s) for seed in VALIDATION for tasks, grid in GRID.items()
              for s in grid]
    trials += [Trial(tasks, seed, *s, method='sd-lora-steps') for seed in VALIDATION
               for tasks, s in SD_LORA]
    def one(first, half, method='ham', run=None, **options):
        return Trial(50, VALIDATION[0], first, half, method, options, run or {})
    anchored = ((3, 8), 20.), ((3, 8), 100.), ((4, 4), 50.), ((3, 0), 300.), ((2, 0), 100.)
    trials += [one(*s, 'ham-anchored', anchor=a) for s, a in anchored]
    trials += [one(3, 8, shared_start=False), one(3, 8, 'ham-layer'), one(3, 8, group_rank=0)]
    trials += [one(3, 8, 'ungrouped', shared_start=False)]
    return trials + [one(3, 8, run=r) for r in (dict(drift_views=3), dict(rank=16))]


def measure(t: Trial, o: argparse.Namespace) -> dict:
    "One row: the figures under each allowance"
    torch.set_num_threads(1)
    e = t.experiment()
    run = begin(e.stream(o.data_root), method=e.make_method(), weights=o.weights, progress=False,
                device=o.device, precision=o.precision, **e.settings() | dict(head='discriminant'))
    d, unit = run.model.num_features, per_variance(t.tasks)
    run.heads |= {f'{a:g}': DiscriminantHead(d, allowance=a * unit) for a in ALLOWANCES}
    c = run.learn().card
    found = {a: [f['metrics'][k] for k in FIGURES] for a, f in c['extra_heads'].items()}
    precision = c['config']['precision']
    return dict(schema=SCHEMA, **vars(t), allowances=rounded(found), precision=precision,
                versions=c['versions'], commit=commit())


def recorded() -> list: return json.loads(RECORD.read_text())['rows'] if RECORD.exists() else []


def key(trial: dict) -> str: return json.dumps([trial[k] for k in Trial.__dataclass_fields__])


def write(rows: list):
    "A line for each run"
    lines = ',\n'.join('  ' + json.dumps(r) for r in rows)
    head = f'"command": {json.dumps(COMMAND)}, "figures": {json.dumps(FIGURES)}'
    RECORD.write_text(f'{{{head},\n "rows": [\n{lines}\n]}}\n')


def main(argv: list|None = None) -> int:
    o, rows = parser('search', __doc__).parse_args(argv), recorded()
    done = {key(trial_of(r)) for r in rows}
    todo = [t for t in plan() if key(vars(t)) not in done]
    with ProcessPoolExecutor(o.jobs, get_context('spawn')) as pool:
        for row in as_completed([pool.submit(measure, t, o) for t in todo]):
            rows.append(row.result())
            write(rows)
            print(f'{len(rows)} of {len(plan())}', flush=True)
    return 0


if __name__ == '__main__': sys.exit(main())
