"""A model that learns new classes forgets the old ones. Old images that are kept, or an adapter for every task, cost more with each task.

HAM goes on learning at a fixed cost. A frozen vision transformer learns task after task, and each task trains a low-rank adapter (LoRA) with an importance scalar. Adapters that are alike are merged into at most `g_max` groups, and at the end all of them are baked into one plain timm model. It keeps no old image and needs no task label. This is *Hierarchical Adapters Merging* ([arXiv 2509.13211](https://arxiv.org/abs/2509.13211)), for any timm ViT and for your own images."""

__version__ = "0.1.0"

from ham_nb.backbone import load_backbone
from ham_nb.baselines import Frozen, Sequential
from ham_nb.ham import HAM
from ham_nb.plots import plot_curves
from ham_nb.run import Run
from ham_nb.stream import TaskStream
from ham_nb.train import TrainConfig
from ham_nb.learn import begin, learn
from ham_nb import datasets, export, folders, results  # what they add to streams and runs
