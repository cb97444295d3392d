"Baselines and controls do what their papers say, on small tensors and a small model"
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from ham_nb.adapters import adapt, set_groups, trainable
from ham_nb.backbone import below, load_backbone
from ham_nb.baselines import (RULES, FirstTask, Frozen, InfLoRA, MergedAfter, OLoRA, SDLoRA,
                              Sequential, average, dare, input_covariances, magmax,
                              task_arithmetic, ties)
from ham_nb.controls import (METHODS, Anchored, FixedImportance, Folded, KMerge, LayerImportance,
                             RandomGroups, SDLoRASteps, Ungrouped, b_cosine, change, layer_cosine,
                             linear_cka, make_method, squared_output)
from ham_nb.ham import HAM
from ham_nb.lowrank import LowRank, concat

d = torch.tensor([[[3., -1.], [.5, 2.]], [[1., 4.], [.25, -3.]]])
first = 'blocks.0.attn.qkv'

class Small:
    "A model with adapters, images, and random numbers that stand in for training"
    def __init__(self):
        self.model, self.pre = load_backbone(device='cpu')
        self.layers, self.x = adapt(self.model, rank=4), torch.randn(8, 3, 32, 32)
    def features(self): return self.model(self.x)

    @torch.no_grad()
    def train(self):
        for p in trainable(self.layers):
            if p.ndim > 1: p += .05 * torch.randn_like(p)
    def learnt(self, method, tasks=3):
        "What each task changed in one layer, the reports, and the change that is left"
        deltas, reports = [], []
        for task in range(tasks):
            method.begin_task(self.layers, task, seed=0, features=self.features)
            if method.trains: self.train()
            l = self.layers[first]
            deltas.append((l.importance[-1] * l.adapter().delta()).detach())
            reports.append(method.end_task(self.layers, task, features=self.features))
        return torch.stack(deltas), reports, self.layers[first].total().delta().detach()

@pytest.fixture
def small(): return Small()

# -- rules that merge, by hand

@pytest.mark.parametrize('merged, wanted', [
    (average(d), [[2., 1.5], [.375, -.5]]),
    (task_arithmetic(d, .5), [[2., 1.5], [.375, -.5]]),
    (ties(d, keep=.5), [[3., 4.], [0., -3.]]),
    (ties(d, keep=1.), [[2., 4.], [.375, -3.]]),
    (magmax(d), [[3., 4.], [.5, -3.]]),
    (magmax(d, scale=.5), [[1.5, 2.], [.25, -1.5]]),
    (dare(d, drop=0.), [[2., 1.5], [.375, -.5]])])
def test_rules(merged, wanted): assert_close(merged, torch.tensor(wanted))

def test_dare_is_the_average_in_the_mean():
    many = dare(torch.ones(4, 200, 200), drop=.5)
    assert sorted(many.unique().tolist()) == [0, .5, 1, 1.5, 2] and abs(many.mean() - 1) < .01

@pytest.mark.parametrize('rule', RULES)
def test_merged_after_follows_its_rule(small, rule):
    deltas, _, total = small.learnt(MergedAfter(rule))
    assert_close(total, RULES[rule](deltas), rtol=1e-4, atol=1e-5)

def test_every_layer_drops_other_entries(small):
    small.learnt(MergedAfter('dare'), tasks=1)
    dropped = [l.total().delta() == 0 for l in small.layers.values()]
    assert not torch.equal(*dropped[:2])
    assert all(.4 < drop.float().mean() < .6 for drop in dropped)

# -- what moves

def test_who_trains(small):
    assert not Frozen().trains and not small.learnt(Frozen())[2].count_nonzero()
    assert not any(l.B.count_nonzero() for l in small.layers.values())
    deltas, _, total = small.learnt(FirstTask())
    assert torch.equal(deltas[0], total) and torch.equal(deltas[1], total) and total.norm() > 0
    small.learnt(Sequential(), tasks=1)
    B = small.layers[first].B.clone()
    Sequential().begin_task(small.layers, 1, seed=0)
    assert torch.equal(small.layers[first].B, B) and B.norm() > 0

# -- kept apart

def test_sd_lora_keeps_directions_and_magnitudes(small):
    deltas, _, total = small.learnt(SDLoRA())
    assert_close(total, deltas.sum(0), rtol=1e-4, atol=1e-5)
    l = small.layers[first]
    assert_close(l.importance.data[:-1], deltas.flatten(1).norm(dim=1))
    A, B = l.groups_A.split(4), l.groups_B.split(4, dim=1)
    assert_close(torch.stack([(b @ a).norm() for a, b in zip(A, B)]), torch.ones(3))

def test_o_lora_pays_for_rows_that_overlap(small):
    o = OLoRA(weight=.5)
    deltas, _, total = small.learnt(o)
    assert_close(total, deltas.sum(0), rtol=1e-4, atol=1e-5)
    o.begin_task(small.layers, 3, seed=0)
    products = [g[path].A @ l.A.T for g in o.groups for path, l in small.layers.items()]
    assert_close(o.penalty(), .5 * sum(p.abs().sum() for p in products))

def test_covariances_are_those_of_the_inputs(small):
    tokens = small.model.blocks[0].norm1(below(small.model, small.x, 0)).flatten(0, 1)
    C = input_covariances(small.layers, small.features)[first]
    assert_close(C, tokens.T @ tokens, rtol=1e-4, atol=1e-3)

def test_inflora_keeps_off_old_directions(small):
    inf = InfLoRA(energy=.9)
    for task in range(2):
        inf.begin_task(small.layers, task, 0, small.features)
        assert all(p is not small.layers[first].A for p in trainable(small.layers))
        old = inf.stats.get(first)
        small.train()
        inf.end_task(small.layers, task, small.features)
    M, second = inf.stats[first], inf.groups[1][first]
    assert_close(M.T @ M, torch.eye(M.shape[1]), atol=1e-4, rtol=0)
    assert_close(second.A @ old, torch.zeros(4, old.shape[1]), atol=1e-4, rtol=0)
    C = input_covariances(small.layers, small.features)[first]
    assert (M.T @ C @ M).trace() >= .9 * C.trace()

def test_inflora_never_takes_more_than_there_is_room(small):
    strict, few = InfLoRA(energy=.9, tasks=1), torch.randn(3, 3, 3, 32, 32)
    for task, small.x in enumerate(few):
        strict.begin_task(small.layers, task, 0, small.features)
        strict.end_task(small.layers, task, small.features)
        for M in strict.stats.values():
            assert_close(M.T @ M, torch.eye(M.shape[1]), atol=1e-4, rtol=0)

# -- controls

def test_groups_are_sums_and_k_merge_means(small):
    small.learnt(HAM(group_rank=0, g_max=2), tasks=4)
    grouped = small.layers[first].total().delta()
    torch.manual_seed(0)
    again = Small()
    deltas, _, total = again.learnt(Ungrouped(), tasks=4)
    assert_close(total, deltas.sum(0), rtol=1e-4, atol=1e-5)
    assert_close(total, grouped, rtol=1e-4, atol=1e-5)
    assert again.layers[first].ranks == [4] * 4
    deltas, _, mean = again.learnt(KMerge(g_max=1, group_rank=0))
    assert_close(mean, deltas.mean(0), rtol=1e-4, atol=1e-4)

def test_random_groups_reach_all():
    chosen = [RandomGroups(tau=.9, g_max=3).associate([.1, .2, .3], t).group for t in range(60)]
    assert {*chosen} == {0, 1, 2} and RandomGroups(g_max=3).associate([0., 0.], 2).opened

def test_scalars(small):
    def scalars(method):
        method.begin_task(small.layers, 0, seed=0)
        kept = {id(l.importance): l.importance.requires_grad for l in small.layers.values()}
        return [*kept.values()]
    assert scalars(HAM()) == [True] and scalars(FixedImportance()) == [False]
    assert scalars(LayerImportance()) == [True] * len(small.layers)

def test_measures_of_similarity():
    torch.manual_seed(0)
    def adapter(): return {path: LowRank(torch.randn(2, 6), torch.randn(5, 2)) for path in 'ab'}
    p, q = adapter(), adapter()
    dense = torch.stack([torch.stack([a[k].delta().flatten() for k in p]) for a in (p, q)])
    assert_close(layer_cosine(p, q), F.cosine_similarity(*dense, dim=1).mean())
    group = {k: concat([p[k], q[k]]) for k in p}
    alone, both = (torch.cat([B.flatten() for B in Bs]) for Bs in
                   ([p[k].B for k in p], [p[k].B + q[k].B for k in p]))
    assert_close(b_cosine(p, group), F.cosine_similarity(alone, both, dim=0))
    X, Q = torch.randn(50, 8), torch.linalg.qr(torch.randn(8, 8))[0]
    assert_close(linear_cka(X, 3 * X @ Q), torch.tensor(1.))  # blind to rotation and scale

def test_an_anchor_asks_for_what_changes_on_old_inputs(small):
    method, layers = Anchored(), small.layers
    small.learnt(method, tasks=1)
    method.begin_task(layers, 1, seed=0)
    assert method.penalty() == 0
    small.train()
    def share(path, l):
        W, C = l.base.weight, method.stats[path]
        changed = l.total().delta() - l.groups_B @ l.groups_A
        return (changed @ C @ changed.T).trace() / (W @ C @ W.T).trace()
    shares = torch.stack([share(*pl) for pl in layers.items()])
    assert_close(method.penalty(), 50 * shares.mean(), rtol=1e-4, atol=0.)
    C = input_covariances(layers, small.features)[first]
    moved = change(layers[first])
    assert_close(squared_output(moved, C), (moved.delta() @ C @ moved.delta().T).trace(),
                 rtol=1e-4, atol=1e-6)

def test_an_anchor_is_in_the_state(small):
    method, again = Anchored(), Anchored()
    small.learnt(method, tasks=1)
    set_groups(small.layers, method.groups)
    again.load_state(method.state(), small.layers)
    paid = []
    for m in (method, again):
        m.begin_task(small.layers, 1, seed=0)
        torch.manual_seed(1)
        small.train()
        paid.append(m.penalty())
    assert torch.equal(*paid) and paid[0] > 0

def test_folded_goes_on_from_its_state(small):
    folded = Folded()
    for task in range(5):
        folded.begin_task(small.layers, task, seed=0)
        small.train()
        folded.end_task(small.layers, task)
    assert not small.layers[first].ranks and not folded.groups
    fresh = Small()
    Folded().load_state(folded.state(), fresh.layers)
    assert_close(fresh.model(small.x), small.features())

def test_steps_are_those_of_ham(small):
    def start(method, classes):
        method.begin_task(small.layers, 0, seed=0, classes=classes)
        return small.layers[first].importance[-1].item()
    assert [start(SDLoRASteps(), c) for c in (2, 6, 50)] == [start(HAM(), c) for c in (2, 6, 50)]
    assert start(SDLoRA(), 2) == 1

def test_methods_by_name():
    assert make_method('k-merge', first_importance=2., tau=.2) == KMerge(tau=.2)
    assert make_method('inflora', 50, tau=.2) == InfLoRA(tasks=50)
    assert make_method('frozen', tau=.2) == Frozen()
    assert all(make_method(name, 5, tau=.2).name == name for name in METHODS)
