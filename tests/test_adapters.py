"Names of layers and blocks that are refused, and what holds of all adapted layers at once"
import pytest
import torch
from torch import nn

from ham_nb.adapters import (adapt, baked, find_targets, read_adapter, read_groups, set_groups,
                             start_adapters)
from ham_nb.lora import LoRALinear

@pytest.mark.parametrize('targets, blocks, message', [
    ('qkv', None, "Unknown target 'qkv', this backbone has attn.qkv, attn.proj"),
    ([], None, r'at least one layer, got \[\]'),
    (['attn.qkv', 'attn.v'], None, 'and a part of it'),
    ('attn.qkv', [40], 'There is no block 40'),
    ('attn.qkv', '4-11', r"written as '4\.\.11' or '4', got '4-11'"),
    ('attn.qkv', '4..', r"got '4\.\.'"), ('attn.qkv', [], r'at least one block, got \[\]'),
    ('attn.qkv', '4..3', r"at least one block, got '4\.\.3'")])
def test_find_targets_refuses(vit, targets, blocks, message):
    with pytest.raises(ValueError, match=message): find_targets(vit, targets, blocks)

def test_blocks_are_numbers_or_text(vit):
    for block in ('4', [4]): assert find_targets(vit, blocks=4) == find_targets(vit, blocks=block)
    assert find_targets(vit, blocks='1..3') == find_targets(vit, blocks=range(1, 4))

def test_a_model_is_adapted_once(vit):
    adapt(vit, rank=2)
    with pytest.raises(ValueError, match='carries an adapter already'): adapt(vit, rank=2)

def test_starts_are_those_of_the_seed(vit):
    layers = adapt(vit, rank=2)
    def A(*args):
        start_adapters(layers, *args)
        return torch.cat([p.A for p in read_adapter(layers).values()])
    assert torch.equal(A(5), A(5)) and torch.equal(A(5, 2), A(5, 2))
    assert not torch.equal(A(5), A(5, 0)) and not torch.equal(A(5, 0), A(5, 1))

def test_importance_is_shared_or_each_layers_own_or_fixed(vit):
    layers = adapt(vit, rank=2)
    def scalars(importance):
        set_groups(layers, [read_adapter(layers)], importance)
        return len({id(l.importance) for l in layers.values() if l.importance.requires_grad})
    assert [scalars(i) for i in ('adapter', 'layer', 'fixed')] == [1, len(layers), 0]
    message = "Unknown importance 'block', known are adapter, layer, fixed"
    with pytest.raises(ValueError, match=message): scalars('block')

def test_an_error_on_the_way_in_leaves_the_model_as_it_was(vit):
    layers, x = adapt(vit, rank=2), torch.randn(2, 3, 16, 16)
    for l in layers.values(): nn.init.normal_(l.B)
    before, adapter = vit(x), read_adapter(layers)
    one = dict(list(adapter.items())[:1])
    with pytest.raises(KeyError), baked(layers, one): pass
    with pytest.raises(ValueError, match='layers are baked already'), baked(layers):
        with baked(layers, adapter): pass
    assert torch.equal(vit(x), before) and not any(l.baked for l in layers.values())

def test_groups_are_read_as_they_were_given(vit):
    layers = adapt(vit, rank=2)
    for l in layers.values(): nn.init.normal_(l.B)
    given = [read_adapter(layers)] * 2
    set_groups(layers, given, max_rank=10)
    for group, own in zip(read_groups(layers), given, strict=True):
        for path in layers:
            assert torch.equal(group[path].A, own[path].A)
            assert torch.equal(group[path].B, own[path].B)
    set_groups(layers, [])
    assert read_groups(layers) == []

def test_a_scalar_is_not_rounded_in_mixed_precision():
    layer, x = LoRALinear(nn.Linear(64, 192), rank=4), torch.randn(5, 64)
    nn.init.normal_(layer.B)
    def out(scalar):
        layer.importance.data.fill_(scalar)
        with torch.no_grad(), torch.autocast('cpu', torch.bfloat16): return layer(x)
    assert torch.tensor(1.0035).bfloat16() == 1 and not torch.equal(out(1.), out(1.0035))
