"A run over a stream: the same every time, also after an interruption"
import builtins
import io
import json
import re
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch.testing import assert_close

from ham_nb import checkpoint, run as running
from ham_nb.adapters import trainable
from ham_nb.backbone import extract, load_backbone, nano_vit
from ham_nb.baselines import FirstTask, Frozen, InfLoRA, MergedAfter, OLoRA, SDLoRA, Sequential
from ham_nb.callbacks import Log, show_progress, step_memory
from ham_nb.card import Track, read_card, read_log
from ham_nb.controls import (METHODS, Anchored, ByFeatures, FixedImportance, KMerge,
                             LayerImportance, RandomGroups, make_method)
from ham_nb.ham import HAM, Method
from ham_nb.images import toy
from ham_nb.learn import Runaway, begin, learn
from ham_nb.lora import LoRALinear
from ham_nb.stream import TaskStream
from ham_nb.train import Callback, Diverged, Loop, TrainConfig

QUICK = dict(train=TrainConfig(epochs=1, bs=8), device='cpu', seed=3)

@pytest.fixture(scope='module')
def stream(): return TaskStream(*toy(per_class=8), tasks=4, seed=0)

runs = { # method, head, and settings of the run
    'ham': (HAM, dict(), 'discriminant', dict()),
    'ham, other choices': (LayerImportance, dict(shared_start=False, keep=.5, group_rank=6,
                                                 g_max=2), 'linear', dict(rank=4)),
    'ham, anchored': (Anchored, dict(anchor=300., g_max=2, first_importance=2.,
                                     halving_classes=2.), 'discriminant', dict()),
    'ham, other layers': (ByFeatures, dict(tau=.9), 'cosine',
                          dict(targets='attn.q,attn.v,mlp.fc1')),
    'sequential': (Sequential, dict(), 'ridge', dict(rank=2)),
    'frozen': (Frozen, dict(), 'ridge', dict()),
    'frozen, trained head': (Frozen, dict(), 'linear', dict()),
    'first task': (FirstTask, dict(), 'discriminant', dict()),
    'ties': (MergedAfter, dict(rule='ties', options=dict(keep=.3)), 'discriminant', dict()),
    'magmax': (MergedAfter, dict(rule='magmax'), 'linear', dict()),
    'k-merge': (KMerge, dict(g_max=2), 'prototype', dict()),
    'random groups': (RandomGroups, dict(g_max=2), 'prototype', dict()),
    'sd-lora': (SDLoRA, dict(), 'prototype', dict(targets='attn.q,attn.v')),
    'o-lora': (OLoRA, dict(), 'linear', dict()),
    'inflora': (InfLoRA, dict(energy=.5), 'discriminant', dict(targets='attn.q,attn.v')),
}
each_run = pytest.mark.parametrize('name', runs)

def make(name, stream, start=learn, **more):
    method, choices, head, settings = runs[name]
    return start(stream, method=method(**choices), head=head, **{**QUICK, **settings, **more})

def assert_same(run, other):
    assert run.card['accuracy_matrix'] == other.card['accuracy_matrix']
    assert run.card['merge_reports'] == other.card['merge_reports']
    a, b = run.state(), other.state()
    assert a.keys() == b.keys()
    for k in a: assert torch.equal(a[k], b[k]), k

@pytest.fixture(scope='module')
def straight(stream):
    "A run from its first task to its last, made once"
    return cache(lambda name: make(name, stream))

# -- the same every time

@each_run
def test_the_same_seed_gives_the_same_run(name, stream, straight):
    one = straight(name)
    torch.manual_seed(99)  # whatever else happened in the process
    assert_same(one, make(name, stream))

def test_another_seed_gives_another_run(stream):
    one, two = make('ham', stream), make('ham', stream, seed=4)
    a, b = (run.layers['blocks.0.attn.qkv'].groups_B for run in (one, two))
    assert not torch.equal(a, b)

# -- interruptions

@each_run
def test_two_tasks_and_two_more_after_resuming_equal_four(name, stream, straight, tmp_path):
    first = make(name, stream, begin, out=tmp_path)
    for _ in range(2): first.learn_task()
    resumed = make(name, stream, out=tmp_path, resume=True)
    assert resumed.tasks_done == 4
    if name.startswith('ham'): assert sum(map(len, resumed.method.members)) == 4
    assert_same(straight(name), resumed)

def interrupted_after(steps):
    class Interrupted(HAM):
        def penalty(self):
            nonlocal steps
            steps -= 1
            if steps < 0: raise KeyboardInterrupt
            return super().penalty()
    return Interrupted()

def test_resuming_a_run_that_was_stopped_within_a_task(stream, tmp_path):
    per_task = 3 * 8 // 8  # three classes of eight images, batches of eight
    method = interrupted_after(2 * per_task + 1)
    with pytest.raises(KeyboardInterrupt): learn(stream, method=method, out=tmp_path, **QUICK)
    assert len(read_card(tmp_path)['accuracy_matrix']) == 2
    assert_same(make('ham', stream), make('ham', stream, out=tmp_path, resume=True))

def test_resuming_a_run_that_was_stopped_while_saving(stream, tmp_path, monkeypatch):
    "What task 1 left counts"
    run = make('ham', stream, begin, out=tmp_path)
    for _ in range(2): run.learn_task()
    def stop(*args): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(checkpoint, 'write_whole', stop)
        with pytest.raises(KeyboardInterrupt): run.learn_task()
    assert len(read_card(tmp_path)['accuracy_matrix']) == 2
    assert_same(make('ham', stream), make('ham', stream, out=tmp_path, resume=True))
    states = {'state-003.safetensors', 'state-004.safetensors'}
    assert {p.name for p in tmp_path.iterdir()} == {'results.json', 'log.jsonl', *states}

def test_resuming_refuses_another_stream_or_setting(stream, tmp_path):
    make('ham', stream, begin, out=tmp_path).learn_task()
    before = (tmp_path/'results.json').read_bytes()
    other = TaskStream(*toy(per_class=8), tasks=4, seed=1)
    def refused(why, name='ham', stream=stream, **more):
        with pytest.raises(ValueError, match=why):
            make(name, stream, out=tmp_path, resume=True, **more)
    refused('class_seed=0.*class_seed=1', stream=other)
    refused("method='ham'.*method='frozen'", 'frozen')
    refused('rank=8.*rank=2', rank=2)
    (tmp_path/'log.jsonl').write_text('{"half a line')
    refused("Unknown tracker 'nope'", trackers='nope')
    assert (tmp_path/'log.jsonl').read_text() == '{"half a line'
    assert (tmp_path/'results.json').read_bytes() == before

def test_resuming_refuses_other_weights_of_the_same_name(stream, tmp_path):
    a, b = (tmp_path/d/'model.safetensors' for d in 'ab')
    for path in (a, b):
        path.parent.mkdir()
        save_file(nano_vit().state_dict(), path)
    def started(weights, **more):
        return make('ham', stream, begin, weights=weights, out=tmp_path/'run', **more)
    started(a).learn_task()
    with pytest.raises(ValueError, match='weights='): started(b, resume=True)
    assert started(a, resume=True).tasks_done == 1

def test_divergence_puts_the_adapters_back(stream, monkeypatch):
    run = make('ham', stream, begin)
    for _ in range(2): run.learn_task()
    before = extract(run.model, run.pre, stream.test(0), precision='fp32')
    losses = iter([0., 0., float('nan')])
    monkeypatch.setattr(HAM, 'penalty', lambda self: torch.tensor(next(losses)), raising=False)
    with pytest.raises(Diverged, match='at task 2, step 2'): run.learn_task()
    assert_close(extract(run.model, run.pre, stream.test(0), precision='fp32'), before)
    assert run.tasks_done == sum(map(len, run.method.members)) == 2

class Draws(HAM):
    "Uses generators that are not the loop's"
    def begin_task(self, layers, *args):
        super().begin_task(layers, *args)
        for l in layers.values(): l.A.data += .1 * torch.rand_like(l.A)

runs_that_draw = {**runs, 'ham, other generators': (Draws, dict(), 'ridge', dict())}

@pytest.mark.parametrize('name', runs_that_draw)
def test_a_task_that_was_interrupted_can_be_learnt_again(name, stream, straight, tmp_path,
                                                         monkeypatch):
    """While training, while testing (when method and heads have taken the task in), while the
    card is filled and while it is saved"""
    monkeypatch.setitem(runs, name, runs_that_draw[name])
    whole = straight(name)
    run = make(name, stream, begin, out=tmp_path)
    def interrupted(*args, **kwargs): raise KeyboardInterrupt
    def broken_by(where, what):
        with monkeypatch.context() as m:
            m.setattr(where, what, interrupted)
            with pytest.raises(KeyboardInterrupt): run.learn_task()
    broken_by(running, 'accuracies')
    for _ in range(2): run.learn_task()
    for what in 'accuracies', 'all_metrics': broken_by(running, what)
    broken_by(checkpoint, 'write_whole')
    if run.method.trains: broken_by(Loop, 'last_loss')
    while run.tasks_done < len(stream): run.learn_task()
    assert_same(run, whole)
    places = [(l['task'], l['step']) for l in read_log(tmp_path)]
    assert places == sorted(set(places))
    assert read_card(tmp_path)['accuracy_matrix'] == whole.card['accuracy_matrix']

# -- several heads, tests now and then

HEADS = dict(head='discriminant,linear,prototype-fixed', drift_views=2)

@pytest.mark.parametrize('head', ['linear', 'prototype-fixed', 'discriminant'])
def test_a_head_beside_another_is_the_head_alone(head, stream):
    "Heads share one training, so beside another each is what it would be in a run of its own"
    both, alone = (learn(stream, head=h, drift_views=2, **QUICK) for h in (HEADS['head'], head))
    found = both.card if head == 'discriminant' else both.card['extra_heads'][head]
    for k in 'accuracy_matrix', 'metrics': assert found[k] == alone.card[k]

def test_resuming_with_several_heads(stream, tmp_path):
    settings = HEADS | QUICK
    begin(stream, out=tmp_path, **settings).learn_task()
    straight, resumed = (learn(stream, **more, **settings)
                         for more in ({}, dict(out=tmp_path, resume=True)))
    assert_same(straight, resumed)
    assert straight.card['extra_heads'] == resumed.card['extra_heads']

def test_drift_views_show_heads_more_of_the_drift(stream):
    means = {}
    for n in (0, 2):
        run = learn(stream, head='discriminant', drift_views=n, **QUICK)
        means[n] = run.head.stats['means']
    assert torch.equal(means[0][-3:], means[2][-3:])  # new classes do not drift
    assert not torch.equal(means[0][:-3], means[2][:-3])

def test_tasks_can_be_tested_in_blocks(stream, tmp_path):
    every, blocks = learn(stream, **QUICK), learn(stream, test_every=3, out=tmp_path, **QUICK)
    R, B = (run.card['accuracy_matrix'] for run in (every, blocks))
    sizes = every.card['test_sizes']
    def block(row): return sum(a * n for a, n in zip(row, sizes)) / sum(sizes[:len(row)])
    assert [len(row) for row in B] == [1, 2] and blocks.tasks_done == 4
    assert B == [pytest.approx([block(R[2])]), pytest.approx([block(R[3][:3]), R[3][3]])]
    assert '| 0 to 2 |' in blocks.table() and '| 3 |' in blocks.table()
    assert read_card(tmp_path)['config']['test_every'] == 3
    assert blocks.card['metrics']['final_accuracy'] == pytest.approx(sum(B[-1]) / 2)

# -- what a run writes and returns

def test_the_card_survives_the_disk(stream, tmp_path):
    run = make('ham', stream, out=tmp_path)
    assert read_card(tmp_path) == run.card == json.loads(json.dumps(run.card, allow_nan=False))
    assert run.card['config']['train']['epochs'] == 1 and run.card['config']['seed'] == 3
    assert run.card['class_order'] == stream.class_order and run.card['classes'] == stream.classes

def test_a_run_shows_itself_as_a_table(stream):
    run = make('ham', stream, begin)
    assert '0 of 4 tasks' in run._repr_markdown_()
    run.learn_task()
    assert f"{100 * run.card['metrics']['final_accuracy']:.1f} %" in run._repr_markdown_()
    assert '| 0 |' in run.table()

def test_the_merged_model_predicts_what_the_run_measured(stream):
    run = make('ham, other choices', stream, precision='fp32')
    model = run.merged_model()
    assert type(model) is VisionTransformer
    assert not any(isinstance(m, LoRALinear) for m in model.modules())
    for task, accuracy in enumerate(run.card['accuracy_matrix'][-1]):
        images = stream.test(task)
        found = (model(run.pre(images.x)).argmax(1) == images.y).float().mean().item()
        one_image = 1.01 / len(images)  # may lie on the border
        assert found == pytest.approx(accuracy, abs=one_image)

def test_every_image_is_seen_in_its_own_task_only(stream, monkeypatch):
    asked, train = [], TaskStream.train
    def asked_for(self, task):
        asked.append(task)
        return train(self, task)
    monkeypatch.setattr(TaskStream, 'train', asked_for)
    run = make('ham', stream)
    assert asked == list(range(4)) == [r['task'] for r in run.card['merge_reports']]

# -- what a method may change

@pytest.fixture(scope='module')
def untouched(stream):
    model, pre = load_backbone(device='cpu')
    return dict(model.named_parameters()), extract(model, pre, stream.test(0))

@pytest.mark.parametrize('head', ['prototype', 'linear', 'ridge'])
def test_frozen_never_changes_the_features(head, stream, untouched):
    run = learn(stream, method=Frozen(), head=head, **QUICK)
    assert torch.equal(extract(run.model, run.pre, stream.test(0)), untouched[1])

@each_run
def test_the_backbone_itself_stays(name, stream, untouched):
    run = make(name, stream)
    features = extract(run.model, run.pre, stream.test(0))
    assert torch.equal(features, untouched[1]) == isinstance(run.method, Frozen)
    for k, v in run.model.named_parameters():
        k = k.replace('.base.', '.')
        if k in untouched[0]: assert torch.equal(v, untouched[0][k]), k

def test_a_method_can_be_used_twice(stream):
    ham = HAM()
    for _ in range(2):
        learn(stream, method=ham, **QUICK)
        assert sorted(sum(ham.members, [])) == list(range(4))

def test_a_task_may_go_as_far_as_the_classes_so_far_say(stream):
    method = FixedImportance(first_importance=8., halving_classes=6.)
    run = learn(stream, method=method, **QUICK)
    found = [r['importance'] for r in run.card['merge_reports']]
    assert found == pytest.approx([8 / (1 + stream.labels(t).stop / 6) for t in range(len(stream))])

def test_a_class_alone_in_its_task_is_warned_of(recwarn):
    stream = TaskStream.named('digits', tasks=7, seed=0, limit_per_class=2)
    begin(stream, method=Frozen(), **QUICK)
    assert not recwarn
    with pytest.warns(UserWarning, match='4 of 7 tasks have a single class'): begin(stream, **QUICK)

def test_a_run_that_runs_away_says_so(recwarn):
    def after(task, report):
        card = dict(merge_reports=[report])
        run = SimpleNamespace(tasks_done=task + 1, card=card, train=TrainConfig(lr=.5))
        Runaway().between_tasks(run)
    for task, shift in ((0, 3.), (1, 1.), (4, .2)): after(task, dict(feature_shift=shift))
    after(2, dict())  # nothing was trained
    assert not recwarn
    with pytest.warns(UserWarning, match='Task 3 moved its features 1.2 times .* lr than 0.5'):
        after(3, dict(feature_shift=1.24))

def test_few_images_say_nothing_of_running_away(recwarn):
    stream = TaskStream.named('digits', tasks=5, seed=0, limit_per_class=1)
    run = learn(stream, method=HAM(), **QUICK)
    assert not recwarn and all(0 <= r['feature_shift'] < 10 for r in run.card['merge_reports'])

class Breaks(Callback):
    "Fails after the second task is learnt and tested"
    def after_task(self, run):
        if run.tasks_done == 2: raise KeyboardInterrupt

def test_what_a_callback_undoes_is_not_on_disk(stream, tmp_path):
    run = make('ham', stream, begin, out=tmp_path, callbacks=[Breaks()])
    with pytest.raises(KeyboardInterrupt): run.learn()
    assert run.tasks_done == len(read_card(tmp_path)['seconds_per_task']) == 1

def test_a_tracker_hears_of_a_task_that_is_saved(stream, tmp_path, monkeypatch):
    told = []
    tracker = SimpleNamespace(log=lambda values, step: told.append(step), finish=lambda: None)
    run = make('sequential', stream, begin, out=tmp_path, callbacks=[Track([tracker])])
    def full(*args): raise OSError('No space left on device')
    with monkeypatch.context() as m:
        m.setattr(checkpoint, 'write_whole', full)
        with pytest.raises(OSError): run.learn_task()
    assert len(told) == 1  # the line of the log, and no test
    run.learn()
    assert told[1:] == sorted(told[1:]) and len(told) == 1 + 2 * len(stream)

@pytest.mark.parametrize('asked', ['resume', 'overwrite'])
def test_resuming_needs_a_folder(asked, stream):
    with pytest.raises(ValueError, match=f'{asked} needs a folder'):
        begin(stream, **{asked: True}, **QUICK)

def test_a_method_is_checked_before_anything_is_loaded(stream):
    with pytest.raises(ValueError, match="method is an object.*'ham'"):
        begin(stream, method='ham', backbone='nothing.is_loaded')

def test_a_log_has_a_line_every_few_steps_and_for_the_last(stream):
    lines = []
    run = begin(stream, callbacks=[Log(lines.append, every=2)], **QUICK)
    run.learn_task()
    steps = run.card['training'][0]['steps']
    assert [l['step'] for l in lines] == [*range(2, steps, 2), steps]

def test_the_memory_of_a_step_grows_with_its_images(stream):
    run = begin(stream, **QUICK)
    params = trainable(run.layers)
    small, large = (step_memory(run.model, params, run.pre.size, n, 'fp32') for n in (32, 64))
    assert small['weights'] == large['weights'] and small['optimizer'] == large['optimizer']
    assert small['activations'] < large['activations'] < 2 * small['activations']
    assert large['total'] == sum(v for k, v in large.items() if k != 'total')

def test_reports_say_how_far_features_moved(stream):
    trained, still = (make(name, stream).card['merge_reports'] for name in ('sequential', 'frozen'))
    assert all(r['feature_shift'] > 0 for r in trained)
    assert not any('feature_shift' in r for r in still)

def test_nothing_asks_what_a_method_can_do():
    "Every method keeps to the protocol, so nothing has to look whether it does"
    found = {name: make_method(name, tasks=4) for name in METHODS}
    assert all(isinstance(m, Method) and m.name == name for name, m in found.items())
    for f in Path(running.__file__).parent.glob('*.py'):
        assert not re.search(r'(get|has)attr\((self\.|run\.)?method\b', f.read_text()), f.name

# -- with the bundled weights

@pytest.mark.parametrize('seed', range(3))
def test_grouping_with_a_shared_start_finds_the_planted_pairs(seed):
    stream, train = TaskStream(*toy(seed=seed), tasks=6), TrainConfig(epochs=3, lr=3e-3)
    run = learn(stream, method=HAM(tau=.25), train=train, device='cpu', seed=seed)
    assert run.method.members == [[0, 3], [1, 4], [2, 5]]

def test_adapters_with_independent_starts_are_nearly_orthogonal():
    stream, train = TaskStream(*toy(), tasks=6), TrainConfig(epochs=3, lr=3e-3)
    method = HAM(shared_start=False, tau=.25, g_max=6)
    run = learn(stream, method=method, train=train, device='cpu', seed=0)
    reports = run.card['merge_reports']
    assert max(abs(c) for r in reports for c in r['similarities']) < .15
    assert run.method.members == [[t] for t in range(6)]

@pytest.mark.parametrize('method', [HAM, Frozen], ids=['ham', 'frozen'])
def test_digits_are_learnt(method):
    stream = TaskStream.named('digits', tasks=5, seed=0, limit_per_class=40)
    train = TrainConfig(epochs=6, lr=3e-3, zoom=(.9, 1.1), degrees=10)
    run = learn(stream, method=method(), train=train, device='cpu', seed=0)
    assert run.card['metrics']['final_accuracy'] > .75  # random weights reach 0.32

def test_shapes_and_state_are_sized_once():
    "Under the default rank budget nothing grows with the tasks but the head"
    def sizes(run): return {k: v.shape for k, v in run.state().items()
                            if not k.startswith(('head.', 'method.')) and not k.endswith('.ranks')}
    run = begin(TaskStream.named('toy', tasks=6), method=HAM(tau=1., g_max=3), rank=2, **QUICK)
    run.learn_task()
    first, place = sizes(run), run.layers['blocks.0.attn.qkv'].groups_A.data_ptr()
    for _ in range(5): run.learn_task()
    assert sizes(run) == first and run.layers['blocks.0.attn.qkv'].groups_A.data_ptr() == place
    assert len(run.method.members) == 3
    assert max(r['rank_after'] for r in run.card['merge_reports']) == 4

def test_blocks_and_views(tmp_path):
    """Adapters above a frozen prefix, whose outputs are kept: the settings are in the card,
    resuming included"""
    train = TrainConfig(epochs=2, bs=8, cached_views=5)
    settings = dict(blocks='3..5', rank=2, train=train, device='cpu', seed=3, out=tmp_path/'run')
    def started(**more):
        stream = TaskStream.named('toy', tasks=6)
        return begin(stream, method=HAM(), **settings, **more)
    run = started()
    run.learn_task()
    assert list(run.layers) == [f'blocks.{i}.attn.qkv' for i in (3, 4, 5)]
    assert run.card['config']['blocks'] == [3, 4, 5]
    # no more views than epochs would show
    views, n = 2, len(run.stream.train(0))
    assert run.card['training'][0]['cached_bytes'] == views * n * 16 * 96 * 4
    again = started(resume=True)
    for r in (run, again): r.learn_task()
    a, b = (r.layers['blocks.3.attn.qkv'].groups_B for r in (run, again))
    assert torch.equal(a, b)

def test_compiled_blocks_are_compiled_once():
    """Buffers, scalars and the adapter keep their shapes from the first task on, so no task
    compiles anything anew"""
    from torch._dynamo.utils import counters
    stream, method = TaskStream.named('toy', tasks=6), HAM(tau=1., g_max=3)
    run = begin(stream, method=method, rank=2, precision='fp32', **QUICK)
    # the tracing, without the generation of code
    for block in run.model.blocks: block.compile(backend='aot_eager')
    counters.clear()
    graphs = []
    for task in range(4):
        run.method.begin_task(run.layers, task, seed=0)
        run.model(torch.zeros(2, 3, 32, 32)).sum().backward()
        run.method.end_task(run.layers, task)
        graphs.append(counters['stats']['unique_graphs'])
    assert 0 < graphs[0] == graphs[-1] and not counters['graph_break']

def test_progress_is_shown_where_somebody_watches(monkeypatch):
    monkeypatch.setitem(sys.modules, 'ipykernel', object())  # imported, not running
    closed, terminal = io.StringIO(), io.StringIO()
    closed.close()
    terminal.isatty = lambda: True
    for stderr, shown in ((io.StringIO(), False), (None, False), (closed, False), (terminal, True)):
        monkeypatch.setattr(sys, 'stderr', stderr)
        assert show_progress() is shown
    monkeypatch.setattr(sys, 'stderr', None)
    for shell, shown in ((SimpleNamespace(), False), (SimpleNamespace(kernel=None), True)):
        monkeypatch.setattr(builtins, 'get_ipython', lambda shell=shell: shell, raising=False)
        assert show_progress() is shown
