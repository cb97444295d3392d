"The commands as a user calls them"
import inspect
import json
import math
import os
import re
import subprocess
import sys
import sysconfig
import weakref
from pathlib import Path

import pytest
import timm
import torch
from fastcore.docments import docments
from PIL import Image
from safetensors.torch import load_file, save_file

import ham_nb
from ham_nb import cli
from ham_nb.backbone import nano_vit
from ham_nb.checkpoint import FORMAT, read_checkpoint
from ham_nb.cli import report_command, train_command
from ham_nb.ham import HAM
from ham_nb.learn import begin
from ham_nb.metrics import all_metrics
from ham_nb.options import (GROUPS, OPTIONS, PRESETS, SETTINGS, as_typed, option_table, parse,
                            settings_of, train_options, train_parser)
from ham_nb.run import Run, new_run
from ham_nb.train import TrainConfig

TINY = ('--dataset toy --tasks 6 --limit-per-class 16 --epochs 1 --bs 8 --device cpu '
        '--set natural_order=true').split()
TASKS = 6

def call(command, *args, cwd):
    "Run a command in a process of its own: the script, or its function where it is not installed"
    script, name = Path(sysconfig.get_path('scripts'))/f'ham-{command}', f'{command}_command'
    function = f'import sys; from ham_nb.cli import {name}; sys.exit({name}())'
    env = {**os.environ, 'PYTHONPATH': str(Path(ham_nb.__file__).parents[1])}
    start = [script] if script.exists() else [sys.executable, '-c', function]
    return subprocess.run([*start, *args], cwd=cwd, env=env, capture_output=True, text=True,
                          timeout=120)

def read(out):
    def refuse(constant): pytest.fail(f'{constant} is not JSON')
    return json.loads((Path(out)/'results.json').read_text(), parse_constant=refuse)

def contents(folder):
    files = (p for p in Path(folder).rglob('*') if p.is_file())
    return {p.relative_to(folder): p.read_bytes() for p in files}

def same_tensors(f, g):
    f, g = load_file(f), load_file(g)
    return f.keys() == g.keys() and all(torch.equal(f[k], g[k]) for k in f)

def assert_refused(capsys, code, *words):
    "Exit code 2, one clear sentence on stderr"
    err = capsys.readouterr().err
    assert code == 2
    assert len(err.splitlines()) == 1 and err.startswith('ham-'), err
    for w in words: assert w in err, err

@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "A finished run, as `ham-train` leaves it"
    cwd = tmp_path_factory.mktemp('user')
    done = call('train', *TINY, '--out', 'runs/first', cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd/'runs'/'first', done

# -- help

def shown_help(command, capsys, *args):
    with pytest.raises(SystemExit) as e: command([*args, '--help'])
    assert not e.value.code
    return capsys.readouterr().out

def one_line(text): return ' '.join(text.split())

def rows_of(shown):
    "The cells of all tables in a text"
    lines = [l.strip()[1:-1] for l in shown.splitlines() if l.startswith('|')]
    return [[c.strip() for c in l.split('|')] for l in lines]

def test_help_explains_every_option(capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '500')
    shown = one_line(shown_help(train_command, capsys))
    assert train_options.__doc__ in shown
    for k in OPTIONS:
        text = re.escape(SETTINGS[k].docment)
        assert text and re.search(rf'--{k.replace("_", "-")} .*?{text}', shown), k
    assert one_line(shown_help(train_command, capsys, '--preset', 'demo')).startswith(shown[:60])

def test_help_of_a_report(capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '500')
    shown, texts = one_line(shown_help(report_command, capsys)), docments(cli.report, returns=False)
    assert cli.report.__doc__ in shown
    for k, text in texts.items(): assert text and re.search(rf'{k} .*?{re.escape(text)}', shown), k

def test_help_fits_a_page(capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '120')
    lines = shown_help(train_command, capsys).splitlines()
    assert len(lines) <= 60 and max(map(len, lines)) <= 120
    assert len(OPTIONS) == len(set(OPTIONS)) <= 25
    said = [flag for a in train_parser()._actions for flag in a.option_strings]
    assert sorted(said) == sorted(['-h', '--help', *('--' + k.replace('_', '-') for k in OPTIONS)])
    last = one_line('\n'.join(lines)).split('--set takes: ')[1].split(', ')
    assert {*last} == {*SETTINGS} - {*OPTIONS}

def test_every_setting_is_in_one_group():
    assert sorted(k for names in GROUPS.values() for k in names) == sorted(SETTINGS)
    shown = [g.title for g in train_parser()._action_groups if g._group_actions]
    assert shown == [*GROUPS]

def test_the_table_of_options_has_each_once():
    typed = [row[0] for row in rows_of(option_table())]
    for name in SETTINGS: assert typed.count(f'`{as_typed(name)}`') == 1, name
    assert len(typed) == 2 + len(SETTINGS) + len(GROUPS)
    assert ['`--set keep=X`', '1.0', SETTINGS['keep'].docment] in rows_of(option_table('method'))

def recipes():
    "Lines of the page on the commands, as a shell reads them"
    page = Path(__file__).parents[1]/'nbs'/'50_cli.ipynb'
    text = '\n'.join(''.join(c['source']) for c in json.loads(page.read_text('utf-8'))['cells'])
    shown = ''.join(re.findall(r'```sh\n(.*?)```', text, re.S)).replace('\\\n', '')
    return [line.split() for line in shown.splitlines()]

def test_recipes_can_be_typed():
    lines = recipes()
    assert len(lines) >= 8 and {command for command, *_ in lines} == {'ham-train', 'ham-report'}
    for command, *words in lines:
        if command == 'ham-train': assert cli.combinations(parse(words)), words

MADE = {  # by the command itself, of what it is told
    'train', 'callbacks'}

@pytest.mark.parametrize('owner', [HAM, TrainConfig, Run, new_run, begin],
                         ids=lambda owner: owner.__name__)
def test_every_setting_can_be_said_and_has_one_text(owner):
    there = {k: p for k, p in inspect.signature(owner).parameters.items()
             if p.default is not p.empty and k not in MADE}
    assert there.keys() <= SETTINGS.keys()
    own = settings_of(train_options)
    for k, s in settings_of(owner).items():
        if k in own: continue  # what the command alone asks: it has one `method` for many
        assert s.docment == SETTINGS[k].docment and s.default == SETTINGS[k].default
        assert s.default == there[k].default
        assert f'# {s.docment}' in ''.join(map(inspect.getsource, {owner, new_run, Run}))

def test_the_command_takes_little_of_its_own():
    "Where it has words of its own for a setting of others, it says more than they do"
    others = {k for owner in (HAM, TrainConfig, Run, new_run, begin) for k in settings_of(owner)}
    assert others & settings_of(train_options).keys() == {'seed', 'out'}

@pytest.mark.parametrize('command', [train_command, report_command])
@pytest.mark.parametrize('args', [['--colour', 'red'], ['--epo', '1']],
                         ids=['unknown', 'abbreviated'])
def test_unknown_options_are_errors(command, args, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as e: command(args)
    assert e.value.code == 2 and args[0] in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

def test_a_value_of_the_wrong_kind_is_an_error(capsys, tmp_path):
    line = [*TINY, '--rank', 'four', '--out', str(tmp_path)]
    with pytest.raises(SystemExit) as e: train_command(line)
    assert e.value.code == 2 and 'rank' in capsys.readouterr().err and not contents(tmp_path)

def test_options_override_a_preset():
    demo = parse(['--preset', 'demo', '--tasks', '2', '--set', 'degrees=5'])
    assert demo['tasks'] == 2 and demo['degrees'] == 5 and demo['dataset'] == 'digits'
    assert parse([])['seed'] != PRESETS['demo']['seed']  # and do not leak out of it
    assert parse([])['head'] != PRESETS['demo']['head']

@pytest.mark.parametrize('said, value', [
    ('keep=.5', .5), ('zoom=.9,1.1', (.9, 1.1)), ('cached_views=2', 2), ('export=True', True),
    ('shared_start=false', False), ('blocks=4..11', '4..11'), ('group_rank=none', None),
    ('group_rank=0', 0), ('progress=none', None), ('trackers=tensorboard,x', 'tensorboard,x')])
def test_a_setting_is_read_in_its_kind(said, value):
    read = parse(['--set', said])[said.split('=')[0]]
    assert read == value and type(read) is type(value)

# -- a run

def test_a_method_that_plans_for_the_stream_is_told_its_length():
    line = ['--dataset', 'toy', '--tasks', '3', '--method', 'inflora', '--out', 'run']
    assert cli.combinations(parse(line))[0]['method'].tasks == 3

def test_train_writes_a_result_card(trained):
    out, _ = trained
    c = read(out)
    assert {'method', 'metrics', 'accuracy_matrix', 'config', 'class_order', 'versions',
            'seconds_per_task', 'merge_reports'} <= set(c)
    assert c['method'] == 'ham' and c['class_order'] == list(range(12))
    R = c['accuracy_matrix']
    assert [len(row) for row in R] == [1, 2, 3, 4, 5, 6]
    assert all(0 <= a <= 1 for row in R for a in row)
    assert c['metrics'] == {**c['metrics'], **all_metrics(R)}
    assert {'final_accuracy', 'average_incremental_accuracy', 'forgetting'} <= set(c['metrics'])
    assert len(c['seconds_per_task']) == TASKS and all(s > 0 for s in c['seconds_per_task'])
    assert {'ham_nb', 'torch', 'timm', 'python', 'device'} <= set(c['versions'])
    assert c['versions']['ham_nb'] == ham_nb.__version__
    assert c['config']['preprocess']['mean'] == [.5, .5, .5]

def test_merge_reports_say_what_was_decided(trained):
    reports = read(trained[0])['merge_reports']
    assert [r['task'] for r in reports] == list(range(TASKS))
    groups = 0
    for r in reports:
        assert len(r['similarities']) == len(r['group_importances']) == groups
        assert -1 <= min(r['similarities'], default=0)
        assert {'opened', 'forced', 'runner_up', 'importance'} <= set(r)
        assert r['kept'] == r['kept_energy'] == 1 and r['prune_error'] == 0  # keep=1
        over = r['rank_before'] > 2 * 8  # the default budget: twice --rank
        assert r['rank_after'] <= 2 * 8
        assert (r['discarded_energy'] > 0) == (r['output_bound'] > 0) == over
        assert r['rank_before'] >= r['rank_after'] >= 8
        groups += r['opened']
    assert any(r['rank_before'] > r['rank_after'] for r in reports)  # the budget was needed

def test_train_draws_figures(trained):
    out, _ = trained
    for name in 'accuracy.png', 'groups.png':
        with Image.open(out/name) as im: assert min(im.size) > 100
    assert {p.name for p in out.iterdir()} == {
        'results.json', 'log.jsonl', 'accuracy.png', 'groups.png', 'state-005.safetensors',
        read(out)['state']}

def test_train_prints_settings_and_a_table(trained):
    out, done = trained
    c = read(out)
    order = 'class order ' + ' '.join(map(str, c['class_order']))
    for text in ('ham', 'toy', 'nano_vit.omniglot', 'mean=', order, 'results.json'):
        assert text in done.stdout
    lines = [l.split() for l in done.stdout.splitlines()]
    for t, row in enumerate(c['accuracy_matrix']):
        assert any(l[:2] == [str(t), f'{100 * row[-1]:.1f}%'] for l in lines)
    assert f"{100 * c['metrics']['final_accuracy']:.1f}" in done.stdout.splitlines()[-1]

def test_a_run_is_not_replaced_unasked(trained, capsys):
    out, _ = trained
    before = contents(out)
    assert_refused(capsys, train_command([*TINY, '--out', str(out)]), str(out), 'overwrite')
    assert contents(out) == before

def test_a_mistake_does_not_cost_the_run_it_would_replace(trained, capsys):
    out, _ = trained
    before = contents(out)
    code = train_command([*TINY, '--out', str(out), '--overwrite', '--rank', '0'])
    assert_refused(capsys, code, 'rank')
    assert contents(out) == before

def test_overwrite_leaves_nothing_of_the_old_run(tmp_path):
    out = str(tmp_path)
    assert train_command([*TINY, '--tasks', '2', '--out', out]) == 0
    other = ['--tasks', '3', '--method', 'frozen', '--head', 'ridge']
    assert train_command([*TINY, *other, '--out', out, '--overwrite']) == 0
    c = read(out)
    assert c['method'] == 'frozen' and c['config']['head'] == 'ridge'
    assert len(c['accuracy_matrix']) == 3
    assert {p.name for p in contents(out)} == {
        'results.json', 'accuracy.png', 'state-002.safetensors', 'state-003.safetensors'}

def test_resume_refuses_other_settings(trained, capsys):
    out, _ = trained
    before = contents(out)
    code = train_command([*TINY, '--out', str(out), '--resume', '--tau', '.3'])
    assert_refused(capsys, code, '0.3', '0.1')
    assert contents(out) == before

def test_resume_of_a_finished_run_changes_nothing(trained, capsys):
    out, _ = trained
    before = read(out)
    assert train_command([*TINY, '--out', str(out), '--resume']) == 0
    assert read(out) == before

@pytest.mark.parametrize('damage', ['truncated', 'of a newer format', 'without a header', 'gone'])
def test_resume_of_a_damaged_checkpoint_is_refused(damage, trained, tmp_path, capsys):
    files = {p.name: b for p, b in contents(trained[0]).items()}
    for name, b in files.items(): (tmp_path/name).write_bytes(b)
    older, state = sorted(tmp_path.glob('state-*'))
    tensors, header = read_checkpoint(state)
    newer = dict(ham_nb=json.dumps({**header, 'format': FORMAT + 1}))
    header = {'of a newer format': newer, 'without a header': {}}.get(damage)
    if damage == 'gone': state.unlink(); older.unlink()
    elif damage == 'truncated': state.write_bytes(files[state.name][:len(files[state.name]) // 2])
    else: save_file(tensors, state, header)
    before = contents(tmp_path)
    words = {'truncated': 'cannot be read', 'of a newer format': f'format {FORMAT + 1}',
             'without a header': 'format None', 'gone': 'overwrite'}
    offer = [] if damage == 'gone' else [state.name, f'remove it to go on from {older.name!r}']
    code = train_command([*TINY, '--out', str(tmp_path), '--resume'])
    assert_refused(capsys, code, words[damage], *offer)
    assert contents(tmp_path) == before
    if offer:  # and the offer holds
        state.unlink()
        assert train_command([*TINY, '--out', str(tmp_path), '--resume']) == 0
        assert same_tensors(state, trained[0]/state.name)
        assert read(tmp_path)['accuracy_matrix'] == read(trained[0])['accuracy_matrix']

def test_resume_mends_the_card(trained, tmp_path):
    for p, b in contents(trained[0]).items():
        (tmp_path/p.name).write_bytes(b[:300] if p.name == 'results.json' else b)
    assert train_command([*TINY, '--out', str(tmp_path), '--resume']) == 0
    assert read(tmp_path) == read(trained[0])

def test_several_methods_each_get_a_folder_and_a_comparison(tmp_path, capsys):
    out = tmp_path/'both'
    assert train_command([*TINY, '--tasks', '2', '--method', 'frozen, ham', '--out', str(out)]) == 0
    assert [read(out/m)['method'] for m in ('frozen', 'ham')] == ['frozen', 'ham']
    assert [row[1] for row in rows_of(capsys.readouterr().out)][2:] == ['frozen', 'ham']
    assert (out/'report.md').exists() and (out/'curves.png').exists()

def test_several_heads_and_tests_now_and_then(tmp_path, capsys):
    args = ['--head', 'discriminant,linear', '--set', 'test_every=4', '--set', 'drift_views=2']
    assert train_command([*TINY, *args, '--out', str(tmp_path)]) == 0
    table = capsys.readouterr().out
    head, _, row = rows_of(table)
    c = read(tmp_path)
    for name, found in (('discriminant', c), ('linear', c['extra_heads']['linear'])):
        assert row[head.index(f'{name} (%)')] == f'{100 * found["metrics"]["final_accuracy"]:.1f}'
    assert table.count(' -  ') == 4 * 2  # tasks that are not tested: after 0, 1, 2 and 4
    assert len(read(tmp_path)['accuracy_matrix']) == 2
    assert read(tmp_path)['config']['drift_views'] == 2

# -- ham-report

def test_report_compares_runs(trained, tmp_path):
    out, _ = trained
    done = call('report', str(out), str(out.parent), '--out', 'here', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    written = (tmp_path/'here'/'report.md').read_text()
    m = read(out)['metrics']
    for k in 'final_accuracy', 'average_incremental_accuracy', 'forgetting':
        for table in rows_of(done.stdout), rows_of(written): assert f'{100 * m[k]:.1f}' in table[2]
    with Image.open(tmp_path/'here'/'curves.png') as im: assert min(im.size) > 100

def test_report_refuses_what_holds_no_run(tmp_path, capsys):
    assert_refused(capsys, report_command([str(tmp_path)]), str(tmp_path), 'no run')
    assert_refused(capsys, report_command([str(tmp_path/'nowhere')]), 'nowhere', 'no run')
    assert_refused(capsys, report_command([]), 'at least one folder')
    for card in '{"method": "ham"', '{}', '[]':
        (tmp_path/'results.json').write_text(card)
        assert_refused(capsys, report_command([str(tmp_path)]), str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ['results.json']

# -- bad input

def images(folder, **classes):
    for name, n in classes.items():
        (folder/name).mkdir(parents=True)
        for i in range(n): Image.new('RGB', (12, 12), (20 * i, 90, 30)).save(folder/name/f'{i}.png')
    return folder

def weights(tmp, keep=1., model=None):
    save_file((model or nano_vit()).state_dict(), f := tmp/'weights.safetensors')
    b = f.read_bytes()
    f.write_bytes(b[:int(keep * len(b))])
    return ['--weights', f]

def folder(path, tasks=2):
    return ['--dataset', 'folder', '--data-root', path, '--tasks', str(tasks)]

def split_folder(tmp):
    images(tmp/'train', ant=2, bee=2)
    images(tmp/'test', ant=2, cow=2)
    return folder(tmp)

def unreadable(tmp, data):
    (images(tmp, ant=3, bee=3)/'bee'/'broken.jpg').write_bytes(data)
    return folder(tmp)

def half_a_png(tmp):
    f = images(tmp, ant=3, bee=3)/'bee'/'0.png'
    f.write_bytes(f.read_bytes()[:45])
    return folder(tmp)

def no_network(*args, **kwargs): raise OSError('no network')
def a_file(tmp): (tmp/'file').write_text('x'); return tmp/'file'

VIT = 'vit_tiny_patch16_224.augreg_in21k_ft_in1k'

bad = { # name: (arguments, words of the message)
    'dataset': ('--dataset mnist', 'mnist', 'digits'),
    'backbone': ('--backbone vit_of_my_dreams', 'vit_of_my_dreams'),
    'backbone, a typo': (f'--backbone {VIT[:-1]}', f'did you mean {VIT}'),
    'backbone without a tag': ('--backbone vit_tiny_patch16_224', 'ambiguous', VIT),
    'backbone that is no vit': (
        '--backbone resnet18.a1_in1k', 'resnet18.a1_in1k', 'not a vision transformer'),
    'target': ('--targets attn.kqv', 'attn.kqv', 'attn.qkv'),
    'target and a part of it': ('--targets attn.q,attn.qkv', 'attn.qkv'),
    'method': ('--method hum', 'hum', 'ham'),
    'one of several methods': ('--method ham,hum', 'hum'),
    'the same method twice': ('--method ham,ham', 'ham'),
    'preset': ('--preset demos', 'demos', 'demo'),
    'head': ('--head prototypes', 'prototypes', 'ridge'),
    'the same head twice': ('--head ridge,ridge', 'once', 'ridge,ridge'),
    'a head beside another kind': ('--head cosine,linear', "'linear'", "'cosine'"),
    'joint after others': ('--method frozen,joint', "'joint'", '1 task', '6'),
    'a head of its own': ('--method frozen,ham+nohead', 'nohead', 'ridge'),
    'joint': ('--method joint', "'joint'", '1 task', '6'),
    'test_every': ('--set test_every=0', 'test_every', '0'),
    'drift_views': ('--set drift_views=-1', 'drift_views', '-1'),
    'device': ('--device abacus', 'abacus', 'cpu'),
    'weights missing': ('--weights nowhere.safetensors', 'nowhere.safetensors'),
    'weights truncated': (lambda tmp: weights(tmp, .9), 'weights.safetensors', 'not a readable'),
    'weights cut in the header': (
        lambda tmp: weights(tmp, 1e-4), 'weights.safetensors', 'not a readable'),
    'weights empty': (lambda tmp: weights(tmp, 0), 'weights.safetensors', 'not a readable'),
    'weights of another architecture': (
        lambda tmp: weights(tmp, model=timm.create_model('vit_tiny_patch16_224', depth=1)),
        'weights.safetensors', 'nano_vit.omniglot'),
    'rank 0': ('--rank 0', 'rank', 'got 0'),
    'rank larger than the layer': ('--rank 97', 'rank', '96', 'got 97'),
    'tau above 1': ('--tau 1.01', 'tau', '[-1, 1]', '1.01'),
    'tau below -1': ('--tau -1.01', 'tau', '[-1, 1]', '-1.01'),
    'tau not a number': ('--tau nan', 'tau', 'nan'),
    'keep 0': ('--set keep=0', 'keep', '(0, 1]', 'got 0'),
    'keep above 1': ('--set keep=1.5', 'keep', '(0, 1]', 'got 1.5'),
    'no group': ('--g-max 0', 'g_max', 'got 0'),
    'negative group rank': ('--set group_rank=-1', 'group_rank', 'got -1'),
    'no importance': ('--set first_importance=0', 'first_importance', 'got 0'),
    'negative half-life': ('--set halving_classes=-1', 'halving_classes', 'got -1'),
    'more tasks than classes': ('--tasks 13', '12 classes', '13 tasks'),
    'no task': ('--tasks 0', '12 classes', '0 tasks'),
    'image size': ('--image-size 30', '30', 'patch size 8'),
    'image size 0': ('--image-size 0', 'Image size 0'),
    'blocks that do not parse': ('--set blocks=4-5', '4..11', "'4-5'"),
    'an open range of blocks': ('--set blocks=4..', '4..11', "'4..'"),
    'a block that is not there': ('--set blocks=4..9', 'no block 6', 'has 6'),
    'no block': ('--set blocks=4..3', 'at least one block', '4..3'),
    'negative views': ('--set cached_views=-1', 'cached_views', 'got -1'),
    'epochs 0': ('--epochs 0', 'epochs', 'got 0'),
    'lr 0': ('--lr 0', 'lr', 'got 0'),
    'label smoothing above 1': ('--set label_smoothing=2', 'label_smoothing', '2'),
    'negative weight decay': ('--set weight_decay=-1', 'weight_decay', '-1'),
    'nothing visible': ('--set zoom=0,1', 'zoom', '0'),
    'one zoom': ('--set zoom=.9', 'zoom is read as tuple', '0.75,1.0', "'.9'"),
    'an unknown setting': ('--set kep=.5', "Unknown setting 'kep'", 'did you mean keep?'),
    'a setting like no other': ('--set zzz=1', "'zzz'", 'known are flip, natural_order'),
    'a setting with hyphens': ('--set drift-views=2', "'drift-views'", 'drift_views'),
    'a setting that has an option': ('--set epochs=2', "'epochs'", '--epochs'),
    'a setting without a value': ('--set keep', 'name=value', "'keep'"),
    'a setting of the wrong kind': ('--set warmup=long', 'warmup is read as float (0.1', "'long'"),
    'a setting that is no whole number': ('--set accumulate=1.5', 'accumulate', 'as int', "'1.5'"),
    'a setting that is not yes or no': ('--set shared_start=maybe', 'as bool', 'True', "'maybe'"),
    'a setting that is not none': ('--set keep=none', 'keep is read as float', "'none'"),
    'a setting twice': ('--set keep=.5 --set keep=.6', 'once', 'keep', '0.5', '.6'),
    'resume of nothing': ('--resume', 'no run to resume'),
    'resume and overwrite': ('--resume --overwrite', 'resume', 'overwrite'),
    'folder without a path': ('--dataset folder', '--data-root'),
    'folder missing': (lambda tmp: folder(tmp/'nowhere'), 'No such folder', 'nowhere'),
    'folder is a file': (lambda tmp: folder(a_file(tmp)), 'No such folder', 'file'),
    'folder empty': (lambda tmp: folder(tmp), 'No images'),
    'folder with an empty class': (
        lambda tmp: folder(images(tmp, ant=3, bee=0)), 'bee', 'no image'),
    'folder with one class': (lambda tmp: folder(images(tmp, ant=3), 1), '1 class', 'at least 2'),
    'folder with a class of one image': (
        lambda tmp: folder(images(tmp, ant=3, bee=1)), 'bee', '1 image'),
    'folder with an unreadable image': (lambda tmp: unreadable(tmp, b'no image'), 'broken.jpg'),
    'folder with an empty image': (lambda tmp: unreadable(tmp, b''), 'broken.jpg'),
    'folder with half an image': (half_a_png, '0.png'),
    'folder whose test classes differ': (split_folder, 'train', 'test', 'bee'),
    'cifar100 missing': (
        lambda tmp: ['--dataset', 'cifar100', '--data-root', tmp/'cifar'], 'CIFAR-100', 'cifar'),
}

@pytest.mark.parametrize('case', bad)
def test_bad_input(case, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('urllib.request.urlopen', no_network)
    args, *words = bad[case]
    (tmp_path/'data').mkdir()
    args = args.split() if isinstance(args, str) else [str(a) for a in args(tmp_path/'data')]
    code = train_command([*TINY, *args, '--out', str(tmp_path/'runs'/'out')])
    assert_refused(capsys, code, *words)
    assert [p.name for p in tmp_path.iterdir()] == ['data']

@pytest.mark.parametrize('case', [
    'method', 'one of several methods', 'head', 'a head of its own', 'joint', 'joint after others',
    'test_every', 'drift_views', 'tau above 1', 'rank 0', 'more tasks than classes'])
def test_a_dry_run_refuses_what_the_run_would(case, tmp_path, capsys):
    args, *words = bad[case]
    code = train_command([*TINY, *args.split(), '--dry-run', '--out', str(tmp_path)])
    assert_refused(capsys, code, *words)

@pytest.mark.parametrize('out', ['file', 'file/below'])
def test_out_that_cannot_be_a_folder(out, tmp_path, capsys):
    a_file(tmp_path)
    assert_refused(capsys, train_command([*TINY, '--out', str(tmp_path/out)]), 'file')

def test_bad_input_in_a_process_of_its_own(tmp_path):
    done = call('train', *TINY, '--set', 'keep=0', '--out', 'runs/out', cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ''
    assert done.stderr == 'ham-train: error: keep must lie in (0, 1], got 0.0.\n'
    assert not list(tmp_path.iterdir())

# -- a loss that is no number

def test_divergence_in_the_first_task_leaves_no_run(tmp_path, capsys):
    code = train_command([*TINY, '--lr', '1e30', '--out', str(tmp_path/'run')])
    assert_refused(capsys, code, 'loss', 'task 0', 'step', 'lr')
    assert not contents(tmp_path)

def test_divergence_in_the_last_step_is_seen(tmp_path, capsys):
    "The head moves in the first of two steps, adapters in the second, whose result no loss shows"
    code = train_command([*TINY, '--bs', '16', '--lr', '1e30', '--out', str(tmp_path/'run')])
    assert_refused(capsys, code, 'task 0')
    assert not contents(tmp_path)

def test_divergence_keeps_the_last_good_state(trained, tmp_path, capsys, monkeypatch):
    out, penalty = tmp_path/'run', HAM.penalty
    with monkeypatch.context() as m:
        def broken(self):
            return torch.tensor(math.nan) if sum(map(len, self.members)) == 2 else penalty(self)
        m.setattr(HAM, 'penalty', broken)
        code = train_command([*TINY, '--out', str(out)])
    assert_refused(capsys, code, 'nan', 'task 2', 'step 0')
    card = read(out)
    assert len(card['accuracy_matrix']) == len(card['merge_reports']) == 2
    assert {p.name for p in contents(out)} == {
        'results.json', 'log.jsonl', 'state-001.safetensors', 'state-002.safetensors'}
    assert all(t.isfinite().all() for t in load_file(out/'state-002.safetensors').values())
    assert train_command([*TINY, '--out', str(out), '--resume']) == 0
    straight = trained[0]
    assert read(out)['accuracy_matrix'] == read(straight)['accuracy_matrix']
    assert same_tensors(out/'state-006.safetensors', straight/'state-006.safetensors')

def test_a_sweep_lets_go_of_the_images_before_it_reads_the_next(tmp_path, monkeypatch):
    load, streams, alive = cli.load_stream, [], []
    def watched(*args):
        alive.append(sum(s() is not None for s in streams))
        streams.append(weakref.ref(stream := load(*args)))
        return stream
    monkeypatch.setattr(cli, 'load_stream', watched)
    sweep = ['--method', 'ham,frozen', '--tasks', '2', '--set', 'seeds=0,1', '--out', str(tmp_path)]
    assert train_command([*TINY, *sweep]) == 0
    assert alive == [0, 0, 0, 0]
