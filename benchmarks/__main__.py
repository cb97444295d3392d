"""Measure everything and write a record.

`python -m benchmarks` (sizes of a CPU) or `python -m benchmarks --device cuda`."""
import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import timm
import torch

from ham_nb.device import PRECISIONS, pick_device, pick_precision

from . import tables
from .subjects import SIZES, Bench

RECORDS = Path(__file__).parents[1]/'ham_nb/assets/results'


def options(argv: list|None) -> argparse.Namespace:
    p = argparse.ArgumentParser('python -m benchmarks', description=__doc__)
    p.add_argument('--device', default='cpu', help='cpu or cuda')
    p.add_argument('--size', choices=SIZES, help='what to train; the device decides by default')
    p.add_argument('--rounds', type=int, default=11, help='how often each subject is timed')
    p.add_argument('--precision', choices=PRECISIONS,
                   help='of matrix products; bf16 where the device has it by default')
    p.add_argument('--compile', action='store_true', help='compile the blocks with torch.compile')
    p.add_argument('--only', help=f'some of {", ".join(tables.ALL)}, separated by commas')
    p.add_argument('--out', type=Path,
                   help='file of the record; ham_nb/assets/results/speed[-variant].json by default')
    return p.parse_args(argv)


def machine(device: torch.device) -> dict:
    "What the numbers depend on"
    import peft
    describe = ['git', 'describe', '--always', '--dirty']
    done = subprocess.run(describe, cwd=RECORDS, capture_output=True, text=True)
    gpu = dict(gpu=torch.cuda.get_device_name(device)) if device.type == 'cuda' else {}
    return dict(cores=os.cpu_count(), threads=torch.get_num_threads(),
                processor=platform.machine(), **gpu, python=platform.python_version(),
                torch=torch.__version__, timm=timm.__version__, peft=peft.__version__,
                commit=done.stdout.strip() or None)


def main(argv: list|None = None) -> int:
    o = options(argv)
    device, start = pick_device(o.device), time.perf_counter()
    precision = pick_precision(device, o.precision)
    size = o.size or device.type
    bench = Bench(SIZES[size], device, precision, o.compile)
    wanted = o.only.split(',') if o.only else list(tables.ALL)
    if unknown := [w for w in wanted if w not in tables.ALL]:
        sys.exit(f'Unknown table {unknown[0]!r}, known are {", ".join(tables.ALL)}.')
    typed = ' '.join(['python -m benchmarks', *(sys.argv[1:] if argv is None else argv)])
    record = dict(command=typed, machine=machine(device), size=size, **vars(SIZES[size]),
                  precision=precision, compiled=o.compile, rounds=o.rounds, tables={})
    for name in wanted:
        print(f'\n## {name}\n', flush=True)
        record['tables'][name] = table = tables.ALL[name](bench, o.rounds)
        print(tables.markdown(table), flush=True)
    record['minutes'] = round((time.perf_counter() - start) / 60, 1)
    parts = size if size != 'cpu' else '', 'compiled' if o.compile else '', o.precision or ''
    variant = ''.join(f'-{v}' for v in parts if v)
    out = o.out or RECORDS/f'speed{variant}.json'
    out.write_text(json.dumps(record, indent=1) + '\n')
    print(f'\n{record["minutes"]} minutes; {out} written')
    return 0


if __name__ == '__main__': sys.exit(main())
