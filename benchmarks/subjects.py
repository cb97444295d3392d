"""What is measured: training steps of HAM, of its floor, of PEFT and of full fine-tuning.

All are on the same batch."""
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ham_nb.device import autocast
from ham_nb.backbone import NANO, above, below, load_backbone
from ham_nb.ham import HAM
from ham_nb.adapters import adapt, trainable


@dataclass(frozen=True)
class Size:
    "What is trained; weights are random, which times do not depend on"
    backbone: str
    image_size: int
    bs: int
    rank: int = 8
    lr: float = 1e-4

SIZES = {
    'quick': Size(NANO, 32, 8, rank=4),
    'cpu': Size('vit_tiny_patch16_224.augreg_in21k_ft_in1k', 96, 32),
    'cuda': Size('vit_base_patch16_224.augreg_in21k', 224, 64, rank=16),
}


class Bench:
    "A size on a device: builds subjects that share one batch"
    def __init__(self, size: Size, device: torch.device, precision: str, compiled: bool):
        self.size, self.device, self.precision, self.compiled = size, device, precision, compiled
        if compiled:  # all subjects share the code of timm's block; beyond the limit it is eager
            torch._dynamo.config.recompile_limit = 1000
            torch._dynamo.config.accumulated_recompile_limit = 1000
        torch.manual_seed(0)
        self.x = torch.randn(size.bs, 3, size.image_size, size.image_size, device=device)
        self.y = torch.randint(10, (size.bs,), device=device)

    def backbone(self) -> nn.Module:
        side, device = self.size.image_size, self.device
        return load_backbone(self.size.backbone, None, side, device, pretrained=False)[0]

    def prepare(self, model: nn.Module):
        "Compile the blocks, where that is asked for, once"
        for block in model.blocks:
            if self.compiled and block._compiled_call_impl is None: block.compile()

    def step(self, model: nn.Module, features: Callable, params: list,
             penalty: Callable = lambda: 0.) -> Callable:
        "A training step as in the training loop, without the data: forward, backward, clip, AdamW"
        self.prepare(model)
        head = nn.Linear(model.num_features, 10, device=self.device)
        params = [*params, *head.parameters()]
        opt = torch.optim.AdamW(params, lr=self.size.lr, fused=True)
        def run():
            with autocast(self.device, self.precision): z = features()
            (F.cross_entropy(head(z.float()), self.y) + penalty()).backward()
            nn.utils.clip_grad_norm_(params, 1.)
            opt.step(); opt.zero_grad(set_to_none=True)
        return run

    def ham_layers(self, task: int, targets: str = 'attn.qkv', **settings):
        "Model, layers, HAM at the start of a task, from 1; random adapters stand in for the past"
        model, ham = self.backbone(), HAM(**settings)
        layers = adapt(model, targets, self.size.rank)
        for i in range(task - 1):
            ham.begin_task(layers, i, seed=0)
            randomise(layers)
            ham.end_task(layers, i, lambda: model(self.x))
        ham.begin_task(layers, task - 1, seed=0)
        return model, layers, ham

    def ham(self, task: int, targets: str = 'attn.qkv', **settings) -> Callable:
        model, layers, ham = self.ham_layers(task, targets, **settings)
        return self.step(model, lambda: model(self.x), trainable(layers), ham.penalty)

    def floor(self) -> Callable:
        "The frozen backbone, forward and backward: what an adapter in the first block pays too"
        model = self.backbone()
        def features(): return above(model, below(model, self.x, 0).detach().requires_grad_(), 0)
        return self.step(model, features, [])

    def full(self) -> Callable:
        "Fine-tuning of every weight"
        model = self.backbone().requires_grad_(True)
        return self.step(model, lambda: model(self.x), list(model.parameters()))

    def peft(self, adapters: int, targets: str = 'attn.qkv', all_trained: bool = False) -> Callable:
        "PEFT with several active adapters of the same rank on the same layers; the last is trained"
        from peft import LoraConfig, get_peft_model
        model, names = self.backbone(), [f'task{i}' for i in range(adapters)]
        r = self.size.rank
        config = LoraConfig(r=r, lora_alpha=r, target_modules=targets.split(','))
        wrapped = get_peft_model(model, config, names[0])
        for name in names[1:]: wrapped.add_adapter(name, config)
        wrapped.base_model.set_adapter(names)
        if not all_trained:  # which is what set_adapter makes of them
            for path, p in wrapped.named_parameters(): p.requires_grad_(f'.{names[-1]}.' in path)
        params = [p for p in wrapped.parameters() if p.requires_grad]
        return self.step(model, lambda: model(self.x), params)


def randomise(layers: dict):
    "Adapters as training might leave them; small, so that a hundred of them leave the model finite"
    for l in layers.values(): nn.init.normal_(l.B, std=1e-3)
