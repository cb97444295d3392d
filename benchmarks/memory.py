"""Peak memory and state size over 100 tasks (Linux or CUDA).

`python -m benchmarks.memory SIZE DEVICE PRECISION COMPILED` prints rows as JSON."""
import json
import sys
from pathlib import Path

import safetensors.torch
import torch

from ham_nb.adapters import trainable
from ham_nb.backbone import Preprocess
from ham_nb.drift import make_heads
from ham_nb.run import Run
from ham_nb.stream import TaskStream

from .subjects import SIZES, Bench, randomise
from .tables import TASKS


def reset_peak(device: torch.device):
    if device.type == 'cuda': return torch.cuda.reset_peak_memory_stats(device)
    Path('/proc/self/clear_refs').write_text('5')  # Linux: the peak of the resident set starts anew


def peak(device: torch.device) -> int:
    "Bytes since the last reset"
    if device.type == 'cuda': return torch.cuda.max_memory_allocated(device)
    lines = Path('/proc/self/status').read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith('VmHWM')).split()[1])


def measure(bench: Bench, tasks: int) -> list:
    model, layers, ham = bench.ham_layers(1)
    heads = make_heads('prototype', model.num_features)  # its class means are not measured
    pre = Preprocess(bench.size.image_size, (.5,) * 3, (.5,) * 3)
    run = Run(TaskStream.named('toy'), model, pre, layers, heads, ham)
    filled, rows = None, []
    for task in range(tasks):
        reset_peak(bench.device)
        ham.begin_task(layers, task, seed=0)
        step = bench.step(model, lambda: model(bench.x), trainable(layers), ham.penalty)
        for _ in range(2): step()
        randomise(layers)
        ham.end_task(layers, task, lambda: model(bench.x))
        if filled is None and len(ham.members) == ham.g_max: filled = task + 1
        size = len(safetensors.torch.save(run.state()))
        rows.append(dict(task=task + 1, peak_mb=peak(bench.device) / 2**20, state_bytes=size))
    return described(rows, filled)


def described(rows: list, filled: int) -> list:
    "The rows of some tasks by name, and the last one beside that in which the last group opened"
    first, last = rows[filled - 1], rows[-1]
    def name(r): return f'task {r["task"]}' + ' (the last group opens)' * (r is first)
    shown = [dict(subject=name(r), **r) for r in rows if r['task'] in (*TASKS, filled)]
    def ratio(k):
        return dict(subject=f'task {last["task"]} / task {filled}: {k}', value=last[k] / first[k])
    return [*shown, ratio('peak_mb'), ratio('state_bytes')]


if __name__ == '__main__':
    size, device, precision, compiled = sys.argv[1:]
    bench = Bench(SIZES[size], torch.device(device), precision, compiled == '1')
    print(json.dumps(measure(bench, TASKS[-1])))
