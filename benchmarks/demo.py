"""Run the demo with seeds 0, 1, 2, write its record and draw it.

`python -m benchmarks.demo` writes ham_nb/assets/results/demo.json and nbs/images/demo.png."""
import json
import os
import platform
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt

from ham_nb.card import by_head, read_card
from ham_nb.cli import train_command
from ham_nb.plots import STYLE, plot_curves

ROOT = Path(__file__).parents[1]
RECORD = ROOT/'ham_nb/assets/results/demo.json'
SEEDS = 0, 1, 2
SHOWN = {'HAM, discriminant': ('ham', 'discriminant'),
         'frozen, discriminant': ('frozen', 'discriminant'),
         'HAM, linear': ('ham', 'linear'), 'one adapter, linear': ('sequential', 'linear')}


def rows(out: Path) -> list: # One for each method, head and seed
    "The runs of a demo, read from their cards"
    found = []
    for folder in sorted(p.parent for p in out.rglob('results.json')):
        c = read_card(folder)
        for head, of in by_head(c).items():
            found.append(dict(method=c['method'], head=head, seed=c['config']['seed'],
                              metrics=of['metrics'], accuracy_matrix=of['accuracy_matrix'],
                              seconds=round(sum(c['seconds_per_task']), 1), versions=c['versions']))
    return found


def draw(record: dict, path: Path):
    "The accuracy after each task, mean and range of the seeds"
    def seeds(method, head): return [r['accuracy_matrix'] for r in record['runs']
                                     if (r['method'], r['head']) == (method, head)]
    def final(*of): return 100 * mean(mean(R[-1]) for R in seeds(*of))
    gain = final('ham', 'discriminant') - final('sequential', 'linear')
    with plt.style.context(STYLE):
        _, ax = plt.subplots(figsize=(7.2, 3.4))
        plot_curves({name: seeds(*of) for name, of in SHOWN.items()}, ax,
                    title=f'On digits the head decides: {gain:.0f} points')
        plt.gcf().savefig(path, dpi=160)


if __name__ == '__main__':
    with TemporaryDirectory() as tmp:
        for seed in SEEDS:
            line = f'--preset demo --seed {seed} --device cpu --out {tmp}/{seed}'
            assert not train_command(line.split()), line
        record = dict(command='ham-train --preset demo --seed S, for S in 0, 1, 2',
                      cpu=f'{os.cpu_count()} cores, {platform.machine()}', runs=rows(Path(tmp)))
    RECORD.write_text(json.dumps(record, indent=0) + '\n', encoding='utf-8')
    draw(record, ROOT/'nbs/images/demo.png')
