"What holds for every input, on inputs that hypothesis chooses"
import math
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from ham_nb.controls import prune_components, prune_singular
from ham_nb.grouping import assign
from ham_nb.lowrank import LowRank, compress, concat, cosine, inner, norm
from ham_nb.metrics import (average_incremental_accuracy, backward_transfer, final_accuracy,
                            forgetting, forward_transfer)
from ham_nb.pruning import overlap, prune, prune_entries, prune_lowrank

# the same examples for everyone; HYPOTHESIS=search looks for new ones
settings.register_profile('same', deadline=None, max_examples=40, derandomize=True, database=None)
settings.register_profile('search', deadline=None, max_examples=1000)
settings.load_profile(os.environ.get('HYPOTHESIS', 'same'))

tight = dict(rtol=1e-9, atol=1e-9)
sizes, ranks, seeds = st.integers(1, 9), st.integers(1, 6), st.integers(0, 2**31 - 1)
scalars = st.floats(.01, 100) | st.floats(-100, -.01)

@st.composite
def lowranks(draw, n=1, shape=None):
    "`n` matrices of one shape, each of its own rank; from a seed, not degenerate by accident"
    d, k = shape or (draw(sizes), draw(sizes))
    g = torch.Generator().manual_seed(draw(seeds))
    def random(*shape): return torch.randn(*shape, generator=g, dtype=torch.float64)
    def one(r): return LowRank(random(r, k), random(d, r))
    return [one(draw(ranks)) for _ in range(n)]

# -- lowrank

@given(lowranks(2), scalars, scalars)
def test_cosine_is_symmetric_bounded_and_blind_to_size(ps, s, t):
    p, q = ps
    c = cosine(p, q)
    assert_close(c, cosine(q, p), **tight)
    assert c.abs() <= 1 + 1e-9
    assert_close(cosine(concat([p], [s]), concat([q], [t])), c * math.copysign(1, s * t), **tight)
    assert_close(cosine(p, p), torch.ones_like(c), **tight)

@given(lowranks(1))
def test_cosine_with_zero_is_zero(ps):
    p, = ps
    zero = LowRank(p.A, torch.zeros_like(p.B))
    assert cosine(p, zero) == cosine(zero, p) == cosine(zero, zero) == 0

@given(lowranks(3), scalars, scalars)
def test_inner_is_bilinear_over_concat(ps, s, t):
    p, q, x = ps
    assert_close(inner(concat([p, q], [s, t]), x), s * inner(p, x) + t * inner(q, x), **tight)

@given(st.integers(1, 5).flatmap(lowranks), st.data())
def test_concat_is_the_weighted_sum(ps, data):
    w = data.draw(st.lists(scalars, min_size=len(ps), max_size=len(ps)))
    cat = concat(ps, w)
    assert cat.rank == sum(p.rank for p in ps)
    assert_close(cat.delta(), sum(c * p.delta() for c, p in zip(w, ps)), **tight)

@given(lowranks(1))
def test_a_matrix_minus_itself_has_no_norm(ps):
    p, = ps
    assert norm(concat([p, p], [1., -1.])) <= 1e-6 * norm(p)

@given(lowranks(2))
def test_compress_reports_its_error_which_falls_with_the_rank(ps):
    p = concat(ps)
    errors = []
    for r in range(1, p.rank + 1):
        small, error = compress(p, r)
        assert small.rank <= r
        assert_close(error, (p.delta() - small.delta()).norm() / p.delta().norm(), **tight)
        errors.append(error.item())
    assert all(b <= a + 1e-12 for a, b in zip(errors, errors[1:]))
    assert errors[-1] <= 1e-9

@given(lowranks(1), st.floats(.01, 1))
def test_compress_keeps_the_energy_asked_for(ps, energy):
    small, error = compress(ps[0], energy=energy)
    assert 1 - error**2 >= energy - 1e-9
    if small.rank > 1:  # one rank fewer would be too few
        assert 1 - compress(ps[0], small.rank - 1)[1]**2 < energy + 1e-9

@given(sizes, sizes, ranks, ranks, st.integers(1, 4), seeds)
def test_a_batch_equals_a_loop(d, k, r, s, n, seed):
    g = torch.Generator().manual_seed(seed)
    def random(*shape): return torch.randn(n, *shape, generator=g, dtype=torch.float64)
    def batch(r): return LowRank(random(r, k), random(d, r))
    p, q = batch(r), batch(s)
    def layer(a, i): return LowRank(a.A[i], a.B[i])
    def each(f, *args): return torch.stack([f(*(layer(a, i) for a in args)) for i in range(n)])
    for f in inner, cosine: assert_close(f(p, q), each(f, p, q), **tight)
    assert_close(norm(p), each(norm, p), **tight)
    assert_close(concat([p, q]).delta(), each(lambda a, b: concat([a, b]).delta(), p, q), **tight)
    assert_close(compress(p, 2)[1], each(lambda a: compress(a, 2)[1], p), **tight)
    assert_close(compress(p, 2)[0].delta(), each(lambda a: compress(a, 2)[0].delta(), p), **tight)

@given(lowranks(1, (4, 5)), lowranks(1, (4, 6)))
def test_shapes_that_differ_are_refused(ps, qs):
    for f in (lambda: inner(*ps, *qs), lambda: cosine(*ps, *qs), lambda: concat([*ps, *qs])):
        with pytest.raises(ValueError, match=r'(?s)\(4, 5\).*\(4, 6\)'): f()

# -- pruning

keeps = st.floats(0, 1, exclude_min=True)
numbers = st.floats(-4, 4, width=16)  # few distinct values: many ties and zeros
tensors = st.lists(numbers, min_size=1, max_size=40).map(torch.tensor)

@given(tensors, keeps)
def test_prune_keeps_the_largest_and_changes_none(t, keep):
    kept, n = prune(t, keep), int(keep * t.numel())
    changed = kept != t
    assert kept[changed].count_nonzero() == 0
    assert kept.count_nonzero() <= n
    # fewer only where zeros were among the largest
    assert kept.count_nonzero() == n or (t[changed] == 0).all()
    assert_close(kept.abs().sum(), t.abs().sort(descending=True).values[:n].sum())

@given(tensors, keeps)
def test_prune_is_idempotent_and_blind_to_sign_and_shape(t, keep):
    kept = prune(t, keep)
    assert torch.equal(prune(kept, keep), kept)
    assert torch.equal(prune(-t, keep), -kept)
    assert torch.equal(prune(t[None, :, None], keep), kept[None, :, None])

@given(tensors, keeps, keeps)
def test_more_is_kept_of_a_larger_fraction(t, keep, other):
    few, many = (prune(t, k) for k in sorted((keep, other)))
    assert torch.equal(many[few != 0], few[few != 0])
    common = few.count_nonzero() if many.any() else 0
    assert overlap(few, many) * many.count_nonzero() == pytest.approx(common)

@given(lowranks(1), keeps, st.sampled_from([prune_entries, prune_components, prune_singular]))
def test_kept_energy_and_error_are_true(ps, keep, cut):
    p, = ps
    done = prune_lowrank(p, keep, cut)
    P, Q = p.delta(), done.p.delta()
    assert done.energy == pytest.approx(float((Q.norm() / P.norm())**2), rel=1e-6, abs=1e-9)
    assert done.error == pytest.approx(float((P - Q).norm() / P.norm()), rel=1e-6, abs=1e-6)
    if cut is prune_singular:  # an orthogonal projection
        assert done.error**2 + done.energy == pytest.approx(1, abs=1e-6)
    n, whole = max(1, int(keep * p.rank)), p.rank
    if cut is prune_singular and keep < 1: n = min(n, *p.shape)
    if cut is prune_entries:
        n = int(keep * p.A.numel()) + int(keep * p.B.numel())
        whole = p.A.numel() + p.B.numel()
    assert done.kept == n / whole

# -- grouping

similarities = st.floats(-1, 1)
taus, limits = st.floats(-1, 1), st.integers(1, 4)

@given(st.lists(st.lists(similarities, min_size=4, max_size=4), max_size=10), taus, limits)
def test_a_stream_never_needs_more_than_g_max_groups(rows, tau, g_max):
    groups = 0
    for row in rows:
        a = assign(row[:groups], tau, g_max)
        assert 0 <= a.group <= groups and a.opened == (a.group == groups)
        assert not a.forced or groups == g_max  # only when no group is left to open
        groups += a.opened
        assert groups <= g_max

@given(st.lists(similarities, min_size=1, max_size=6), taus, st.integers(1, 8))
def test_a_task_joins_the_most_similar_group(c, tau, g_max):
    a = assign(c, tau, g_max)
    best = int(np.argmax(c))  # of equal ones the first, as `assign` promises
    assert a == assign(list(c), tau, g_max) and list(a.similarities) == c
    if a.opened: assert max(c) < tau and len(c) < g_max and not a.forced
    else: assert a.group == best and a.forced == (max(c) < tau)
    if len(c) > 1: assert a.runner_up != best and c[a.runner_up] == sorted(c)[-2]
    else: assert a.runner_up is None

@given(st.lists(similarities, max_size=4), taus, taus, limits)
def test_a_higher_threshold_never_makes_a_task_join(c, tau, other, g_max):
    low, high = (assign(c, t, g_max) for t in sorted((tau, other)))
    assert high.opened >= low.opened and high.forced >= low.forced

@given(st.lists(similarities, max_size=3), st.integers(0, 3))
def test_a_similarity_that_is_no_number_is_refused(c, i):
    c.insert(i, math.nan)
    with pytest.raises(ValueError, match='must be numbers'): assign(c, .1, 5)

# -- metrics

fractions = st.floats(0, 1)
def square(T): return st.lists(st.lists(fractions, min_size=T, max_size=T), min_size=T, max_size=T)
matrices = st.integers(1, 6).flatmap(square)

@given(matrices)
def test_metrics_are_bounded_and_ordered(R):
    first, chaudhry, clipped = (forgetting(R, k) for k in ('first', 'chaudhry', 'clipped'))
    assert -1 <= first <= chaudhry + 1e-12 and chaudhry <= clipped + 1e-12 and 0 <= clipped <= 1
    assert first == -backward_transfer(R)
    assert forgetting(R) == chaudhry
    assert min(R[-1]) - 1e-12 <= final_accuracy(R) <= max(R[-1]) + 1e-12
    seen = [R[t][i] for t in range(len(R)) for i in range(t + 1)]
    assert min(seen) - 1e-12 <= average_incremental_accuracy(R) <= max(seen) + 1e-12

@given(matrices, st.randoms())
def test_averages_do_not_know_the_order_of_the_tasks_in_a_row(R, rng):
    shuffled = [rng.sample(row[:t + 1], t + 1) for t, row in enumerate(R)]
    assert average_incremental_accuracy(shuffled) == pytest.approx(average_incremental_accuracy(R))
    assert final_accuracy(shuffled) == pytest.approx(final_accuracy(R))

@given(matrices, st.randoms())
def test_forgetting_is_a_difference_of_means(R, rng):
    "So the last row may be shuffled among the old tasks, except where it takes part in the maximum"
    old = R[-1][:-1]
    shuffled = [*R[:-1], [*rng.sample(old, len(old)), R[-1][-1]]]
    for kind in 'chaudhry', 'first':
        assert forgetting(shuffled, kind) == pytest.approx(forgetting(R, kind), abs=1e-12)

@given(matrices, st.integers(1, 500), st.data())
def test_sample_weighting(R, n, data):
    plain = average_incremental_accuracy(R)
    assert average_incremental_accuracy(R, [n] * len(R)) == pytest.approx(plain)
    sizes = data.draw(st.lists(st.integers(1, 500), min_size=len(R), max_size=len(R)))
    repeated = [np.repeat(row[:t + 1], sizes[:t + 1]) for t, row in enumerate(R)]
    by_hand = np.mean([row.mean() for row in repeated])
    assert average_incremental_accuracy(R, sizes) == pytest.approx(by_hand)

@given(matrices, fractions)
def test_a_common_shift_moves_accuracies_and_not_forgetting(R, s):
    moved = [[a + s for a in row] for row in R]
    assert final_accuracy(moved) == pytest.approx(final_accuracy(R) + s)
    for kind in 'chaudhry', 'clipped', 'first':
        assert forgetting(moved, kind) == pytest.approx(forgetting(R, kind), abs=1e-12)
    unmoved = forward_transfer(R, [0] * len(R))
    assert forward_transfer(moved, [s] * len(R)) == pytest.approx(unmoved, abs=1e-12)

@given(matrices)
def test_a_model_that_never_changes_forgets_nothing(R):
    still = [R[0]] * len(R)
    assert {forgetting(still, k) for k in ('chaudhry', 'clipped', 'first')} == {0}
