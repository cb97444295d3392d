"""What the study runs, and what is special about each experiment.

Split CIFAR-100 with a ViT-Tiny at 96 pixels."""
from dataclasses import dataclass, field

import torch

from ham_nb.controls import make_method
from ham_nb.datasets import cifar100
from ham_nb.stream import TaskStream
from ham_nb.train import TrainConfig

BACKBONE = 'vit_tiny_patch16_224.augreg_in21k_ft_in1k'
ORDERS = 1993, 1994, 1995  # class orders of what is reported
VALIDATION = 7, 8          # and of what hyper-parameters are chosen with
HEADS = 'discriminant,discriminant-plain,prototype,ridge,linear'
EVEN = dict(first_importance=1., halving_classes=0.)  # every task may go equally far


@dataclass(frozen=True)
class Experiment:
    "A run: what is not said is the default"
    method: str = 'ham' # One of `ham_nb.controls.METHODS`
    options: dict = field(default_factory=dict) # Of the method
    tasks: int = 10
    seed: int = ORDERS[0] # Of class order, starts and data order
    train: dict = field(default_factory=dict) # Of TrainConfig
    run: dict = field(default_factory=dict) # Of `begin`
    validation: bool = False # Test on training images that no run learns from

    def make_method(self): return make_method(self.method, self.tasks, **self.options)

    def stream(self, root) -> TaskStream:
        "100 training images a class; the test set, or 20 further training images a class"
        train, test = cifar100(root)
        if self.validation:
            classes = range(len(train.classes))
            last = [torch.nonzero(train.y == c).flatten()[-20:] for c in classes]
            test = train[torch.cat(last)]
        return TaskStream(train, test, self.tasks, self.seed, limit_per_class=100, name='cifar100')

    def settings(self) -> dict:
        "What `begin` is given"
        train = TrainConfig(**dict(epochs=3) | self.train)
        return dict(backbone=BACKBONE, image_size=96, head=HEADS, seed=self.seed, drift_views=1,
                    test_every=max(1, self.tasks // 10), train=train) | self.run


COMPARED = ('ham', 'sequential', 'frozen', 'first-task', 'average', 'magmax', 'k-merge', 'sd-lora',
            'o-lora', 'inflora', 'task-arithmetic', 'ties', 'dare')
LENGTHS = 10, 50


def comparison() -> dict:
    "All methods at two lengths, in every class order"
    found = {f'joint-1-{seed}': Experiment('joint', tasks=1, seed=seed) for seed in ORDERS}
    for seed in ORDERS:
        for tasks in LENGTHS:
            found |= {f'{method}-{tasks}-{seed}': Experiment(method, tasks=tasks, seed=seed)
                      for method in COMPARED}
    return found


def how_far() -> dict:
    "HAM whose tasks may all go equally far, and SD-LoRA whose tasks may go as far as HAM's"
    found = {}
    for seed in ORDERS:
        for tasks in LENGTHS:
            steps = Experiment('sd-lora-steps', tasks=tasks, seed=seed)
            found[f'ham-even-{tasks}-{seed}'] = Experiment(options=EVEN, tasks=tasks, seed=seed)
            found[f'sd-lora-steps-{tasks}-{seed}'] = steps
    return found


def ablations() -> dict:
    "Each differs from HAM's defaults in what its name says"
    def one(name, tasks=10, method='ham', run=None, train=None, **options):
        e = Experiment(method, options, tasks, run=run or {}, train=train or {})
        return {f'{name}-{tasks}-{ORDERS[0]}': e}
    found = one('ham', 20) | one('ham', 100)
    wide = dict(targets='attn.qkv,mlp.fc1,mlp.fc2')
    for tasks in LENGTHS:
        for method in ('ungrouped', 'random-groups'): found |= one(method, tasks, method)
        found |= one('ham-anchor', tasks, 'ham-anchored', anchor=50.)
        found |= one('ham-fixed', tasks, 'ham-fixed') | one('ham-wide', tasks, run=wide)
    found |= one('folded', method='ham-folded') | one('ham-layer', method='ham-layer')
    for method in ('ham', 'ungrouped'):
        found |= one(f'{method}-independent', method=method, shared_start=False)
    for tau in (.02, .05): found |= one(f'ham-tau-{tau:g}', tau=tau)
    for g_max in (1, 10): found |= one(f'ham-gmax-{g_max}', g_max=g_max)
    for keep in (.5, .2, .05): found |= one(f'ham-entries-{keep:g}', keep=keep)
    for space in ('components', 'singular'):
        for keep in (.5, .05):  # of 8 ranks .2 keeps one too
            found |= one(f'ham-{space}-{keep:g}', method=f'ham-{space}', keep=keep)
    for rank in (0, 8, 4): found |= one(f'ham-rank-{rank}', 50, group_rank=rank)
    found |= one('ham-layers', method='ham-by-layers') | one('ham-b', method='ham-by-b')
    found |= one('ham-cka', method='ham-by-features', tau=.9)
    slow = dict(head_lr=1e-3)  # a tenth of the default
    return found | one('ham-slow-rows', 50, train=slow)


EXPERIMENTS = comparison() | how_far() | ablations()
