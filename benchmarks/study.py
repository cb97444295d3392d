"""The runs behind the tutorials: `python -m benchmarks.study --data-root DIR`.

Each leaves a record in ham_nb/assets/results/study/, see `benchmarks.records`. Experiments that
have one are skipped, and one that was cut short goes on from its last task; to measure again,
remove the record."""
import argparse
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from ham_nb.card import by_head
from ham_nb.device import PRECISIONS
from ham_nb.checkpoint import holds_run
from ham_nb.learn import begin, stop_on_signal
from ham_nb.run import Run

from .experiments import BACKBONE, EXPERIMENTS, Experiment
from .records import SCHEMA

ROOT = Path(__file__).parents[1]
RECORDS = ROOT/'ham_nb/assets/results/study'
DIGITS = 4  # a test set of 10,000 images in blocks of 1,000 has steps of 1e-3
REPORTED = ('group', 'opened', 'forced', 'similarities', 'importance', 'group_importances',
            'kept_energy', 'discarded_energy', 'rank_after')


def parser(name: str, description: str) -> argparse.ArgumentParser:
    "What the study and the search can be told"
    plain = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(f'python -m benchmarks.{name}', description=description,
                                formatter_class=plain)
    p.add_argument('--data-root', help='folder that holds cifar-100-python')
    p.add_argument('--weights', help=f'safetensors file of {BACKBONE}, instead of a download')
    p.add_argument('--device', help='cuda, mps or cpu; by default as ham-train picks it')
    p.add_argument('--precision', choices=PRECISIONS,
                   help='of matrix products; bf16 where the device has it by default')
    p.add_argument('--jobs', type=int, default=1,
                   help='runs side by side, a process with one thread each')
    return p


def options(argv: list|None) -> argparse.Namespace:
    p = parser('study', __doc__)
    p.add_argument('names', nargs='*',
                   help='experiments, or beginnings of their names; all by default')
    p.add_argument('--runs', type=Path, default=Path('runs/study'),
                   help='folder for what is not finished yet')
    p.add_argument('--list', action='store_true',
                   help='print the experiments that lack a record, and run none')
    return p.parse_args(argv)


def place(name: str) -> Path: return RECORDS/f'{name}.json'


def record_of(name: str) -> dict: return json.loads(place(name).read_text())


def wanted(names: list) -> list:
    "The experiments so named, or whose names so begin, that lack a record"
    odd = [w for w in names if not any(n.startswith(w) for n in EXPERIMENTS)]
    if odd: sys.exit(f'No experiment is named {odd[0]}.')
    known = [n for n in EXPERIMENTS if not names or n.startswith(tuple(names))]
    return [n for n in known if not place(n).exists()]


def rounded(o):
    "Floats to DIGITS digits after the point, in lists and dictionaries too"
    if isinstance(o, dict): return {k: rounded(v) for k, v in o.items()}
    if isinstance(o, list): return [rounded(v) for v in o]
    return round(o, DIGITS) if isinstance(o, float) else o


def commit() -> str|None:
    "Of the code, which is marked where it was changed since; records may come and go"
    def git(*args):
        done = subprocess.run(['git', *args], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip()
    changed = git('status', '--porcelain', 'ham_nb', 'benchmarks', ':!ham_nb/assets/results')
    return git('rev-parse', '--short', 'HEAD') + '-dirty' * bool(changed) or None


def command(name: str, card: dict) -> str:
    "What makes the record again, in the precision and on the kind of device of the run"
    device, precision = card['versions']['device'], card['config']['precision']
    given = f'--data-root DIR --weights FILE --device {device} --precision {precision}'
    return f'python -m benchmarks.study {name} {given}'


def record(name: str, run: Run, minutes: float) -> dict:
    "What is kept of a run"
    c = run.card
    kept = 'metrics', 'accuracy_matrix'
    heads = {h: {k: rounded(f[k]) for k in kept} for h, f in by_head(c).items()}
    reports = [{k: rounded(r[k]) for k in REPORTED if k in r} for r in c['merge_reports']]
    return dict(schema=SCHEMA, name=name, command=command(name, c), commit=commit(),
                minutes=round(minutes, 1), threads=torch.get_num_threads(), versions=c['versions'],
                config=c['config'], heads=heads, reports=reports)


def write(name: str, found: dict):
    "One line for each entry, so that a diff shows what changed"
    RECORDS.mkdir(parents=True, exist_ok=True)
    lines = ',\n'.join(f' {json.dumps(k)}: {json.dumps(v)}' for k, v in found.items())
    place(name).write_text(f'{{\n{lines}\n}}\n')


def measure(name: str, e: Experiment, o: argparse.Namespace):
    "Run one experiment in this process, and write its record"
    out = o.runs/name
    run = begin(e.stream(o.data_root), method=e.make_method(), weights=o.weights, out=out,
                resume=holds_run(out), progress=False, device=o.device, precision=o.precision,
                **e.settings())
    with stop_on_signal(run, out):
        while run.tasks_done < len(run.stream):
            run.learn_task()
            print(f'{name}: {run.tasks_done} of {len(run.stream)} tasks', flush=True)
    seconds = sum(run.card['seconds_per_task']) + sum(run.card['seconds_testing'])
    write(name, record(name, run, seconds / 60))
    shutil.rmtree(out)  # or the next measurement would find it finished
    reached = {h: f['metrics']['final_accuracy'] for h, f in record_of(name)['heads'].items()}
    print(name + ':', {h: f'{100 * a:.1f}' for h, a in reached.items()}, flush=True)


def side_by_side(names: list, o: argparse.Namespace) -> int:
    "Each experiment in a process of its own"
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    said = {'--data-root': o.data_root, '--weights': o.weights, '--device': o.device,
            '--precision': o.precision, '--runs': str(o.runs)}
    given = [a for option, value in said.items() if value for a in (option, value)]
    def start(name):
        typed = [sys.executable, '-m', 'benchmarks.study', name, *given]
        return subprocess.run(typed, env=env).returncode
    with ThreadPoolExecutor(o.jobs) as pool: codes = list(pool.map(start, names))
    return int(any(codes))


def main(argv: list|None = None) -> int:
    o = options(argv)
    names = wanted(o.names)
    if o.list: print('\n'.join(names))
    elif o.jobs > 1 or len(names) > 1: return side_by_side(names, o)
    else:
        for name in names: measure(name, EXPERIMENTS[name], o)
    return 0


if __name__ == '__main__': sys.exit(main())
