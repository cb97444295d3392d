"What several test files share"
import os

os.environ.setdefault('MPLBACKEND', 'agg')    # before matplotlib is imported
os.environ.setdefault('HF_HUB_OFFLINE', '1')  # no test downloads
# Before torch is imported: on shared cores its threads wait for each other, up to 80 times as long.
os.environ.setdefault('OMP_NUM_THREADS', '1')

import pytest
import torch
from torch import nn

from ham_nb.backbone import nano_vit

@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)

@pytest.fixture
def vit():
    "A small vision transformer with random weights, as `load_backbone` would return it"
    return nano_vit(16).requires_grad_(False).eval()

@pytest.fixture
def pretend_training():
    "Moves what training moves: A and B of the current adapter and all importance scalars"
    def move(layers):
        for l in layers.values():
            nn.init.normal_(l.B, std=.05)
            l.A.data += .05 * torch.randn_like(l.A)
            nn.init.normal_(l.importance, mean=1, std=.3)
    return move
