"Peak memory and state size over 100 tasks: `python -m benchmarks.memory SIZE DEVICE AMP COMPILED` prints rows as JSON (Linux or CUDA)."
import json
import sys
from pathlib import Path

import safetensors.torch
import torch

from ham_nb.learn import state_tensors
from ham_nb.heads import make_head
from ham_nb.adapters import trainable

from .subjects import SIZES, Bench, randomise
from .tables import TASKS


def reset_peak(device: torch.device):
    if device.type == 'cuda': torch.cuda.reset_peak_memory_stats(device)
    else: Path('/proc/self/clear_refs').write_text('5')  # Linux: the peak of the resident set starts anew


def peak(device: torch.device) -> int:
    "Bytes since the last reset"
    if device.type == 'cuda': return torch.cuda.max_memory_allocated(device)
    lines = Path('/proc/self/status').read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith('VmHWM')).split()[1])


def measure(bench: Bench, tasks: int) -> list:
    model, layers, ham = bench.ham_layers(1)
    head, filled, rows = make_head('prototype', model.num_features), None, []  # class means are left out of what is measured
    for task in range(tasks):
        reset_peak(bench.device)
        ham.begin_task(layers, task, seed=0)
        step = bench.step(model, lambda: model(bench.x), trainable(layers), ham.penalty)
        for _ in range(2): step()
        randomise(layers)
        ham.end_task(layers, task, lambda: model(bench.x))
        if filled is None and len(ham.members) == ham.g_max: filled = task + 1
        state = safetensors.torch.save(state_tensors(layers, head, ham))
        rows.append(dict(task=task + 1, peak_mb=peak(bench.device) / 2**20, state_bytes=len(state)))
    first, last = rows[filled - 1], rows[-1]
    shown = [r for r in rows if r['task'] in (*TASKS, filled)]
    return [*(dict(subject=f'task {r["task"]}' + (' (the last group opens)' if r is first else ''), **r) for r in shown),
            *(dict(subject=f'task {last["task"]} / task {filled}: {k}', value=last[k] / first[k]) for k in ('peak_mb', 'state_bytes'))]


if __name__ == '__main__':
    size, device, precision, compiled = sys.argv[1:]
    print(json.dumps(measure(Bench(SIZES[size], torch.device(device), precision, compiled == '1'), TASKS[-1])))
