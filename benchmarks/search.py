"""The search behind the defaults: `python -m benchmarks.search --data-root DIR`, a row each in nbs/results/search.json.

Runs are tested on 20 further training images of each class, in class orders that no reported run uses. Those with a row are skipped."""
import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context

import torch

from ham_nb import heads
from ham_nb.backbone import PRECISIONS, pick_device, pick_precision
from ham_nb.continual import begin

from .experiments import BACKBONE, VALIDATION, Experiment
from .study import ROOT, commit, rounded

RECORD = ROOT/'nbs/results/search.json'
ALLOWANCES = 0., .15, .2, .25, .3, .4, .5
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
    names = {f'allowance-{a:g}': a for a in ALLOWANCES}
    heads.VARIANTS.update({n: (heads.DiscriminantHead, dict(allowance=a)) for n, a in names.items()})
    e, device = t.experiment(), pick_device(o.device)
    settings = e.settings() | dict(head=','.join(['discriminant', *names]))
    run = begin(e.stream(o.data_root), method=e.make_method(), weights=o.weights, progress=False, device=str(device),
                precision=pick_precision(device, o.precision), **settings)
    while run.tasks_done < len(run.stream): run.learn_task()
    found = {f'{a:g}': [run.card['beside'][n]['metrics'][k] for k in FIGURES] for n, a in names.items()}
    c = run.card
    return dict(vars(t), allowances=rounded(found), precision=c['config']['precision'], versions=c['versions'], commit=commit())


def written() -> dict:
    if RECORD.exists(): return json.loads(RECORD.read_text())
    return dict(command='python -m benchmarks.search --data-root DIR --weights FILE', rows=[])


def key(row: dict) -> str: return json.dumps([row[k] for k in Trial.__dataclass_fields__])


def write(rows: list):
    "A line for each run"
    lines = ',\n'.join('  ' + json.dumps(r) for r in rows)
    RECORD.write_text(f'{{"command": {json.dumps(written()["command"])}, "figures": {json.dumps(FIGURES)},\n "rows": [\n{lines}\n]}}\n')


def main(argv: list|None = None) -> int:
    p = argparse.ArgumentParser('python -m benchmarks.search', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data-root', required=True, help='folder that holds cifar-100-python')
    p.add_argument('--weights', help=f'safetensors file of {BACKBONE}, instead of a download')
    p.add_argument('--device', help='cuda, mps or cpu; the first of these that is there by default')
    p.add_argument('--precision', choices=PRECISIONS, help='of matrix products; bf16 where the device has it by default')
    p.add_argument('--jobs', type=int, default=1, help='runs side by side, a process with one thread each')
    o, rows = p.parse_args(argv), written()['rows']
    todo = [t for t in plan() if key(vars(t)) not in {key(r) for r in rows}]
    with ProcessPoolExecutor(o.jobs, get_context('spawn')) as pool:
        for done in as_completed([pool.submit(measure, t, o) for t in todo]):
            rows.append(done.result())
            write(rows)
            print(f'{len(rows)} of {len(plan())}', flush=True)
    return 0


if __name__ == '__main__': sys.exit(main())
