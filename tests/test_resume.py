"A run that is killed, stopped or out of disk space goes on as if nothing had happened"
import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ham_nb.cli import train_command
from ham_nb.checkpoint import checkpoints
from ham_nb.card import read_log
from ham_nb.learn import begin, learn
from ham_nb.stream import TaskStream
from ham_nb.ham import HAM
from ham_nb.train import Loop, OutOfMemory, TrainConfig
from ham_nb.callbacks import Stopped

FOUR = ('--dataset toy --tasks 4 --limit-per-class 24 --set natural_order=true --epochs 4 --bs 8 '
        '--set save_every=1 --device cpu').split()
# of all that a card holds, what two runs cannot share
TIMES = 'seconds_per_task', 'seconds_testing'

# Every start is a process of its own, forked from one that has imported torch and timm already.
nursery = multiprocessing.get_context('forkserver')
nursery.set_forkserver_preload(['ham_nb.cli'])

def run_command(args, cwd):
    os.chdir(cwd)
    for fd, path in ((1, os.devnull), (2, 'stderr.txt')):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
    sys.exit(train_command([*args]))

def start(*args, cwd):
    p = nursery.Process(target=run_command, args=(args, cwd))
    p.start()
    return p

def ended(p, cwd): # Exit code and what it complained of
    p.join(60)
    return p.exitcode, (cwd/'stderr.txt').read_text()

def without(d, names): return {k: v for k, v in d.items() if k not in names}
def card(out): return without(json.loads((Path(out)/'results.json').read_text()), TIMES)
def log(out): return [without(line, ['images_per_second']) for line in read_log(out)]

def assert_same_run(a, b):
    assert card(a) == card(b) and log(a) == log(b)
    a, b = (load_file(checkpoints(out)[-1]) for out in (a, b))
    assert a.keys() == b.keys()
    for k in a: assert torch.equal(a[k], b[k]), k

@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
    out = tmp_path_factory.mktemp('unbroken')/'run'
    assert train_command([*FOUR, '--out', str(out)]) == 0
    return out

@pytest.mark.parametrize('number', [10, pytest.param(100, marks=pytest.mark.trial)])
def test_kills_at_random_moments_change_nothing(number, unbroken, tmp_path):
    out, rng, kills = tmp_path/'run', random.Random(time.time()), 0
    def position(): return [p.name for p in checkpoints(out)]
    def resumed(): return ['--resume'] if checkpoints(out) else []
    while kills < number:
        p = start(*FOUR, '--out', 'run', *resumed(), cwd=tmp_path)
        seen, until = position(), time.monotonic() + 60
        # so that every start gets somewhere
        while p.is_alive() and position() == seen and time.monotonic() < until: time.sleep(.01)
        time.sleep(rng.uniform(0, .4))
        p.kill()
        code, err = ended(p, tmp_path)
        assert code in (-signal.SIGKILL, 0), err
        if code == 0:  # it was over sooner: the same once more
            assert_same_run(out, unbroken)
            shutil.rmtree(out)
        else: kills += 1
    assert train_command([*FOUR, '--out', str(out), *resumed()]) == 0
    assert_same_run(out, unbroken)

@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_a_step(number, unbroken, tmp_path):
    p, out = start(*FOUR, '--out', 'run', cwd=tmp_path), tmp_path/'run'
    until = time.monotonic() + 60
    while not read_log(out) and time.monotonic() < until: time.sleep(.02)
    os.kill(p.pid, number)
    code, err = ended(p, tmp_path)
    assert code == 130 and 'Traceback' not in err, err
    assert '--resume' in err.splitlines()[-1] and "'run'" in err, err
    states = {p.name for p in checkpoints(out)}
    assert states and not set(os.listdir(out)) - states - {'log.jsonl', 'results.json'}
    assert train_command([*FOUR, '--out', str(out), '--resume']) == 0
    assert_same_run(out, unbroken)

def stop_after(monkeypatch, steps):
    "Raise the flag as the signal would, after so many steps of the run"
    step = Loop.train_step
    def counted(self, xb, yb):
        nonlocal steps
        step(self, xb, yb)
        if (steps := steps - 1) == 0: os.kill(os.getpid(), signal.SIGINT)
    monkeypatch.setattr(Loop, 'train_step', counted)

CHOICES = { # what a state in mid-task has to bring back beside the ordinary
    'views': dict(train=TrainConfig(epochs=2, bs=8, cached_views=2), blocks='3..5'),
    'fp16': dict(train=TrainConfig(epochs=2, bs=8), precision='fp16'),
    'accumulate': dict(train=TrainConfig(epochs=2, bs=8, accumulate=3, weight_decay=.1),
                       head='ridge'),
    'linear head': dict(train=TrainConfig(epochs=2, bs=8, label_smoothing=.1), head='linear'),
}

class Draws(HAM):
    "Uses generators that are not the loop's"
    def penalty(self): return 1e-3 * (torch.rand(()) + random.random() + float(np.random.rand()))

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "Unbroken runs, each made once"
    made = {}
    def get(name):
        if name not in made: made[name] = learn_toy(name, tmp_path_factory.mktemp('whole'))
        return made[name]
    return get

def learn_toy(name, out, **more):
    # 32 images a task, so 4 steps an epoch and 8 a task
    stream = TaskStream.named('toy', tasks=3, seed=0, limit_per_class=8)
    learn(stream, out=out, method=Draws(), device='cpu', seed=3, **CHOICES[name], **more)
    return out

@pytest.mark.parametrize('name, steps', [
    ('views', 1), ('views', 5), ('accumulate', 4), ('accumulate', 8), ('linear head', 15),
    pytest.param('fp16', 5, marks=pytest.mark.trial)])
def test_stopped_after_any_step(name, steps, whole, tmp_path, monkeypatch):
    whole = whole(name)
    with monkeypatch.context() as m:
        stop_after(m, steps)
        with pytest.raises(Stopped, match='resume'): learn_toy(name, tmp_path)
    torch.manual_seed(1); random.seed(1); np.random.seed(1)
    learn_toy(name, tmp_path, resume=True)
    assert_same_run(tmp_path, whole)

def test_the_last_two_checkpoints_are_kept(unbroken):
    kept = [p.name for p in checkpoints(unbroken)]
    assert kept == ['state-003-000036.safetensors', 'state-004.safetensors']

def test_a_full_disk_leaves_the_last_good_state(unbroken, tmp_path, monkeypatch, capsys):
    sync, calls = os.fsync, []
    def full(fd):
        calls.append(fd)
        if len(calls) >= 5: raise OSError(errno.ENOSPC, 'No space left on device')
        sync(fd)
    with monkeypatch.context() as m:
        m.setattr(os, 'fsync', full)
        assert train_command([*FOUR, '--out', str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and 'No space left' in err and 'resume' in err
    assert len(checkpoints(tmp_path)) == 2 and not list(tmp_path.glob('*.part'))
    assert train_command([*FOUR, '--out', str(tmp_path), '--resume']) == 0
    assert_same_run(tmp_path, unbroken)

def out_of_memory(*args):
    raise torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')

def test_out_of_memory_says_what_to_lower(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Loop, 'loss', out_of_memory)
    assert train_command([*FOUR, '--set', 'accumulate=2', '--out', str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    for part in '4 images at once', 'accumulate above 2', 'bs 8': assert part in err

def test_no_room_for_views_names_them(tmp_path, monkeypatch):
    monkeypatch.setattr(Loop, '_cache_views', out_of_memory)
    settings = dict(blocks=4, device='cpu', train=TrainConfig(cached_views=2))
    run = begin(TaskStream.named('toy', tasks=2), **settings)
    with pytest.raises(OutOfMemory, match='2 views of them: lower cached_views'): run.learn_task()

def test_a_line_cut_short_is_no_line_of_the_log(tmp_path):
    (tmp_path/'log.jsonl').write_text('{"task": 0, "step": 20}\n{"task": 0, "st')
    assert read_log(tmp_path) == [dict(task=0, step=20)]
    assert read_log(tmp_path/'nowhere') == []
