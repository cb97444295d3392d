"""The benchmarks run, at a size that says nothing about speed.

They write the record that the page on speed reads."""
import json

import pytest
import torch

pytest.importorskip('peft')
from benchmarks import tables  # noqa: E402
from benchmarks.__main__ import RECORDS, main  # noqa: E402
from benchmarks.memory import measure  # noqa: E402
from benchmarks.subjects import SIZES, Bench  # noqa: E402


def test_a_record_is_written(tmp_path, capsys):
    out = tmp_path/'record.json'
    typed = f'--size quick --rounds 2 --only parts,export,loop --out {out}'
    assert main(typed.split()) == 0
    record = json.loads(out.read_text())
    t = record['tables']
    assert set(t) == {'parts', 'export', 'loop'} and record['rounds'] == 2
    assert 'exported / plain timm' in capsys.readouterr().out
    assert find(t['export'], 'same type and keys')['value'] is True
    assert len(t['loop']) == 4 and all(r['images_per_second'] > 0 for r in t['loop'])


def test_memory_counts_the_state_of_every_task():
    bench = Bench(SIZES['quick'], torch.device('cpu'), 'fp32', compiled=False)
    rows = measure(bench, tasks=6)
    assert rows[-1]['subject'] == 'task 6 / task 5: state_bytes'
    assert 1 <= rows[-1]['value'] < 1.001  # only the numbers of a group's members are new


def test_unknown_table():
    with pytest.raises(SystemExit, match="Unknown table 'speed'"): main(['--only', 'speed'])


def find(table, subject): return next(r for r in table if r['subject'] == subject)


def test_the_committed_record_keeps_the_promise():
    "What the README says about cost, read from the record"
    record = json.loads((RECORDS/'speed.json').read_text())
    t = record['tables']
    assert set(t) == set(tables.ALL) and record['command'] == 'python -m benchmarks'
    for task in (50, 100):
        assert find(t['step'], f'HAM, task {task} / HAM, task 1')['ratio'] <= 1.10
    assert find(t['step'], 'HAM, task 10')['to_floor']['ratio'] <= 1.25
    for table in ('step', 'wide'):
        assert find(t[table], 'HAM, task 10 / PEFT, 6 adapters')['ratio'] <= .85
    assert find(t['merge'], 'dense / factors')['ratio'] >= 20
    assert find(t['merge'], 'largest difference of the cosine')['value'] <= 1e-6
    assert find(t['merge'], 'largest relative difference of a merged layer')['value'] <= 1e-6
    assert abs(find(t['export'], 'exported / plain timm')['ratio'] - 1) <= .03
    for row in t['memory']:
        if ' / ' in row['subject']: assert row['value'] <= 1.02
