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
from ham_nb.heads import make_head
from ham_nb.adapters import adapt, set_groups, trainable
from ham_nb.lowrank import LowRank
from ham_nb.merging import merge_into_group, merged_model
from ham_nb.similarity import similarity
from ham_nb.train import TrainConfig, Watch, train_task

from .subjects import SIZES, Bench
from .timing import alternate, ratio, summary

TASKS = (1, 5, 10, 50, 100)


def step(bench: Bench, rounds: int) -> list:
    "A training step at several tasks, against the floor"
    subjects = {'floor': bench.floor(), 'full fine-tuning': bench.full(), 'PEFT, 6 adapters': bench.peft(6),
                'PEFT, 6 adapters, all trained': bench.peft(6, all_trained=True)}
    subjects |= {f'HAM, task {t}': bench.ham(t) for t in TASKS}
    subjects |= {f'HAM without a rank budget, task {t}': bench.ham(t, group_rank=0) for t in TASKS[1:]}
    subjects |= {f'PEFT, one adapter per task, task {t}': bench.peft(t) for t in TASKS}
    seconds = alternate(subjects, rounds, bench.device)
    rows = [dict(subject=name, **summary(s), to_floor=ratio(s, seconds['floor'])) for name, s in seconds.items()]
    pairs = [(f'HAM, task {t}', 'HAM, task 1') for t in (50, 100)]
    pairs += [('HAM, task 10', 'PEFT, 6 adapters'), ('HAM, task 10', 'PEFT, 6 adapters, all trained'),
              ('HAM, task 10', 'PEFT, one adapter per task, task 10')]
    return rows + [dict(subject=f'{a} / {b}', **ratio(seconds[a], seconds[b])) for a, b in pairs]


def wide(bench: Bench, rounds: int) -> list:
    "The same with adapters on the MLP too"
    targets = 'attn.qkv,mlp.fc1,mlp.fc2'
    subjects = {'floor': bench.floor(), 'HAM, task 10': bench.ham(10, targets)}
    subjects |= {f'PEFT, {n} adapters': bench.peft(n, targets) for n in (6, 10)}
    seconds = alternate(subjects, rounds, bench.device)
    rows = [dict(subject=name, **summary(s), to_floor=ratio(s, seconds['floor'])) for name, s in seconds.items()]
    pairs = [('HAM, task 10', f'PEFT, {n} adapters') for n in (6, 10)]
    return rows + [dict(subject=f'{a} / {b}', **ratio(seconds[a], seconds[b])) for a, b in pairs]


def parts(bench: Bench, rounds: int) -> list:
    "Where a step of HAM goes beyond the floor: first the adapter alone, then the groups"
    def without_groups():
        model, layers, _ = bench.ham_layers(1)
        set_groups(layers, [])
        return bench.step(model, lambda: model(bench.x), trainable(layers))
    subjects = {'floor': bench.floor(), 'one adapter, no room for groups': without_groups(), 'one adapter and five groups': bench.ham(10)}
    seconds = alternate(subjects, rounds, bench.device)
    return [dict(subject=name, **summary(s), to_floor=ratio(s, seconds['floor'])) for name, s in seconds.items()]


def merge(bench: Bench, rounds: int) -> list:
    "Similarity and merge of twelve 768 -> 2304 layers, rank 16 into rank 64, from factors and dense"
    g = torch.Generator().manual_seed(0)
    def adapter(r): return {f'blocks.{i}': LowRank(*(t.to(bench.device) for t in (torch.randn(r, 768, generator=g) / 8,
                                                     torch.randn(2304, r, generator=g) * .9 ** torch.arange(r)))) for i in range(12)}
    group, new, results = adapter(64), adapter(16), {}
    def factors():
        results['factors'] = similarity(new, group), merge_into_group(group, new, group_rank=64)[0]
    def dense():
        D, G = (torch.stack([p.delta() for p in a.values()]) for a in (new, group))
        U, S, Vh = torch.linalg.svd(G + D, full_matrices=False)
        results['dense'] = torch.cosine_similarity(D.flatten(), G.flatten(), dim=0).item(), (U[..., :64] * S[:, None, :64]) @ Vh[:, :64]
    seconds = alternate({'factors': factors, 'dense': dense}, 5, bench.device)
    c, merged = results['factors']
    group, new = ({path: LowRank(p.A.double(), p.B.double()) for path, p in a.items()} for a in (group, new))
    dense()  # once more, in float64 and not timed: what float32 is compared with
    got, (true_c, true) = torch.stack([p.delta() for p in merged.values()]), results['dense']
    error = ((got - true).flatten(1).norm(dim=1) / true.flatten(1).norm(dim=1)).max().item()
    return [*(dict(subject=name, **summary(s)) for name, s in seconds.items()),
            dict(subject='dense / factors', **ratio(seconds['dense'], seconds['factors'])),
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
    seconds = alternate({'exported': forward(exported), 'plain timm': forward(plain)}, 4 * rounds, bench.device)
    same = type(exported) is type(plain) and list(exported.state_dict()) == list(plain.state_dict())
    return [*(dict(subject=name, **summary(s)) for name, s in seconds.items()),
            dict(subject='exported / plain timm', **ratio(seconds['exported'], seconds['plain timm'])),
            dict(subject='same type and keys', value=same)]


def memory(bench: Bench, rounds: int) -> list:
    "Peak memory and size of the state over 100 tasks, in a process of its own"
    size = next(name for name, s in SIZES.items() if s == bench.size)
    arguments = size, str(bench.device), bench.precision, str(int(bench.compiled))
    done = subprocess.run([sys.executable, '-m', 'benchmarks.memory', *arguments],
                          cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def loop(bench: Bench, rounds: int) -> list:
    "Images per second of the whole training loop, against the bare step"
    size = bench.size
    n = 16 * size.bs
    sink = TemporaryFile('w')
    images = Images(torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8), torch.arange(n) % 10, [str(i) for i in range(10)])
    pre = Preprocess(size.image_size, (.5,) * 3, (.5,) * 3)
    def train(blocks=None, views=0):
        model = bench.backbone()
        head, layers = make_head('linear', model.num_features), adapt(model, rank=size.rank, blocks=blocks)
        set_groups(layers, [])
        head.begin_task(10, bench.device)
        cfg = TrainConfig(epochs=2, bs=size.bs, lr=size.lr, views=views)
        block = first_block(layers)
        bench.prepare(model)
        watch = Watch(log=lambda line: print(json.dumps(line), file=sink, flush=True))  # as a run writes its log
        return lambda: train_task(model, pre, head, images, trainable(layers), cfg, precision=bench.precision, progress=False,
                                  block=block, watch=watch)
    upper = f'4..{len(bench.backbone().blocks) - 1}'
    per = {'bare step': size.bs, 'whole loop': 2 * n, 'whole loop, adapters from block 4': 2 * n, 'the same, frozen prefix kept': 2 * n}
    model, layers, _ = bench.ham_layers(1)
    set_groups(layers, [])
    bare = bench.step(model, lambda: model(bench.x), trainable(layers))
    fs = dict(zip(per, (bare, train(), train(upper), train(upper, views=1))))
    seconds = alternate(fs, max(3, rounds // 4), bench.device, warmup=0)
    return [dict(subject=name, images_per_second=round(per[name] / (summary(s)['ms'] / 1000), 1)) for name, s in seconds.items()]


ALL = dict(memory=memory, step=step, wide=wide, parts=parts, merge=merge, export=export, loop=loop)


def markdown(rows: list) -> str:
    "A table with a line for each row; columns are the union of all keys"
    def cell(v):
        if isinstance(v, dict): return f'{v["ratio"]:.2f} ({v["quartiles"][0]:.2f} to {v["quartiles"][1]:.2f})'
        if isinstance(v, list): return ' to '.join(f'{x:.4g}' for x in v)
        return f'{v:.4g}' if isinstance(v, float) else str(v)
    keys = list(dict.fromkeys(k for r in rows for k in r))
    lines = [keys, ['---'] * len(keys), *([cell(r[k]) if k in r else '' for k in keys] for r in rows)]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)
