"Presets, plans, sweeps, logs and trackers"
import json
import os
import signal
from importlib import import_module

import pytest
import timm
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ham_nb import callbacks, cli
from ham_nb import stream as streams
from ham_nb.backbone import NANO
from ham_nb.card import read_log
from ham_nb.cli import begin_run, combinations, report_command, train_command
from ham_nb.controls import METHODS
from ham_nb.datasets import ARCHIVES
from ham_nb.images import Images
from ham_nb.options import OPTIONS, PRESETS, SETTINGS, as_option, as_words, parse
from ham_nb.train import Callback

running = import_module('ham_nb.run')
learning = import_module('ham_nb.learn')  # by name: `ham_nb.learn` is the function

TINY = ('--dataset toy --tasks 2 --limit-per-class 8 --epochs 2 --bs 8 --device cpu '
        '--set natural_order=true').split()
BENCHMARKS = {'cifar100-10', 'cifar100-20', 'cifar100-50', 'cub200-10', 'cub200-20',
              'tiny-imagenet-10', 'tiny-imagenet-20', 'imagenet-r-10', 'imagenet-r-20'}
each_preset = pytest.mark.parametrize('name', [n for n in PRESETS if n != 'demo'])

def test_the_presets_are_those_of_the_field():
    assert set(PRESETS) == {'demo'} | BENCHMARKS | {f'{n}-vit-tiny' for n in BENCHMARKS}

@each_preset
def test_a_preset_names_what_there_is(name):
    p, known = PRESETS[name], set(timm.list_pretrained())
    dataset, tasks = p['dataset'], p['tasks']
    assert p.keys() <= SETTINGS.keys()
    assert dataset in ARCHIVES and p['backbone'] in known and '.' in p['backbone']
    assert name.startswith(f'{dataset.replace("_", "-")}-{tasks}')
    assert ARCHIVES[dataset].classes >= tasks

@pytest.mark.parametrize('name', PRESETS)
def test_a_preset_is_what_its_words_say(name):
    assert parse(['--preset', name]) == parse(as_words(PRESETS[name]).split()) | dict(preset=name)

@pytest.fixture
def stub(monkeypatch):
    "Benchmarks with as many classes as the real ones, and two images of each"
    def source(name):
        classes = [f'class {i}' for i in range(ARCHIVES[name].classes)]
        def images():
            x = torch.randint(256, (2 * len(classes), 3, 16, 16), dtype=torch.uint8)
            return Images(x, torch.arange(len(classes)).repeat(2), classes)
        return lambda root, size=16, download=False: (images(), images())
    for name in ARCHIVES: monkeypatch.setitem(streams.SOURCES, name, source(name))

@each_preset
def test_a_preset_starts(name, stub, tmp_path):
    small = f'--backbone {NANO} --image-size 32 --device cpu --epochs 1 --out {tmp_path}'
    o = parse(['--preset', name, *small.split()])
    one, = combinations(o)
    run = begin_run(o, **one)
    assert len(run.stream) == PRESETS[name]['tasks'] and run.seed == 1993
    run.learn_task()
    assert run.tasks_done == 1 and run.card['training'][0]['steps'] >= 1

def test_help_shows_what_a_preset_sets(capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '500')
    for name in ('cub200-10', 'demo'):
        with pytest.raises(SystemExit): train_command(['--preset', name, '--help'])
        shown = capsys.readouterr().out
        for k, v in PRESETS[name].items():
            if isinstance(v, tuple): v = ','.join(map(str, v))
            assert (f'{as_option(k)} {v}' if k in OPTIONS else f'--set {k}={v}') in shown

def test_every_value_of_a_preset_can_be_overridden():
    words = dict.fromkeys(('dataset', 'method', 'head', 'backbone', 'out', 'data_root'), 'x')
    for name in ('cub200-10', 'demo'):
        for k in PRESETS[name]:
            v = words.get(k, '7,8' if k == 'zoom' else '7')
            said = [as_option(k), v] if k in OPTIONS else ['--set', f'{k}={v}']
            found = parse(['--preset', name, *said])[k]
            assert found == (7, 8) if k == 'zoom' else str(found).startswith(v)

@pytest.mark.parametrize('name', ['cub200-10', 'tiny-imagenet-20', 'imagenet-r-10', 'cifar100-10'])
def test_absent_data_say_how_to_get_them(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train_command(['--preset', name, '--device', 'cpu']) == 2
    err, known = capsys.readouterr().err, ARCHIVES[PRESETS[name]['dataset']]
    assert len(err.splitlines()) == 1 and '--download' in err and known.url in err
    assert not list(tmp_path.iterdir())

# -- the plan

@pytest.mark.parametrize('name, lines', [
    ('cifar100-10', ['10 tasks', '85,798,656 parameters', '5000 to 5000',
                     '790 a task, 7900 a run']),
    ('cub200-20-vit-tiny', ['20 tasks', 'vit_tiny', '96 pixels'])])
def test_dry_run(name, lines, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train_command(['--preset', name, '--dry-run', '--device', 'cpu']) == 0
    shown = capsys.readouterr().out
    for l in lines: assert l in shown, shown
    assert ' GB for a step' in shown and not list(tmp_path.iterdir())

def test_the_plan_counts_what_training_counts(tmp_path, capsys):
    assert train_command([*TINY, '--dry-run']) == 0
    shown = capsys.readouterr().out
    assert train_command([*TINY, '--out', str(tmp_path)]) == 0
    steps = [t['steps'] for t in json.loads((tmp_path/'results.json').read_text())['training']]
    assert f'{max(steps)} a task, {sum(steps)} a run' in shown

def test_the_demo_is_what_the_readme_says():
    demo = parse(['--preset', 'demo'])
    data, model = (demo['dataset'], demo['tasks']), (demo['backbone'], demo['head'])
    assert data == ('digits', 5) and model == (NANO, 'discriminant,linear,ridge')
    assert demo['out'] == 'runs/demo'
    assert demo['method'].split(',') == ['frozen', 'sequential', 'ham']
    chosen = {k: v for k, v in demo.items() if v != SETTINGS[k].default}  # and all else as it comes
    assert chosen.keys() == {'preset', 'method', 'head', 'seed', 'out'}

@pytest.mark.parametrize('method', METHODS)
def test_every_method_can_be_planned(method, capsys):
    tasks = ['--tasks', '1' if method == 'joint' else '2']
    assert train_command([*TINY, *tasks, '--dry-run', '--method', method]) == 0
    assert 'a task' in capsys.readouterr().out

def test_a_plan_needs_no_gpu(capsys):
    assert train_command([*TINY, '--dry-run', '--device', 'cuda:1']) == 0
    assert 'on cuda:1' in capsys.readouterr().out

def test_the_plan_of_what_trains_nothing(capsys):
    assert train_command([*TINY, '--dry-run', '--method', 'frozen']) == 0
    shown = capsys.readouterr().out
    assert 'nothing but the head' in shown and '0 a task, 0 a run' in shown
    assert 'activations 0.00' in shown
    assert train_command([*TINY, '--dry-run', '--method', 'frozen', '--head', 'linear']) == 0
    assert '12 a task, 24 a run' in capsys.readouterr().out

# -- sweeps

def test_a_signal_in_the_last_task_ends_a_sweep_after_its_run(tmp_path, capsys, monkeypatch):
    test = running.accuracies
    def ask(model, pre, layers, heads, stream, upto, *rest):
        if upto == 1: os.kill(os.getpid(), signal.SIGTERM)
        return test(model, pre, layers, heads, stream, upto, *rest)
    monkeypatch.setattr(running, 'accuracies', ask)
    both = ['--method', 'frozen,ham', '--set', 'export=true', '--out', str(tmp_path)]
    assert train_command([*TINY, *both]) == 130
    assert (tmp_path/'frozen/merged.safetensors').exists() and not (tmp_path/'ham').exists()
    assert train_command([*TINY, '--method', 'frozen', '--out', str(tmp_path/'alone')]) == 0

def test_a_sweep_is_a_list_of_runs(tmp_path, capsys):
    sweep = [*TINY, '--method', 'frozen,ham', '--set', 'seeds=0,1', '--out', str(tmp_path/'sweep')]
    assert train_command(sweep) == 0
    found = {p.relative_to(tmp_path/'sweep').as_posix() for p in tmp_path.rglob('results.json')}
    assert found == {f'{m}/seed-{s}/results.json' for m in ('frozen', 'ham') for s in (0, 1)}
    assert train_command([*TINY, '--seed', '1', '--out', str(tmp_path/'alone')]) == 0
    alone, one = (json.loads((tmp_path/d/'results.json').read_text())
                  for d in ('alone', 'sweep/ham/seed-1'))
    assert alone['accuracy_matrix'] == one['accuracy_matrix'] and alone['config'] == one['config']
    assert train_command([*sweep, '--resume']) == 0

@pytest.mark.parametrize('seeds, word', [('1,x', '1,x'), ('1,1', 'once')])
def test_seeds_that_are_none(seeds, word, tmp_path, capsys):
    assert train_command([*TINY, '--set', f'seeds={seeds}', '--out', str(tmp_path/'run')]) == 2
    assert word in capsys.readouterr().err and not list(tmp_path.iterdir())

@pytest.mark.parametrize('size, dataset', [('0', 'folder'), ('64', 'toy')])
def test_load_size_is_for_photographs(size, dataset, tmp_path, capsys):
    given = ['--dataset', dataset, '--data-root', str(tmp_path), '--set', f'load_size={size}']
    assert train_command([*TINY, *given, '--out', str(tmp_path/'run')]) == 2
    assert f'got {size} for {dataset}' in capsys.readouterr().err

@pytest.mark.parametrize('changed, word', [
    ('--epochs 3', 'train.epochs=2, this one has train.epochs=3'),
    ('--set first_importance=2', 'method_settings.first_importance=8.0'),
    ('--set precision=bf16', "precision='fp32'")])
def test_resume_names_the_setting_that_differs(changed, word, tmp_path, capsys):
    run = [*TINY, '--out', str(tmp_path)]
    assert train_command([*run, '--set', 'precision=fp32']) == 0
    if 'precision' not in changed: changed += ' --set precision=fp32'
    assert train_command([*run, '--resume', *changed.split()]) == 2
    assert word in capsys.readouterr().err

# -- watching

def test_the_log_has_a_line_for_every_twenty_steps_and_the_last(tmp_path):
    assert train_command([*TINY, '--limit-per-class', '40', '--out', str(tmp_path)]) == 0
    lines = read_log(tmp_path)
    assert [(l['task'], l['step']) for l in lines] == [(t, s) for t in (0, 1) for s in (20, 40, 60)]
    assert lines[2]['loss'] < lines[0]['loss'] and lines[-1]['lr'] < lines[0]['lr']
    assert all(l['images_per_second'] > 0 for l in lines)

def test_the_log_counts_the_images_it_saw(tmp_path, monkeypatch):
    "A clock that moves a second a look: lines that span epochs, batches that are not full"
    ticks = iter(range(10**6))
    monkeypatch.setattr(callbacks, 'perf_counter', lambda: float(next(ticks)))
    monkeypatch.setattr(learning, 'Track', lambda trackers: Callback())  # looks at the clock, too
    more = '--limit-per-class 20 --bs 16 --epochs 3 --out'.split()
    assert train_command([*TINY, *more, str(tmp_path)]) == 0
    found = [l['images_per_second'] for l in read_log(tmp_path)]
    assert found[:2] == [120 + 120 + 64, 56]  # 8 steps an epoch, the last one of 8 images

def test_tensorboard_gets_the_same_numbers(tmp_path):
    assert train_command([*TINY, '--set', 'trackers=tensorboard', '--out', str(tmp_path)]) == 0
    folders = {p.parent for p in tmp_path.rglob('events.out*')}
    found = [(e, tag) for e in (EventAccumulator(str(d)).Reload() for d in folders)
             for tag in e.Tags()['scalars']]
    scalars = {tag: [s.value for s in e.Scalars(tag)] for e, tag in found}
    assert scalars['train/loss'] == pytest.approx([l['loss'] for l in read_log(tmp_path)])
    final = json.loads((tmp_path/'results.json').read_text())['metrics']['final_accuracy']
    assert scalars['test/final_accuracy'][-1] == pytest.approx(final)
    steps = {tag: [s.step for s in e.Scalars(tag)] for e, tag in found}
    # two tasks of two epochs of six batches
    assert steps['test/final_accuracy'] == steps['train/loss'] == [12, 24]

def test_a_tracker_that_is_not_there_is_refused(tmp_path, capsys):
    assert train_command([*TINY, '--set', 'trackers=paper', '--out', str(tmp_path/'run')]) == 2
    assert "Unknown tracker 'paper'" in capsys.readouterr().err
    assert train_command([*TINY, '--set', 'trackers=wandb', '--out', str(tmp_path/'run')]) == 2
    assert 'pip install wandb' in capsys.readouterr().err

def test_report_draws_losses(tmp_path, capsys):
    assert train_command([*TINY, '--out', str(tmp_path/'run')]) == 0
    assert report_command([str(tmp_path)]) == 0
    with Image.open(tmp_path/'losses.png') as im: assert min(im.size) > 100
    assert 'losses.png' in (tmp_path/'report.md').read_text()

def test_report_leaves_out_what_was_not_tested(tmp_path, capsys):
    for name in ('short', 'long'):
        assert train_command([*TINY, '--method', 'frozen', '--out', str(tmp_path/name)]) == 0
    card = json.loads((tmp_path/'short/results.json').read_text())
    card |= dict(accuracy_matrix=[], metrics={})
    (tmp_path/'short/results.json').write_text(json.dumps(card))
    assert report_command([str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert "short' is left out" in shown.err and 'long |' in shown.out
    assert 'short |' not in shown.out.splitlines()[-3]
    assert report_command([str(tmp_path/'short')]) == 2

def test_deterministic_asks_torch(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(cli.torch, 'use_deterministic_algorithms', asked.append)
    assert train_command([*TINY, '--set', 'deterministic=true', '--out', str(tmp_path)]) == 0
    assert asked == [True]
