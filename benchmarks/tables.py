"The tables of a record: each takes a `Bench` and a number of rounds and returns rows."
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryFile

import torch

from ham_nb.device import autocast
from ham_nb.backbone import Preprocess, first_block
from ham_nb.images import Images
from ham_nb.drift import make_head
from ham_nb.adapters import adapt, set_groups, trainable
from ham_nb.lowrank import LowRank
from ham_nb.merging import merge_into_group, merged_model
from ham_nb.similarity import delta_cosine
from ham_nb.callbacks import Log
from ham_nb.train import TrainConfig, train_task

from .subjects import SIZES, Bench
from .timing import alternate, ratio, summary

TASKS = (1, 5, 10, 50, 100)


def beside_floor(seconds: dict) -> list: # Rows
    "Each subject, and how many times the floor it took"
    return [dict(subject=name, **summary(s), to_floor=ratio(s, seconds['floor']))
            for name, s in seconds.items()]


def compared(seconds: dict, pairs: list) -> list: # Rows
    "How many times longer the first of a pair took than the second"
    return [dict(subject=f'{a} / {b}', **ratio(seconds[a], seconds[b])) for a, b in pairs]


def step(bench: Bench, rounds: int) -> list:
    "A training step at several tasks, against the floor"
    six, without = 'PEFT, 6 adapters', 'HAM without a rank budget'
    own = 'PEFT, one adapter per task'
    subjects = {'floor': bench.floor(), 'full fine-tuning': bench.full(), six: bench.peft(6),
                f'{six}, all trained': bench.peft(6, all_trained=True)}
    subjects |= {f'HAM, task {t}': bench.ham(t) for t in TASKS}
    subjects |= {f'{without}, task {t}': bench.ham(t, group_rank=0) for t in TASKS[1:]}
    subjects |= {f'{own}, task {t}': bench.peft(t) for t in TASKS}
    seconds = alternate(subjects, rounds, bench.device)
    pairs = [(f'HAM, task {t}', 'HAM, task 1') for t in (50, 100)]
    pairs += [('HAM, task 10', peft) for peft in (six, f'{six}, all trained', f'{own}, task 10')]
    return beside_floor(seconds) + compared(seconds, pairs)


def wide(bench: Bench, rounds: int) -> list:
    "The same with adapters on the MLP too"
    targets = 'attn.qkv,mlp.fc1,mlp.fc2'
    subjects = {'floor': bench.floor(), 'HAM, task 10': bench.ham(10, targets)}
    subjects |= {f'PEFT, {n} adapters': bench.peft(n, targets) for n in (6, 10)}
    seconds = alternate(subjects, rounds, bench.device)
    pairs = [('HAM, task 10', f'PEFT, {n} adapters') for n in (6, 10)]
    return beside_floor(seconds) + compared(seconds, pairs)


def parts(bench: Bench, rounds: int) -> list:
    "Where a step of HAM goes beyond the floor: first the adapter alone, then the groups"
    def without_groups():
        model, layers, _ = bench.ham_layers(1)
        set_groups(layers, [])
        return bench.step(model, lambda: model(bench.x), trainable(layers))
    subjects = {'floor': bench.floor(), 'one adapter, no room for groups': without_groups(),
                'one adapter and five groups': bench.ham(10)}
    return beside_floor(alternate(subjects, rounds, bench.device))


def random_adapter(r: int, g: torch.Generator, device: torch.device) -> dict:
    "Twelve 768 -> 2304 layers with falling singular values"
    def factors(): return torch.randn(r, 768, generator=g) / 8, torch.randn(2304, r, generator=g)
    def layer():
        A, B = factors()
        return LowRank(A.to(device), (B * .9 ** torch.arange(r)).to(device))
    return {f'blocks.{i}': layer() for i in range(12)}


def merge(bench: Bench, rounds: int) -> list:
    "Similarity and merge of an adapter of rank 16 into a group of rank 64, from factors and dense"
    g = torch.Generator().manual_seed(0)
    group, new = (random_adapter(r, g, bench.device) for r in (64, 16))
    found = {}
    def factors():
        found['factors'] = delta_cosine(new, group).item(), merge_into_group(group, new, 64)[0]
    def dense():
        D, G = (torch.stack([p.delta() for p in a.values()]) for a in (new, group))
        U, S, Vh = torch.linalg.svd(G + D, full_matrices=False)
        c = torch.cosine_similarity(D.flatten(), G.flatten(), dim=0).item()
        found['dense'] = c, (U[..., :64] * S[:, None, :64]) @ Vh[:, :64]
    seconds = alternate({'factors': factors, 'dense': dense}, 5, bench.device)
    c, merged = found['factors']
    group, new = ({path: LowRank(p.A.double(), p.B.double()) for path, p in a.items()}
                  for a in (group, new))
    dense()  # once more, in float64 and not timed: what float32 is compared with
    got, (true_c, true) = torch.stack([p.delta() for p in merged.values()]), found['dense']
    error = ((got - true).flatten(1).norm(dim=1) / true.flatten(1).norm(dim=1)).max().item()
    return [*(dict(subject=name, **summary(s)) for name, s in seconds.items()),
            *compared(seconds, [('dense', 'factors')]),
            dict(subject='largest difference of the cosine', value=abs(c - true_c)),
            dict(subject='largest relative difference of a merged layer', value=error)]


def export(bench: Bench, rounds: int) -> list:
    "Forward of the exported model against the plain timm model"
    model, _, _ = bench.ham_layers(10)
    exported, plain = merged_model(model), bench.backbone()
    def forward(m):
        @torch.no_grad()
        def run():
            with autocast(bench.device, bench.precision): m(bench.x)
        return run
    subjects = {'exported': forward(exported), 'plain timm': forward(plain)}
    seconds = alternate(subjects, 4 * rounds, bench.device)
    same = type(exported) is type(plain) and [*exported.state_dict()] == [*plain.state_dict()]
    return [*(dict(subject=name, **summary(s)) for name, s in seconds.items()),
            *compared(seconds, [('exported', 'plain timm')]),
            dict(subject='same type and keys', value=same)]


def memory(bench: Bench, rounds: int) -> list:
    "Peak memory and size of the state over 100 tasks, in a process of its own"
    size = next(name for name, s in SIZES.items() if s == bench.size)
    arguments = size, str(bench.device), bench.precision, str(int(bench.compiled))
    done = subprocess.run([sys.executable, '-m', 'benchmarks.memory', *arguments], text=True,
                          cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def loop(bench: Bench, rounds: int) -> list:
    "Images per second of the whole training loop, against the bare step"
    size = bench.size
    n = 16 * size.bs
    sink = TemporaryFile('w')
    def write(line): print(json.dumps(line), file=sink, flush=True)  # as a run writes its log
    x, y = torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8), torch.arange(n) % 10
    images = Images(x, y, [str(i) for i in range(10)])
    pre = Preprocess(size.image_size, (.5,) * 3, (.5,) * 3)
    def train(blocks=None, cached_views=0):
        model = bench.backbone()
        layers = adapt(model, rank=size.rank, blocks=blocks)
        head = make_head('linear', model.num_features)
        set_groups(layers, [])
        head.begin_task(10, bench.device)
        cfg = TrainConfig(epochs=2, bs=size.bs, lr=size.lr, cached_views=cached_views)
        bench.prepare(model)
        settings = dict(precision=bench.precision, block=first_block(layers))
        return lambda: train_task(model, pre, head, images, trainable(layers), cfg, [Log(write)],
                                  **settings)
    upper = f'4..{len(bench.backbone().blocks) - 1}'
    model, layers, _ = bench.ham_layers(1)
    set_groups(layers, [])
    bare = bench.step(model, lambda: model(bench.x), trainable(layers))
    subjects = {'bare step': bare, 'whole loop': train(),
                'whole loop, adapters from block 4': train(upper),
                'the same, frozen prefix kept': train(upper, cached_views=1)}
    seconds = alternate(subjects, max(3, rounds // 4), bench.device, warmup=0)
    def speed(name):
        shown = size.bs if name == 'bare step' else 2 * n
        return round(shown / (summary(seconds[name])['ms'] / 1000), 1)
    return [dict(subject=name, images_per_second=speed(name)) for name in subjects]


ALL = dict(memory=memory, step=step, wide=wide, parts=parts, merge=merge, export=export, loop=loop)


def markdown(rows: list) -> str:
    "A table with a line for each row; columns are the union of all keys"
    def cell(v):
        if isinstance(v, dict):
            low, high = v['quartiles']
            return f'{v["ratio"]:.2f} ({low:.2f} to {high:.2f})'
        if isinstance(v, list): return ' to '.join(f'{x:.4g}' for x in v)
        return f'{v:.4g}' if isinstance(v, float) else str(v)
    keys = list(dict.fromkeys(k for r in rows for k in r))
    cells = [[cell(r[k]) if k in r else '' for k in keys] for r in rows]
    lines = [keys, ['---'] * len(keys), *cells]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)
