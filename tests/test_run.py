"A run over a stream: the same every time, also after an interruption"
from importlib import import_module
import json

import pytest
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch.testing import assert_close

from ham_nb.backbone import NANO, extract, load_backbone, nano_vit
from ham_nb.baselines import FirstTask, Frozen, InfLoRA, KMerge, MergedAfter, OLoRA, RandomGroups, SDLoRA, Sequential
from ham_nb.cli import parse, train_options
from ham_nb.learn import begin, learn, read_card, read_log, state_tensors
from ham_nb.images import toy
from ham_nb.stream import TaskStream
from ham_nb.ham import HAM
from ham_nb.lora import LoRALinear
from ham_nb.train import Diverged, Loop, TrainConfig

running = import_module('ham_nb.learn')  # by name: `ham_nb.learn` is the function

QUICK = dict(train=TrainConfig(epochs=1, bs=8), device='cpu', seed=3)

@pytest.fixture(scope='module')
def stream(): return TaskStream.named('toy', tasks=4, seed=0, limit_per_class=8)

runs = { # method, head, and settings of the run
    'ham': (HAM, dict(), 'discriminant', dict()),
    'ham, other choices': (HAM, dict(importance='layer', start='independent', keep=.5, group_rank=6, g_max=2), 'linear', dict(rank=4)),
    'ham, anchored and boosted': (HAM, dict(anchor=300., g_max=2, boost=2., fade=2.), 'discriminant', dict()),
    'ham, other layers': (HAM, dict(similarity='cka', tau=.9), 'cosine', dict(targets='attn.q,attn.v,mlp.fc1')),
    'sequential': (Sequential, dict(), 'ridge', dict(scale=2.)),
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
    a, b = (state_tensors(r.layers, r.head, r.method) for r in (run, other))
    assert a.keys() == b.keys()
    for k in a: assert torch.equal(a[k], b[k]), k

# -- the same every time

@each_run
def test_the_same_seed_gives_the_same_run(name, stream):
    one = make(name, stream)
    torch.manual_seed(99)  # whatever else happened in the process
    assert_same(one, make(name, stream))

def test_another_seed_gives_another_run(stream):
    one, two = make('ham', stream), make('ham', stream, seed=4)
    assert not torch.equal(one.layers['blocks.0.attn.qkv'].groups_B, two.layers['blocks.0.attn.qkv'].groups_B)

# -- interruptions

@each_run
def test_two_tasks_and_two_more_after_resuming_equal_four(name, stream, tmp_path):
    first = make(name, stream, begin, out=tmp_path)
    for _ in range(2): first.learn_task()
    resumed = make(name, stream, out=tmp_path, resume=True)
    assert resumed.tasks_done == len(resumed.method.reports if name.startswith('ham') else range(4)) == 4
    assert_same(make(name, stream), resumed)

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
    with pytest.raises(KeyboardInterrupt): learn(stream, method=interrupted_after(2 * per_task + 1), out=tmp_path, **QUICK)
    assert len(read_card(tmp_path)['accuracy_matrix']) == 2
    assert_same(make('ham', stream), make('ham', stream, out=tmp_path, resume=True))

def test_resuming_a_run_that_was_stopped_while_saving(stream, tmp_path, monkeypatch):
    "What task 1 left counts"
    run = make('ham', stream, begin, out=tmp_path)
    for _ in range(2): run.learn_task()
    def stop(*args): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(running, '_write', stop)
        with pytest.raises(KeyboardInterrupt): run.learn_task()
    assert len(read_card(tmp_path)['accuracy_matrix']) == 2
    assert_same(make('ham', stream), make('ham', stream, out=tmp_path, resume=True))
    assert {p.name for p in tmp_path.iterdir()} == {'results.json', 'log.jsonl', 'state-003.safetensors', 'state-004.safetensors'}

def test_resuming_refuses_another_stream_or_setting(stream, tmp_path):
    make('ham', stream, begin, out=tmp_path).learn_task()
    before = (tmp_path/'results.json').read_bytes()
    other = TaskStream.named('toy', tasks=4, seed=1, limit_per_class=8)
    with pytest.raises(ValueError, match='class_seed=0.*class_seed=1'): make('ham', other, out=tmp_path, resume=True)
    with pytest.raises(ValueError, match="method='ham'.*method='frozen'"): make('frozen', stream, out=tmp_path, resume=True)
    with pytest.raises(ValueError, match='rank=8.*rank=2'): make('ham', stream, out=tmp_path, resume=True, rank=2)
    (tmp_path/'log.jsonl').write_text('{"half a line')
    with pytest.raises(ValueError, match="Unknown tracker 'nope'"): make('ham', stream, out=tmp_path, resume=True, trackers='nope')
    assert (tmp_path/'log.jsonl').read_text() == '{"half a line'
    assert (tmp_path/'results.json').read_bytes() == before

def test_resuming_refuses_other_weights_of_the_same_name(stream, tmp_path):
    a, b = (tmp_path/d/'model.safetensors' for d in 'ab')
    for path in (a, b):
        path.parent.mkdir()
        save_file(nano_vit().state_dict(), path)
    make('ham', stream, begin, weights=a, out=tmp_path/'run').learn_task()
    with pytest.raises(ValueError, match='weights='): make('ham', stream, begin, weights=b, out=tmp_path/'run', resume=True)
    assert make('ham', stream, begin, weights=a, out=tmp_path/'run', resume=True).tasks_done == 1

def test_divergence_puts_the_adapters_back(stream, monkeypatch):
    run = make('ham', stream, begin)
    for _ in range(2): run.learn_task()
    before = extract(run.model, run.pre, stream.test(0), precision='fp32')
    losses = iter([0., 0., float('nan')])
    monkeypatch.setattr(HAM, 'penalty', lambda self: torch.tensor(next(losses)), raising=False)
    with pytest.raises(Diverged, match='at task 2, step 2'): run.learn_task()
    assert_close(extract(run.model, run.pre, stream.test(0), precision='fp32'), before)
    assert run.tasks_done == len(run.method.reports) == 2

class Draws(HAM):
    "Uses generators that are not the loop's"
    def begin_task(self, layers, *args):
        super().begin_task(layers, *args)
        for l in layers.values(): l.A.data += .1 * torch.rand_like(l.A)

runs_that_draw = {**runs, 'ham, other generators': (Draws, dict(), 'ridge', dict())}

@pytest.mark.parametrize('name', runs_that_draw)
def test_a_task_that_was_interrupted_can_be_learnt_again(name, stream, tmp_path, monkeypatch):
    "While training, while testing (when method and heads have taken the task in), while the card is filled and while it is saved"
    monkeypatch.setitem(runs, name, runs_that_draw[name])
    straight = make(name, stream)
    run = make(name, stream, begin, out=tmp_path)
    def interrupted(*args, **kwargs): raise KeyboardInterrupt
    def broken_by(where, what):
        with monkeypatch.context() as m:
            m.setattr(where, what, interrupted)
            with pytest.raises(KeyboardInterrupt): run.learn_task()
    broken_by(running, 'accuracies')
    for _ in range(2): run.learn_task()
    for what in 'accuracies', 'all_metrics', '_write': broken_by(running, what)
    if run.method.trains: broken_by(Loop, '_check_last')
    while run.tasks_done < len(stream): run.learn_task()
    assert_same(run, straight)
    places = [(l['task'], l['step']) for l in read_log(tmp_path)]
    assert places == sorted(set(places))
    assert read_card(tmp_path)['accuracy_matrix'] == straight.card['accuracy_matrix']

# -- several heads, tests now and then

BESIDE = dict(head='discriminant,linear,prototype-fixed', drift_views=2)

@pytest.mark.parametrize('head', ['linear', 'prototype-fixed', 'discriminant'])
def test_a_head_beside_another_is_the_head_alone(head, stream):
    "Heads share one training, so beside another each is what it would be in a run of its own"
    both, alone = (learn(stream, head=h, drift_views=2, **QUICK) for h in (BESIDE['head'], head))
    found = both.card if head == 'discriminant' else both.card['beside'][head]
    assert found['accuracy_matrix'] == alone.card['accuracy_matrix'] and found['metrics'] == alone.card['metrics']

def test_resuming_with_several_heads(stream, tmp_path):
    begin(stream, out=tmp_path, **BESIDE, **QUICK).learn_task()
    straight, resumed = learn(stream, **BESIDE, **QUICK), learn(stream, out=tmp_path, resume=True, **BESIDE, **QUICK)
    assert_same(straight, resumed)
    assert straight.card['beside'] == resumed.card['beside'] and straight.state.keys() == resumed.state.keys()
    for k in straight.state: assert torch.equal(straight.state[k], resumed.state[k]), k

def test_drift_views_show_heads_more_of_the_drift(stream):
    means = {}
    for n in (0, 2):
        run = learn(stream, head='discriminant', drift_views=n, **QUICK)
        means[n] = run.head.stats['means']
    assert torch.equal(means[0][-3:], means[2][-3:]) and not torch.equal(means[0][:-3], means[2][:-3])  # new classes do not drift

def test_tasks_can_be_tested_in_blocks(stream, tmp_path):
    every, blocks = learn(stream, **QUICK), learn(stream, test_every=3, out=tmp_path, **QUICK)
    R, B, sizes = every.card['accuracy_matrix'], blocks.card['accuracy_matrix'], every.card['test_sizes']
    def block(row): return sum(a * n for a, n in zip(row, sizes)) / sum(sizes[:len(row)])
    assert [len(row) for row in B] == [1, 2] and blocks.tasks_done == 4
    assert B == [pytest.approx([block(R[2])]), pytest.approx([block(R[3][:3]), R[3][3]])]
    assert '| 0 to 2 |' in blocks.table() and '| 3 |' in blocks.table()
    assert read_card(tmp_path)['config']['test_every'] == 3 and blocks.card['metrics']['final_accuracy'] == pytest.approx(sum(B[-1]) / 2)

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
    assert f"{100 * run.card['metrics']['final_accuracy']:.1f} %" in run._repr_markdown_() and '| 0 |' in run.table()

def test_the_merged_model_predicts_what_the_run_measured(stream):
    run = make('ham, other choices', stream, precision='fp32')
    model = run.merged_model()
    assert type(model) is VisionTransformer and not any(isinstance(m, LoRALinear) for m in model.modules())
    for task, accuracy in enumerate(run.card['accuracy_matrix'][-1]):
        images = stream.test(task)
        found = (model(run.pre(images.x)).argmax(1) == images.y).float().mean().item()
        assert found == pytest.approx(accuracy, abs=1.01 / len(images))  # one image may lie on the border

def test_every_image_is_seen_in_its_own_task_only(stream, monkeypatch):
    asked, train = [], TaskStream.train
    monkeypatch.setattr(TaskStream, 'train', lambda self, task: asked.append(task) or train(self, task))
    run = make('ham', stream)
    assert asked == list(range(4)) == [r['task'] for r in run.method.reports]

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
        if (k := k.replace('.base.', '.')) in untouched[0]: assert torch.equal(v, untouched[0][k]), k

def test_a_method_can_be_used_twice(stream):
    ham = HAM()
    for _ in range(2):
        learn(stream, method=ham, **QUICK)
        assert [r['task'] for r in ham.reports] == list(range(4))

def test_a_task_may_go_as_far_as_the_classes_so_far_say(stream):
    ham = HAM(importance='fixed', boost=8., fade=6.)
    learn(stream, method=ham, **QUICK)
    assert [r['importance'] for r in ham.reports] == pytest.approx([8 / (1 + stream.labels(t).stop / 6) for t in range(len(stream))])

def test_a_class_alone_in_its_task_is_warned_of(recwarn):
    stream = TaskStream.named('digits', tasks=7, seed=0, limit_per_class=2)
    begin(stream, method=Frozen(), **QUICK)
    assert not recwarn
    with pytest.warns(UserWarning, match='4 of 7 tasks have a single class'): begin(stream, **QUICK)

# -- the demo

def test_the_demo_is_what_the_readme_says():
    demo = parse(train_options, 'ham-train', ['--preset', 'demo'])
    assert (demo['dataset'], demo['tasks'], demo['backbone'], demo['out']) == ('digits', 5, NANO, 'runs/demo')
    assert demo['method'].split(',') == ['frozen', 'sequential', 'ham', 'frozen+ridge'] and demo['head'] == 'prototype-fixed'
    assert [len(TaskStream.named('digits', tasks=demo['tasks']).labels(t)) for t in range(5)] == [2] * 5

# -- with the bundled weights

@pytest.mark.parametrize('seed', range(5))
def test_grouping_with_a_shared_start_finds_the_planted_pairs(seed):
    run = learn(TaskStream(*toy(seed=seed), tasks=6), method=HAM(start='shared', tau=.25), train=TrainConfig(epochs=3, lr=3e-3),
                device='cpu', seed=seed)
    assert run.method.members == [[0, 3], [1, 4], [2, 5]]

def test_adapters_with_independent_starts_are_nearly_orthogonal():
    run = learn(TaskStream(*toy(), tasks=6), method=HAM(start='independent', tau=.25, g_max=6), train=TrainConfig(epochs=3, lr=3e-3),
                device='cpu', seed=0)
    assert max(abs(c) for r in run.method.reports for c in r['similarities']) < .15
    assert run.method.members == [[t] for t in range(6)]

@pytest.mark.parametrize('method', [HAM, Frozen], ids=['ham', 'frozen'])
def test_digits_are_learnt(method):
    stream = TaskStream.named('digits', tasks=5, seed=0, limit_per_class=40)
    run = learn(stream, method=method(), train=TrainConfig(epochs=6, lr=3e-3, zoom=(.9, 1.1), degrees=10), device='cpu', seed=0)
    assert run.card['metrics']['final_accuracy'] > .75  # random weights reach 0.32

def test_shapes_and_state_are_sized_once():
    "Under the default rank budget nothing grows with the tasks but the head"
    def sizes(run): return {k: v.shape for k, v in state_tensors(run.layers, run.head).items() if not k.startswith('head.')
                            and not k.endswith('.ranks')}
    run = begin(TaskStream.named('toy', tasks=6), method=HAM(tau=1., g_max=3), rank=2, **QUICK)
    run.learn_task()
    first, place = sizes(run), run.layers['blocks.0.attn.qkv'].groups_A.data_ptr()
    for _ in range(5): run.learn_task()
    assert sizes(run) == first and run.layers['blocks.0.attn.qkv'].groups_A.data_ptr() == place
    assert len(run.method.members) == 3 and max(r['rank_after'] for r in run.method.reports) == 4

def test_blocks_and_views(tmp_path):
    "Adapters above a frozen prefix, whose outputs are kept: the settings are in the card, resuming included"
    settings = dict(method=HAM(), blocks='3..5', rank=2, train=TrainConfig(epochs=2, bs=8, views=5), device='cpu', seed=3)
    run = begin(TaskStream.named('toy', tasks=6), out=tmp_path/'run', **settings)
    run.learn_task()
    assert list(run.layers) == [f'blocks.{i}.attn.qkv' for i in (3, 4, 5)] and run.card['config']['blocks'] == [3, 4, 5]
    n = len(run.stream.train(0))
    assert run.card['training'][0]['kept_bytes'] == 2 * n * 16 * 96 * 4  # no more views than epochs would show
    again = begin(TaskStream.named('toy', tasks=6), out=tmp_path/'run', resume=True, **settings | dict(method=HAM()))
    for r in (run, again): r.learn_task()
    assert torch.equal(run.layers['blocks.3.attn.qkv'].groups_B, again.layers['blocks.3.attn.qkv'].groups_B)

def test_compiled_blocks_are_compiled_once():
    "Buffers, scalars and the adapter keep their shapes from the first task on, so no task compiles anything anew"
    from torch._dynamo.utils import counters
    run = begin(TaskStream.named('toy', tasks=6), method=HAM(tau=1., g_max=3), rank=2, precision='fp32', **QUICK)
    for block in run.model.blocks: block.compile(backend='aot_eager')  # the tracing, without the generation of code
    counters.clear()
    graphs = []
    for task in range(4):
        run.method.begin_task(run.layers, task, seed=0)
        run.model(torch.zeros(2, 3, 32, 32)).sum().backward()
        run.method.end_task(run.layers, task)
        graphs.append(counters['stats']['unique_graphs'])
    assert 0 < graphs[0] == graphs[-1] and not counters['graph_break']
