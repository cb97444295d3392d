"""The search behind the defaults: `python -m benchmarks.search --data-root DIR`, a row each in nbs/results/search.json.

Runs are tested on 20 further training images of each class, in class orders that no reported run uses. Those with a row are skipped."""
import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context

import torch

from ham_nb.learn import begin
from ham_nb.heads import DiscriminantHead

from .experiments import VALIDATION, Experiment
from .study import ROOT, commit, parser, rounded

COMMAND = 'python -m benchmarks.search --data-root DIR --weights FILE'
RECORD = ROOT/'nbs/results/search.json'
ALLOWANCES = 0., .15, .2, .25, .3, .4, .5  # in the unit of the record, see `per_variance`; it had no bound on them
FIGURES = 'final_accuracy', 'average_incremental_accuracy', 'forgetting'
GRID = {50: ((1, 0), (2, 5), (2, 10), (3, 2), (3, 4), (3, 8), (4, 2), (4, 4), (4, 8), (5, 3), (6, 2), (6, 4), (8, 2), (10, 4)),
        10: ((1, 0), (2, 2), (2, 5), (2, 10), (3, 2), (3, 4), (3, 8), (4, 2), (4, 4), (5, 3), (6, 2), (6, 4), (8, 2))}
BESIDE = ((50, (1, 0)), (50, (3, 8)), (50, (4, 4)), (50, (6, 4)), (10, (1, 0)), (10, (3, 8)))  # the same for SD-LoRA


@dataclass(frozen=True)
class Trial:
    "A run on validation images: the first task starts at `first`, and after `half` tasks half of it is left"
    tasks: int
    seed: int
    first: float
    half: float # 0 keeps it
    method: str = 'ham'
    options: dict = field(default_factory=dict)
    run: dict = field(default_factory=dict)

    def experiment(self) -> Experiment:
        options = boosted(self.first, self.half, self.tasks) | self.options
        return Experiment(self.method, options, self.tasks, self.seed, run=self.run, validation=True)


def boosted(first: float, half: float, tasks: int) -> dict:
    "The `boost` and `fade` of HAM, which count classes"
    if not half: return dict(boost=float(first), fade=0.)
    return dict(boost=first * half / (half - 1), fade=100 / tasks * (half - 1))


def per_variance(tasks: int) -> float:
    "The record gives an allowance as a share of the squared miss of a class left out; times this it is a share of the variance"
    classes = 100 // tasks
    return classes / (classes - 1)


def plan() -> list:
    "Steps of HAM and of SD-LoRA in two orders, then variants of HAM in one"
    trials = [Trial(tasks, seed, *s) for seed in VALIDATION for tasks, grid in GRID.items() for s in grid]
    trials += [Trial(tasks, seed, *s, method='sd-lora-steps') for seed in VALIDATION for tasks, s in BESIDE]
    first = VALIDATION[0]
    anchored = ((3, 8), 20.), ((3, 8), 100.), ((4, 4), 50.), ((3, 0), 300.), ((2, 0), 100.)
    trials += [Trial(50, first, *s, options=dict(anchor=a)) for s, a in anchored]
    trials += [Trial(50, first, 3, 8, options=o) for o in (dict(start='independent'), dict(importance='layer'), dict(group_rank=0))]
    trials += [Trial(50, first, 3, 8, 'ungrouped', options=dict(start='independent'))]
    return trials + [Trial(50, first, 3, 8, run=r) for r in (dict(drift_views=3), dict(rank=16))]


def measure(t: Trial, o: argparse.Namespace) -> dict:
    "One row: the figures under each allowance"
    torch.set_num_threads(1)
    e = t.experiment()
    run = begin(e.stream(o.data_root), method=e.make_method(), weights=o.weights, progress=False, device=o.device, precision=o.precision,
                **e.settings() | dict(head='discriminant'))
    run.beside = {f'{a:g}': DiscriminantHead(run.model.num_features, allowance=a * per_variance(t.tasks)) for a in ALLOWANCES}
    while run.tasks_done < len(run.stream): c = run.learn_task()
    found = {a: [f['metrics'][k] for k in FIGURES] for a, f in c['beside'].items()}
    return dict(vars(t), allowances=rounded(found), precision=c['config']['precision'], versions=c['versions'], commit=commit())


def recorded() -> list: return json.loads(RECORD.read_text())['rows'] if RECORD.exists() else []


def key(row: dict) -> str: return json.dumps([row[k] for k in Trial.__dataclass_fields__])


def write(rows: list):
    "A line for each run"
    lines = ',\n'.join('  ' + json.dumps(r) for r in rows)
    RECORD.write_text(f'{{"command": {json.dumps(COMMAND)}, "figures": {json.dumps(FIGURES)},\n "rows": [\n{lines}\n]}}\n')


def main(argv: list|None = None) -> int:
    o, rows = parser('search', __doc__).parse_args(argv), recorded()
    done = {key(r) for r in rows}
    todo = [t for t in plan() if key(vars(t)) not in done]
    with ProcessPoolExecutor(o.jobs, get_context('spawn')) as pool:
        for row in as_completed([pool.submit(measure, t, o) for t in todo]):
            rows.append(row.result())
            write(rows)
            print(f'{len(rows)} of {len(plan())}', flush=True)
    return 0


if __name__ == '__main__': sys.exit(main())
