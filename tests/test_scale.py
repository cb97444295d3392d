"One process or several, whole batches or parts, compiled or not: the same run"
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from torch.torch_version import TorchVersion

import ham_nb
from ham_nb.device import pick_device
from ham_nb.cli import train_command
from ham_nb.checkpoint import checkpoints
from ham_nb.card import read_log
from ham_nb.learn import begin, learn
from ham_nb.stream import TaskStream
from ham_nb.ham import HAM
from ham_nb.train import TrainConfig

# Batches of 13: where all classes are equally often in a batch, the first gradient of a row's
# bias is rounding alone, which Adam scales up
RUN = ('--dataset toy --tasks 3 --set natural_order=true --limit-per-class 10 --epochs 2 --bs 13 '
       '--device cpu --set precision=fp32 --lr 1e-4 --method ham-anchored').split()
START = 'import sys; from ham_nb.cli import train_command; sys.exit(train_command())'

def state_of(out): return load_file(checkpoints(out)[-1])
def adapters(out): # All that is added to each frozen weight; factors of one product may differ
    state = state_of(out)
    return {k: state[k] @ state[k.replace('groups_B', 'groups_A')]
            for k in state if k.endswith('groups_B')}
def statistics(out):
    kept = {k: v for k, v in state_of(out).items() if k.startswith(('head.', 'method.'))}
    return {k: v for k, v in kept.items() if v.is_floating_point()}
def matrix(out): return json.loads((Path(out)/'results.json').read_text())['accuracy_matrix']
def relative(a, b): return max(((a[k] - b[k]).norm() / b[k].norm()).item() for k in b)

@pytest.fixture(scope='module')
def single(tmp_path_factory):
    out = tmp_path_factory.mktemp('single')/'run'
    assert train_command([*RUN, '--out', str(out)]) == 0
    return out

def test_two_processes_learn_what_one_does(single, tmp_path):
    run = tmp_path/'run'
    (tmp_path/'start.py').write_text(START)
    env = {**os.environ, 'PYTHONPATH': str(Path(ham_nb.__file__).parents[1])}
    launch = [sys.executable, '-m', 'torch.distributed.run', '--standalone',
              '--nproc-per-node', '2', 'start.py']
    done = subprocess.run([*launch, *RUN, '--out', 'run'], cwd=tmp_path, env=env,
                          capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert relative(adapters(run), adapters(single)) < 1e-4
    kept = statistics(single)
    assert {'head.discriminant.means', 'head.discriminant.scatter'} < kept.keys()
    assert any(k.startswith('method.') for k in kept)  # of the anchor
    assert relative(statistics(run), kept) < 1e-4
    found, wanted = (torch.tensor(sum(matrix(out), [])) for out in (run, single))
    assert_close(found, wanted, atol=.005, rtol=0)
    lines, alone = read_log(run), read_log(single)
    places, places_alone = ([(l['task'], l['step']) for l in log] for log in (lines, alone))
    assert places == places_alone  # written once
    assert_close([l['loss'] for l in lines], [l['loss'] for l in alone], atol=1e-4, rtol=1e-4)
    assert done.stdout.count('class order') == 1  # and said once

@pytest.mark.parametrize('parts', [5, 30], ids=lambda n: f'{n} parts')
def test_parts_of_a_batch_make_the_same_step(parts, single, tmp_path):
    assert train_command([*RUN, '--set', f'accumulate={parts}', '--out', str(tmp_path)]) == 0
    assert relative(adapters(tmp_path), adapters(single)) < 1e-4
    assert matrix(tmp_path) == matrix(single)

def test_fp16_scales_its_loss_and_learns(tmp_path):
    stream = TaskStream.named('toy', tasks=3, seed=0, limit_per_class=10)
    settings = dict(train=TrainConfig(epochs=2, bs=12), device='cpu', seed=3)
    run = learn(stream, precision='fp16', out=tmp_path, **settings)
    from ham_nb.checkpoint import read_checkpoint
    assert run.card['config']['precision'] == 'fp16' and run.card['training'][-1]['steps'] == 8
    whole = learn(stream, precision='fp32', **settings)
    half_loss, loss = (r.card['training'][-1]['loss'] for r in (run, whole))
    assert half_loss == pytest.approx(loss, rel=.1)
    assert read_checkpoint(checkpoints(tmp_path)[-1])[1]['card'] == run.card

@pytest.mark.parametrize('group_rank', [pytest.param(None, marks=pytest.mark.trial), 0],
                         ids=['fixed rank', 'growing rank'])
def test_compiling_happens_once_and_changes_nothing(group_rank, monkeypatch):
    """Graphs over a run of three tasks, whose head and (without a budget) rank grow: training,
    and testing with folded weights; each once for the whole batches and once for batches of
    any size"""
    from torch._dynamo.utils import counters
    compile = torch.nn.Module.compile
    def traced(self): compile(self, backend='aot_eager')  # tracing, without generated code
    monkeypatch.setattr(torch.nn.Module, 'compile', traced)
    torch._dynamo.reset()
    stream = TaskStream.named('toy', tasks=3, seed=0, limit_per_class=10)
    settings = dict(train=TrainConfig(epochs=2, bs=12), device='cpu', precision='fp32', seed=3)
    def method(): return HAM(tau=1., group_rank=group_rank)
    counters.clear()
    run, graphs = begin(stream, method=method(), compiled=True, **settings), []
    for _ in range(3):
        run.learn_task()
        graphs.append(counters['stats']['unique_graphs'])
    print(f'{graphs=}')
    assert not counters['graph_break']
    assert all(after - before <= 2 for before, after in zip(graphs, graphs[1:]))
    assert 0 < graphs[0] <= 6
    eager = learn(stream, method=method(), **settings)
    assert run.card['accuracy_matrix'] == eager.card['accuracy_matrix']
    for path, l in run.layers.items():
        assert_close(l.groups_B, eager.layers[path].groups_B, atol=1e-5, rtol=1e-4)

@pytest.mark.parametrize('version, device', [('2.7.1', 'cpu'), ('2.8.0', 'mps')])
def test_mps_is_picked_where_it_does_what_is_needed(version, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: True)
    monkeypatch.setattr(torch, '__version__', TorchVersion(version))
    assert pick_device().type == device and pick_device('mps').type == 'mps'
