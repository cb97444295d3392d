"What the study runs: Split CIFAR-100 with a ViT-Tiny at 96 pixels, and what is special about each experiment."
from dataclasses import dataclass, field

import torch

from ham_nb.baselines import SDLoRA, make_method
from ham_nb.stream import TaskStream
from ham_nb.datasets import cifar100
from ham_nb.ham import HAM
from ham_nb.train import TrainConfig

BACKBONE = 'vit_tiny_patch16_224.augreg_in21k_ft_in1k'
ORDERS = 1993, 1994, 1995  # class orders of what is reported
VALIDATION = 7, 8          # and of what hyper-parameters are chosen with
HEADS = 'discriminant,discriminant-plain,prototype,ridge,linear'
EVEN = dict(boost=1., fade=0.)  # every task may go equally far


class Folded(HAM):
    "After task `at` everything is folded into the backbone, and learning goes on from there without groups"
    at = 4

    def end_task(self, layers, task, features=None):
        report = super().end_task(layers, task, features)
        if task != self.at: return report
        with torch.no_grad():
            for l in layers.values(): l.base.weight += l.total().delta()
        self._set_groups(layers, [])
        return report


@dataclass
class SDLoRASteps(SDLoRA):
    "SD-LoRA whose tasks may go as far as HAM's"
    boost: float = HAM.boost
    fade: float = HAM.fade
    name = 'sd-lora-steps'

    def begin_task(self, layers, task, seed, features=None, classes=None):
        super().begin_task(layers, task, seed)
        with torch.no_grad():
            for l in layers.values(): l.importance[-1] = HAM.start_importance(self, classes)


OURS = {'folded': Folded, 'sd-lora-steps': SDLoRASteps}


@dataclass(frozen=True)
class Experiment:
    "A run: what is not said is the default"
    method: str = 'ham'
    options: dict = field(default_factory=dict) # Of the method
    tasks: int = 10
    seed: int = ORDERS[0] # Of class order, starts and data order
    train: dict = field(default_factory=dict) # Of TrainConfig
    run: dict = field(default_factory=dict) # Of `begin`
    validation: bool = False # Test on training images that no run learns from

    def make_method(self):
        if self.method in OURS: return OURS[self.method](**self.options)
        return make_method(self.method, self.tasks, **self.options)

    def stream(self, root) -> TaskStream:
        "100 training images a class; the test set, or 20 further training images a class"
        train, test = cifar100(root)
        if self.validation:
            test = train[torch.cat([torch.nonzero(train.y == c).flatten()[-20:] for c in range(len(train.classes))])]
        return TaskStream(train, test, self.tasks, self.seed, limit_per_class=100, name='cifar100')

    def settings(self) -> dict:
        "What `begin` is given"
        return dict(backbone=BACKBONE, image_size=96, head=HEADS, seed=self.seed, drift_views=1, test_every=max(1, self.tasks // 10),
                    train=TrainConfig(**dict(epochs=3) | self.train)) | self.run


METHODS = ('ham', 'sequential', 'frozen', 'first-task', 'average', 'magmax', 'k-merge', 'sd-lora', 'o-lora', 'inflora', 'task-arithmetic',
           'ties', 'dare')
LENGTHS = 10, 50


def comparison() -> dict:
    "All methods at two lengths, in every class order"
    found = {f'joint-1-{seed}': Experiment('joint', tasks=1, seed=seed) for seed in ORDERS}
    for seed in ORDERS:
        for tasks in LENGTHS: found |= {f'{method}-{tasks}-{seed}': Experiment(method, tasks=tasks, seed=seed) for method in METHODS}
    return found


def how_far() -> dict:
    "HAM whose tasks may all go equally far, and SD-LoRA whose tasks may go as far as HAM's"
    found = {}
    for seed in ORDERS:
        for tasks in LENGTHS:
            found[f'ham-even-{tasks}-{seed}'] = Experiment(options=EVEN, tasks=tasks, seed=seed)
            found[f'sd-lora-steps-{tasks}-{seed}'] = Experiment('sd-lora-steps', tasks=tasks, seed=seed)
    return found


def ablations() -> dict:
    "Each differs from HAM's defaults in what its name says"
    def one(name, tasks=10, method='ham', run=None, train=None, **options):
        return {f'{name}-{tasks}-{ORDERS[0]}': Experiment(method, options, tasks, run=run or {}, train=train or {})}
    found = one('ham', 20) | one('ham', 100)
    for tasks in LENGTHS:
        for method in ('ungrouped', 'random-groups'): found |= one(method, tasks, method)
        found |= one('ham-anchor', tasks, anchor=50.) | one('ham-fixed', tasks, importance='fixed')
        found |= one('ham-wide', tasks, run=dict(targets='attn.qkv,mlp.fc1,mlp.fc2'))
    found |= one('folded', method='folded') | one('ham-layer', importance='layer')
    for method in ('ham', 'ungrouped'): found |= one(f'{method}-independent', method=method, start='independent')
    for tau in (.02, .05): found |= one(f'ham-tau-{tau:g}', tau=tau)
    for g_max in (1, 10): found |= one(f'ham-gmax-{g_max}', g_max=g_max)
    for space, keeps in dict(entries=(.5, .2, .05), components=(.5, .05), singular=(.5, .05)).items():  # of 8 ranks .2 keeps one too
        for keep in keeps: found |= one(f'ham-{space}-{keep:g}', prune=space, keep=keep)
    for rank in (0, 8, 4): found |= one(f'ham-rank-{rank}', 50, group_rank=rank)
    found |= one('ham-layers', similarity='layers') | one('ham-b', similarity='B', group_rank=0) | one('ham-cka', similarity='cka', tau=.9)
    return found | one('ham-slow-rows', 50, train=dict(head_lr=1e-3))  # a tenth of the default


EXPERIMENTS = comparison() | how_far() | ablations()
