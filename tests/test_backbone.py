"Backbones: what is refused, and features however they are computed"
import pytest
import torch
from safetensors.torch import save_file

from ham_nb.backbone import ASSETS, NANO, above, below, extract, load_backbone
from ham_nb.images import Augment, digits

@pytest.mark.parametrize('name, other, words', [
    ('vit_tiny_patch16_223', {}, "Unknown backbone 'vit_tiny_patch16_223'"),
    ('resnet18.a1_in1k', dict(pretrained=False), 'is not a vision transformer'),
    ('deit_tiny_distilled_patch16_224.fb_in1k', dict(pretrained=False), 'has two classifiers'),
    (NANO, dict(image_size=50), 'Image size 50 is not divisible by the patch size 8'),
    (NANO, dict(weights='nowhere.safetensors'), 'No such weights file'),
    (NANO, dict(weights='nowhere.safetensors', pretrained=False), "random weights, got weights="),
], ids=['unknown', 'no ViT', 'two classifiers', 'size', 'no file', 'random, and a file'])
def test_refused(name, other, words):
    with pytest.raises(ValueError, match=words) as e: load_backbone(name, **other, device='cpu')
    assert '\n' not in str(e.value)

def test_weights_of_another_model(tmp_path):
    save_file({'patch_embed.proj.weight': torch.zeros(1)}, tmp_path/'other.safetensors')
    with pytest.raises(ValueError, match="does not hold the weights of 'nano_vit.omniglot'"):
        load_backbone(weights=tmp_path/'other.safetensors', device='cpu')

def test_half_a_file(tmp_path):
    half = (ASSETS/'nano_vit.safetensors').read_bytes()[:5000]
    (tmp_path/'half.safetensors').write_bytes(half)
    with pytest.raises(ValueError, match='not a readable safetensors file'):
        load_backbone(weights=tmp_path/'half.safetensors', device='cpu')

def test_frozen():
    model, _ = load_backbone(device='cpu')
    assert not model.training and not any(p.requires_grad for p in model.parameters())

def test_features_do_not_depend_on_the_batch():
    (model, pre), images = load_backbone(device='cpu'), digits()[1][:40]
    whole, parts = (extract(model, pre, images, bs, precision='fp32') for bs in (40, 7))
    torch.testing.assert_close(whole, parts, atol=1e-5, rtol=1e-4)

def test_augmented_features_are_of_their_seed():
    (model, pre), images = load_backbone(device='cpu'), digits()[1][:8]
    z = [extract(model, pre, images, augment=Augment(), seed=s) for s in (0, 0, 1)]
    assert torch.equal(z[0], z[1]) and not torch.equal(z[0], z[2])

@pytest.mark.parametrize('block', range(7))
def test_above_goes_on_where_below_stopped(block):
    (model, pre), images = load_backbone(device='cpu'), digits()[1][:4]
    x = pre(images.x)
    assert torch.equal(above(model, below(model, x, block), block), model(x))
