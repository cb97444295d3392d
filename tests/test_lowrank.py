"Low-rank algebra where no lesson needs it: other precisions, no loss, what is refused"
import pytest
import torch
from torch.testing import assert_close

from ham_nb.lowrank import LowRank, compress, concat, inner, stack, truncate

def orthogonal(S):
    "Singular values `S` between random orthogonal vectors, in float32"
    U, V = (torch.linalg.qr(torch.randn(n, len(S))).Q for n in (288, 96))
    return LowRank(V.T, U * torch.tensor(S))

def test_all_of_the_energy_keeps_small_singular_values():
    assert compress(orthogonal([1., .5, .2, 9e-4]), energy=1.)[0].rank == 4

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_goes_in_and_comes_out(dtype):
    p = orthogonal([1., 1., 1., 1.])
    short = compress(LowRank(p.A.to(dtype), p.B.to(dtype)), energy=.6)[0]
    assert short.rank == 3 and short.A.dtype == short.B.dtype == dtype

def test_more_ranks_than_there_are_lose_nothing():
    p = LowRank(torch.randn(5, 40).double(), torch.randn(60, 5).double())
    kept, error = compress(p, rank=100)
    assert kept.rank == 5 and error == 0
    assert_close(kept.delta(), p.delta())

def test_a_batch_keeps_as_many_ranks_as_its_hardest_layer():
    easy, hard = orthogonal([1., .01, .01, .01]), orthogonal([1., 1., 1., .01])
    both = LowRank(torch.stack([easy.A, hard.A]), torch.stack([easy.B, hard.B]))
    assert [compress(q, energy=.99)[0].rank for q in (easy, hard, both)] == [1, 3, 3]

def test_layers_of_one_shape_and_rank_are_stacked():
    p, q = orthogonal([1., .5]), orthogonal([1., .2])
    alike, other = stack({'fc1': p, 'fc2': LowRank(p.B.mT, p.A.mT), 'qkv': q})
    assert (alike[0], other[0]) == (['fc1', 'qkv'], ['fc2'])
    assert torch.equal(alike[1].A[1], q.A) and torch.equal(other[1].B[0], p.A.mT)

def test_all_of_a_sum_with_itself_needs_no_more_ranks():
    p = LowRank(torch.randn(5, 40).double(), torch.randn(60, 5).double())
    assert compress(concat([p, p]), energy=1.)[0].rank == 5

@pytest.mark.parametrize('settings, message', [
    ({}, 'Give a rank or an energy, got rank=None and energy=None'),
    (dict(rank=0), 'at least 1, got rank=0'), (dict(energy=0.), 'got energy=0'),
    (dict(energy=1.5), r'\(0, 1\], got energy=1.5')], ids=['neither', 'rank', 'nothing', 'energy'])
def test_truncate_refuses(settings, message):
    with pytest.raises(ValueError, match=message): truncate(orthogonal([1., .5]), **settings)

def test_what_does_not_fit_is_refused():
    p, q = orthogonal([1., .5]), orthogonal([1., .5, .2])
    with pytest.raises(ValueError, match='A has rank 2 but B has rank 3'): LowRank(p.A, q.B)
    with pytest.raises(ValueError, match=r'\(288, 96\) and \(96, 288\) differ'):
        inner(p, LowRank(p.B.mT, p.A.mT))
    with pytest.raises(ValueError, match='Shapes differ'): concat([p, LowRank(p.B.mT, p.A.mT)])
    with pytest.raises(ValueError, match='3 weights for 2 matrices'): concat([p, q], [1, 2, 3])
    with pytest.raises(ValueError, match='at least one matrix, got 0'): concat([])
