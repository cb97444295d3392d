"Our results equal those of an independent computation: dense matrices, PEFT, published numbers"
import copy
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from peft import LoraConfig, get_peft_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.testing import assert_close

from ham_nb import metrics
from ham_nb.adapters import adapt, baked, set_groups, trainable
from ham_nb.backbone import nano_vit
from ham_nb.controls import ByLayers, layer_cosine, linear_cka, prune_components, prune_singular
from ham_nb.ham import HAM
from ham_nb.lora import LoRALinear
from ham_nb.lowrank import LowRank, compress, concat, cosine, inner, norm, svd
from ham_nb.merging import combine, merged_model
from ham_nb.pruning import prune, prune_adapter, prune_entries, prune_lowrank
from ham_nb.similarity import delta_cosine

f64 = dict(dtype=torch.float64)
exact = dict(rtol=1e-12, atol=1e-12)
tolerances = pytest.mark.parametrize('dtype, tol', [(torch.float64, 1e-12), (torch.float32, 1e-6)],
                                     ids=['float64', 'float32'])

def lowrank(d, k, r, *batch):
    return LowRank(torch.randn(*batch, r, k, **f64), torch.randn(*batch, d, r, **f64))

def tiny_vit():
    return timm.create_model('vit_tiny_patch16_224', img_size=32, depth=2, num_classes=0)

def close_to_scale(a, b, tol=1e-5):
    "The largest difference, relative to the largest value"
    scale = b.abs().max()
    assert scale > 0 and (a - b).abs().max() <= tol * scale

# -- PEFT

class OneLayer(nn.Module):
    def __init__(self): super().__init__(); self.fc = nn.Linear(14, 10)
    def forward(self, x): return self.fc(x)

def with_peft(model, target, rank, alpha, **ranks):
    "The model under PEFT with one random adapter per name"
    names = ranks or dict(default=rank)
    config = {n: LoraConfig(r=r, lora_alpha=alpha, target_modules=[target], use_rslora=False)
              for n, r in names.items()}
    first, *rest = names
    p = get_peft_model(model, config[first], adapter_name=first)
    for n in rest: p.add_adapter(n, config[n])
    for n, w in p.named_parameters():
        if 'lora_B' in n: nn.init.normal_(w, std=.1)  # they start at zero
    return p

def factors(layer, name='default'): return layer.lora_A[name].weight, layer.lora_B[name].weight

@tolerances
def test_lora_layer_equals_peft(dtype, tol):
    net = OneLayer().to(dtype)
    ours = LoRALinear(copy.deepcopy(net.fc), rank=4, scale=6 / 4)
    theirs = with_peft(net, 'fc', rank=4, alpha=6).to(dtype)
    A, B = factors(theirs.base_model.model.fc)
    ours.A.data, ours.B.data = A.detach().clone(), B.detach().clone()
    x = torch.randn(5, 14, dtype=dtype)
    assert_close(ours(x), theirs(x), rtol=tol, atol=tol)
    for out in ours(x), theirs(x): out.square().sum().backward()
    for mine, other in (ours.A, A), (ours.B, B):
        assert_close(mine.grad, other.grad, rtol=10 * tol, atol=10 * tol)

@tolerances
def test_adapted_timm_vit_equals_peft(dtype, tol):
    vit = tiny_vit().to(dtype).eval()
    ours = copy.deepcopy(vit)
    layers = adapt(ours, 'attn.qkv', rank=4, scale=8 / 4)
    theirs = with_peft(vit, 'qkv', rank=4, alpha=8).to(dtype)
    for path, l in layers.items():
        A, B = factors(theirs.base_model.model.get_submodule(path))
        l.A.data, l.B.data = A.detach().clone(), B.detach().clone()
    x = torch.randn(2, 3, 32, 32, dtype=dtype)
    out = ours(x)
    close_to_scale(out, theirs(x), tol)
    assert not torch.allclose(out, vit.forward(x * 0), atol=1e-3)
    weights = torch.randn_like(out)  # a sum of squares is a constant after the last LayerNorm
    for o in out, theirs(x): (weights * o).sum().backward()
    for path, l in layers.items():
        for mine, other in zip((l.A, l.B), factors(theirs.base_model.model.get_submodule(path))):
            close_to_scale(mine.grad, other.grad, 10 * tol)

def test_concat_equals_peft_cat():
    p = with_peft(OneLayer(), 'fc', 0, 6, one=3, two=5).double()
    p.add_weighted_adapter(['one', 'two'], [.7, -.4], 'both', combination_type='cat')
    p.set_adapter('both')
    fc = p.base_model.model.fc
    def ours(name, scale):
        A, B = factors(fc, name)
        return LowRank(A, scale * B)
    a, b = ours('one', 6 / 3), ours('two', 6 / 5)
    x = torch.randn(5, 14, **f64)
    both = concat([a, b], [.7, -.4])
    assert both.rank == 8
    assert_close(fc.base_layer(x) + x @ both.delta().T, p.double()(x), **exact)

def test_merged_model_equals_peft_with_two_active_adapters():
    "PEFT's `merge_and_unload` of several active adapters is an exact sum, as two groups are"
    vit = tiny_vit().double().eval()
    ours = copy.deepcopy(vit)
    layers = adapt(ours, 'attn.qkv', rank=1)
    p = with_peft(vit, 'qkv', 0, 6, one=2, two=3).double()
    p.base_model.set_adapter(['one', 'two'])
    def adapter(name, r):
        each = {path: factors(p.base_model.model.get_submodule(path), name) for path in layers}
        return {path: LowRank(A.detach(), 6 / r * B.detach()) for path, (A, B) in each.items()}
    groups = [adapter('one', 2), adapter('two', 3)]
    set_groups(layers, groups)
    theirs, mine = p.merge_and_unload().state_dict(), merged_model(ours).state_dict()
    assert set(theirs) == set(mine)
    for k in mine: assert_close(mine[k], theirs[k], **exact)

# -- the algebra of factors

def test_inner_norm_and_cosine_equal_dense():
    p, q = lowrank(9, 13, 3), lowrank(9, 13, 5)
    P, Q = p.delta(), q.delta()
    assert_close(inner(p, q), (P * Q).sum(), **exact)
    assert_close(norm(p), P.norm(), **exact)
    assert_close(cosine(p, q), torch.cosine_similarity(P.flatten(), Q.flatten(), dim=0), **exact)

def test_concat_equals_dense_sum():
    ps, w = [lowrank(9, 13, r) for r in (1, 4, 2)], [.5, -2., 1.]
    assert concat(ps).rank == 7
    assert_close(concat(ps).delta(), sum(p.delta() for p in ps), **exact)
    assert_close(concat(ps, w).delta(), sum(c * p.delta() for c, p in zip(w, ps)), **exact)

@pytest.mark.parametrize('d, k, r', [(9, 13, 4), (13, 9, 4), (6, 13, 8), (13, 6, 8)],
                         ids=['wide', 'tall', 'r>d', 'r>k'])
def test_svd_and_compress_equal_dense(d, k, r):
    p = lowrank(d, k, r)
    S = torch.linalg.svdvals(p.delta())
    U, s, V = svd(p)
    n = min(d, k, r)
    assert_close(s, S[:n], **exact)
    assert_close(U * s @ V.mT, p.delta(), **exact)
    for rank in range(1, n + 1):
        small, error = compress(p, rank)
        assert small.rank == rank
        true = (p.delta() - small.delta()).norm() / p.delta().norm()
        assert_close(error, true, **exact)
        best = (S[rank:].square().sum() / S.square().sum()).sqrt()
        assert_close(error, best, **exact)  # Eckart-Young: no rank does better

def test_a_zero_layer_asks_for_no_rank():
    A, B = torch.randn(2, 8, 14, **f64), torch.randn(2, 11, 8, **f64)
    B[0, :, 1:], B[1] = 0, 0
    assert compress(LowRank(A, B), energy=.9)[0].rank == 1

def test_compress_by_energy_takes_the_fewest_ranks():
    p = lowrank(9, 13, 6)
    share = (S := torch.linalg.svdvals(p.delta()).square()).cumsum(0) / S.sum()
    for energy in .3, .6, .9, .99:
        small, error = compress(p, energy=energy)
        assert small.rank == 1 + int((share < energy).sum())
        assert 1 - error**2 >= energy
    assert compress(p, energy=1.)[0].rank == 6

def test_similarity_equals_dense():
    p, q = ({'a': lowrank(9, 13, 3), 'b': lowrank(4, 6, r)} for r in (2, 5))
    flat = [torch.cat([x.delta().flatten() for x in a.values()]) for a in (p, q)]
    def dense(x, y): return torch.cosine_similarity(x.flatten(), y.flatten(), dim=0).item()
    layers = [dense(p[l].delta(), q[l].delta()) for l in p]
    assert delta_cosine(p, q).item() == pytest.approx(dense(*flat), abs=1e-12)
    assert layer_cosine(p, q).item() == pytest.approx(sum(layers) / len(layers), abs=1e-12)
    X = torch.randn(20, 6, **f64)
    rotation = torch.linalg.qr(X.T @ X)[0]
    assert linear_cka(X, 3 * X @ rotation).item() == pytest.approx(1)  # blind to rotation and size

# -- the layer

def test_forward_is_the_formula_of_the_method():
    "h = W0 x + sum_j a_j D_j x + a D x, with gradients for scalars and the current factors only"
    layer = LoRALinear(nn.Linear(14, 10).double(), rank=3, scale=.5)
    groups = [lowrank(10, 14, r) for r in (2, 5)]
    set_groups(dict(fc=layer), [dict(fc=g) for g in groups])
    nn.init.normal_(layer.B), nn.init.normal_(layer.importance)
    a, x = layer.importance, torch.randn(2, 7, 14, **f64)
    D = [g.delta() for g in groups] + [.5 * layer.B @ layer.A]
    W = layer.base.weight + sum(s * d for s, d in zip(a, D))
    assert_close(layer(x), x @ W.T + layer.base.bias, **exact)
    assert_close(layer.adapter().delta(), D[-1].detach(), **exact)
    assert_close(layer.total().delta(), (W - layer.base.weight).detach(), **exact)
    params = [layer.A, layer.B, a]
    out = layer(x), x @ W.T + layer.base.bias
    for mine, dense in zip(*(torch.autograd.grad(o.square().sum(), params) for o in out)):
        close_to_scale(mine, dense, 1e-12)
    assert {id(p) for p in trainable(dict(fc=layer))} == {id(p) for p in params}

def test_q_and_v_equal_fused_block_diagonal():
    fused, x = nn.Linear(8, 24).double(), torch.randn(5, 8, **f64)
    both = LoRALinear(fused, rank=3, parts=[(0, 8), (16, 24)])
    nn.init.normal_(both.B)
    def single(lo, i):
        lin = nn.Linear(8, 8).double()
        for own, whole in (lin.weight, fused.weight), (lin.bias, fused.bias):
            own.data = whole.data[lo:lo + 8].clone()
        l = LoRALinear(lin, rank=3)
        l.A.data, l.B.data = both.A.data[i:i + 3].clone(), both.B.data[:, i:i + 3].clone()
        return l
    q, v = single(0, 0), single(16, 3)
    assert_close(both(x), torch.cat([q(x), fused(x)[:, 8:16], v(x)], 1), **exact)
    delta = torch.cat([q.adapter().delta(), torch.zeros(8, 8, **f64), v.adapter().delta()])
    assert_close(both.adapter().delta(), delta, **exact)
    assert_close(both.full_B()[:8, :3], q.B.data, **exact)
    B = both.full_B()
    for elsewhere in B[8:16], B[:8, 3:], B[16:, :3]: assert elsewhere.count_nonzero() == 0

def test_vit_adapted_at_q_and_v_equals_dense(vit):
    layers, x = adapt(vit, 'attn.q,attn.v', rank=2), torch.randn(2, 3, 16, 16)
    for l in layers.values(): nn.init.normal_(l.B, std=.1)
    dense = nano_vit(16).eval()
    dense.load_state_dict(merged_model(vit).state_dict())
    width = dense.num_features
    for i, l in enumerate(layers.values()):
        D = dense.blocks[i].attn.qkv.weight - l.base.weight
        q, k, v = D.split(width)
        assert k.abs().max() == 0 < min(q.abs().max(), v.abs().max())
    close_to_scale(vit(x), dense(x))

@pytest.mark.parametrize('targets, rank, count', [('attn.q,attn.v', 10, 368_640),
                                                  ('attn.qkv', 16, 589_824),
                                                  ('attn.qkv,mlp.fc1,mlp.fc2', 8, 1_032_192)])
def test_parameter_counts_on_vit_base(targets, rank, count):
    with torch.device('meta'): model = timm.create_model('vit_base_patch16_224')
    layers = adapt(model, targets, rank)
    set_groups(layers, [])
    assert sum(p.numel() for p in trainable(layers)) == count + 1  # and the one importance scalar

# -- consolidation and merging

@pytest.mark.parametrize('kind, tau', [(HAM, 1.), (HAM, -1.), (ByLayers, 0.)])
@pytest.mark.parametrize('shared_start', [True, False], ids=['shared', 'independent'])
@pytest.mark.parametrize('importance', ['adapter', 'layer'])
def test_consolidation_without_pruning_keeps_the_logits(vit, pretend_training, kind, tau,
                                                        shared_start, importance):
    layers, x = adapt(vit, 'attn.qkv,mlp.fc1', rank=3), torch.randn(4, 3, 16, 16)
    ham = kind(tau=tau, g_max=3, keep=1., shared_start=shared_start, group_rank=0)
    ham.importance = importance
    start, groups = vit(x), []
    for task in range(5):
        ham.begin_task(layers, task, seed=0)
        pretend_training(layers)
        before = vit(x)
        ham.end_task(layers, task, lambda: vit(x))
        close_to_scale(vit(x), before)
        groups.append(len(ham.members))
    assert max(groups) == {1.: 3, -1.: 1}.get(tau, max(groups)) <= 3
    assert (vit(x) - start).abs().max() > .01 * start.abs().max()  # there was something to keep

def test_a_new_task_starts_where_the_last_one_ended(vit, pretend_training):
    layers, ham, x = adapt(vit, rank=3), HAM(), torch.randn(4, 3, 16, 16)
    for task in range(3):
        after = vit(x)
        ham.begin_task(layers, task, seed=0)
        close_to_scale(vit(x), after)
        pretend_training(layers)
        ham.end_task(layers, task, lambda: vit(x))

@pytest.fixture
def learnt(vit, pretend_training):
    "A model with three groups and an adapter in training"
    layers, ham = adapt(vit, 'attn.q,attn.v,mlp.fc2', rank=3, scale=2.), HAM(tau=1., g_max=3)
    for task in range(3):
        ham.begin_task(layers, task, seed=0)
        pretend_training(layers)
        ham.end_task(layers, task)
    ham.begin_task(layers, 3, seed=0)
    pretend_training(layers)
    x = torch.randn(4, 3, 16, 16)
    return SimpleNamespace(model=vit, layers=layers, x=x, logits=vit(x).detach(),
                           bases={p: l.base.weight.detach().clone() for p, l in layers.items()})

def assert_bases_untouched(m):
    for p, w in m.bases.items(): assert torch.equal(m.layers[p].base.weight, w)

def test_merged_keeps_the_logits_and_gives_the_weights_back(learnt):
    with baked(learnt.layers):
        once = learnt.model(learnt.x)
        with baked(learnt.layers): twice = learnt.model(learnt.x)
        again = learnt.model(learnt.x)
    close_to_scale(once, learnt.logits)
    assert torch.equal(once, twice) and torch.equal(once, again)
    assert_bases_untouched(learnt)
    assert torch.equal(learnt.model(learnt.x), learnt.logits)

def test_merged_gives_the_weights_back_after_an_error(learnt):
    with pytest.raises(KeyboardInterrupt), baked(learnt.layers): raise KeyboardInterrupt
    assert_bases_untouched(learnt)
    assert torch.equal(learnt.model(learnt.x), learnt.logits)

def test_merged_model_is_plain_timm(learnt):
    plain = merged_model(learnt.model)
    assert type(plain) is VisionTransformer
    assert list(plain.state_dict()) == list(nano_vit(16).state_dict())
    assert not any(isinstance(m, LoRALinear) for m in plain.modules())
    close_to_scale(plain(learnt.x), learnt.logits)
    again = merged_model(plain).state_dict()
    assert all(torch.equal(again[k], v) for k, v in plain.state_dict().items())
    assert_bases_untouched(learnt)
    assert torch.equal(learnt.model(learnt.x), learnt.logits)

def test_merged_model_while_merged_adds_nothing_twice(learnt):
    with baked(learnt.layers): plain = merged_model(learnt.model)
    close_to_scale(plain(learnt.x), learnt.logits)

def test_merged_model_carries_a_classifier(learnt):
    w, b = torch.randn(7, learnt.model.num_features), torch.randn(7)
    close_to_scale(merged_model(learnt.model, w, b)(learnt.x), learnt.logits @ w.T + b)
    close_to_scale(merged_model(learnt.model, w)(learnt.x), learnt.logits @ w.T)

def test_combine_is_the_sum_of_the_groups():
    groups = [{l: lowrank(6, 8, r) for l in 'ab'} for r in (2, 3)]
    for l in 'ab':
        both = groups[0][l].delta() + groups[1][l].delta()
        assert_close(combine(groups)[l].delta(), both, **exact)

# -- pruning

@pytest.mark.parametrize('n, keep', [(10, .5), (7, .5), (100, .29), (33, 1 / 3), (1000, .2),
                                     (5, .1), (5, 1e-9), (5, 1.), (1, 1.)])
def test_prune_keeps_exactly_the_announced_number(n, keep):
    kept = prune(torch.randn(n), keep)
    assert kept.count_nonzero() == int(keep * n)

def test_prune_keeps_the_largest():
    t = torch.randn(6, 7)
    kept = prune(t, .3)
    threshold = np.sort(t.abs().numpy().ravel())[-int(.3 * 42)]
    assert torch.equal(kept, torch.where(t.abs() >= threshold, t, 0.))
    assert torch.equal(prune(t, 1.), t)

@pytest.mark.parametrize('keep', [.25, .5, .9, 1.])
def test_prune_of_ties_keeps_the_first(keep):
    t = torch.tensor([[1., -1., 1.], [-1., 1., 1.]])
    n = int(keep * 6)
    assert torch.equal(prune(t, keep).flatten(), torch.cat([t.flatten()[:n], torch.zeros(6 - n)]))

@pytest.mark.parametrize('keep', [0., -.1, 1.1, float('nan')])
def test_prune_refuses(keep):
    with pytest.raises(ValueError, match=r'keep must lie in \(0, 1\]'): prune(torch.randn(3), keep)

each_cut = pytest.mark.parametrize('cut', [prune_entries, prune_components, prune_singular])

@each_cut
@pytest.mark.parametrize('keep', [1e-9, .2, .5, 1.])
def test_kept_energy_and_error_equal_dense(cut, keep):
    p = lowrank(9, 13, 5)
    done = prune_lowrank(p, keep, cut)
    P, Q = p.delta(), done.p.delta()
    close = dict(rtol=1e-9, atol=1e-9)  # the error is a root of a difference
    energy = float(Q.square().sum() / P.square().sum())
    assert done.energy == pytest.approx(energy, rel=1e-9, abs=1e-9)
    assert done.error == pytest.approx(float((P - Q).norm() / P.norm()), rel=1e-6, abs=1e-7)
    if cut is prune_entries: assert_close(Q, prune(p.B, keep) @ prune(p.A, keep), **close)
    if cut is prune_singular:
        U, S, Vh = torch.linalg.svd(P)
        n = max(1, int(keep * 5))
        assert_close(Q, U[:, :n] * S[:n] @ Vh[:n], **close)
    if cut is prune_components and keep < 1:
        sizes = torch.stack([torch.outer(b, a).norm() for b, a in zip(p.B.T, p.A)])
        best = sizes.argsort(descending=True)[:max(1, int(keep * 5))]
        assert_close(Q, p.B[:, best] @ p.A[best], **close)

@each_cut
@pytest.mark.parametrize('keep', [1., .5])
def test_of_an_untrained_adapter_nothing_is_lost(keep, cut):
    nothing = LowRank(torch.randn(4, 8), torch.zeros(6, 4))
    done = prune_lowrank(nothing, keep, cut)
    _, report = prune_adapter({'a': nothing, 'b': nothing}, keep, cut)
    assert (done.energy, done.error) == (report['kept_energy'], report['prune_error']) == (1., 0.)

# -- metrics

R1 = [[.90, .10, .05, .08], [.92, .85, .12, .10], [.80, .88, .95, .15], [.70, .60, .90, .93]]
R2 = [*R1[:3], [.70, .60, .97, .93]]
b = [.10, .05, .06, .04]
table = [(metrics.final_accuracy, .782500, .800000),
         (metrics.average_incremental_accuracy, .861042, .865417),
         (metrics.forgetting, .183333, .160000),
         (lambda R: metrics.forgetting(R, 'chaudhry'), .183333, .160000),
         (lambda R: metrics.forgetting(R, 'clipped'), .183333, .166667),
         (lambda R: metrics.forgetting(R, 'first'), .166667, .143333),
         (metrics.backward_transfer, -.166667, -.143333),
         (lambda R: metrics.forward_transfer(R, b), .073333, .073333)]
names = ['final', 'average', 'forgetting', 'chaudhry', 'clipped', 'first', 'backward', 'forward']
each_metric = pytest.mark.parametrize('metric, first, second', table, ids=names)

@each_metric
def test_metric_table(metric, first, second):
    assert metric(R1) == pytest.approx(first, abs=5e-7)
    assert metric(R2) == pytest.approx(second, abs=5e-7)

@each_metric
def test_metrics_take_arrays_and_leave_them_alone(metric, first, second):
    M = np.array(R1)
    assert metric(M) == metric(R1)
    assert (M == np.array(R1)).all()

@pytest.mark.parametrize('metric', [row[0] for row in table[:-1]], ids=names[:-1])
def test_metrics_ignore_the_future(metric):
    ragged = [row[:t + 1] for t, row in enumerate(R1)]
    padded = [row[:t + 1] + [None] * (3 - t) for t, row in enumerate(R1)]
    assert metric(ragged) == metric(padded) == metric(R1)

def test_metrics_of_a_single_task():
    m = metrics.all_metrics([[.8]], [10])
    average = 'average_incremental_accuracy'
    forgotten = {'forgetting', 'forgetting_clipped', 'forgetting_first', 'backward_transfer'}
    same = {'final_accuracy', average, f'{average}_sample_weighted'}
    assert {k for k, v in m.items() if v == .8} == same
    assert {k for k, v in m.items() if v == 0} == forgotten
    assert metrics.forward_transfer([[.8]], [.1]) == 0

def test_sample_weighted_average():
    by_hand = (.9 + (.8 * 30 + .5 * 10) / 40) / 2
    ours = metrics.average_incremental_accuracy([[.9], [.8, .5]], [30, 10])
    assert ours == pytest.approx(by_hand)

@pytest.mark.parametrize('R, message', [([], 'at least one row'), ([[.5], [.5]], 'Row 1'),
                                        ([[.5], [None, .5]], 'Row 1'),
                                        ([[.5, .5, .5], [.5, .5]], 'Row 0')],
                         ids=['empty', 'short', 'gap', 'long'])
def test_metrics_refuse_a_matrix_that_is_none(R, message):
    with pytest.raises(ValueError, match=message): metrics.final_accuracy(R)

def test_metrics_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match='missing for task 1'):
        metrics.forward_transfer([[.5], [.5, .5]], [0, 0])
    with pytest.raises(ValueError, match='1 baselines for 2 tasks'):
        metrics.forward_transfer([[.5, .5], [.5, .5]], [0])
    with pytest.raises(ValueError, match='1 sizes for 2 tasks'):
        metrics.average_incremental_accuracy([[.5], [.5, .5]], [1])
    with pytest.raises(ValueError, match="Unknown forgetting 'best'"):
        metrics.forgetting([[.5]], 'best')
