"The two sites of one source: with Quarto (`make docs`), and without (`make site`)"
import re
from dataclasses import fields

import pytest
import yaml
from nbdev.process import read_nb
from nbdev.processors import FilterDefaults

import api
import bridge
import docs_check
from ham_nb.controls import METHODS
from ham_nb.folders import TaskStream
from ham_nb.ham import HAM
from ham_nb.lora import LoRALinear
from ham_nb.train import TrainConfig
from links import root

PAGES = [n for n in docs_check.sidebar() if n.endswith('.ipynb')]

def processed(name):
    "A notebook as nbdev hands it to either site"
    nb = read_nb(docs_check.nbs/name)
    proc = FilterDefaults().nb_proc(nb)
    proc.process()
    return proc.nb

def front(nb): return yaml.safe_load(nb.cells[0].source.strip('-\n '))

def shown(o): return api.Reference(o)._repr_markdown_()

# -- the same pages

def test_the_order_is_that_of_the_sidebar():
    named = re.findall(r'^(?!```|:)(\S+)$', bridge.contents(), re.M)
    assert [f'{n}' for n in named] == [bridge.page(re.sub(r'\.\w+$', '', n))
                                       for n in docs_check.sidebar() if n != 'index.ipynb']

def test_names_of_pages_are_unique():
    names = [bridge.page(n) for n in docs_check.sidebar()]
    assert len(set(names)) == len(names)

@pytest.mark.parametrize('name', ['index.ipynb', '06_lora.ipynb', '23a_callbacks.ipynb',
                                  'tutorials/quickstart.ipynb'])
def test_title_and_address_are_those_that_quarto_takes(name, tmp_path, monkeypatch):
    nb = processed(name)
    about = front(nb)
    address = bridge.page(name).replace('.ipynb', '.html')
    assert about.get('output-file', address.split('/')[-1]) == address.split('/')[-1]
    monkeypatch.setattr(bridge, 'root', tmp_path)
    (tmp_path/'_proc'/name).parent.mkdir(parents=True)
    (tmp_path/'_quarto.yml').write_text((root/'_quarto.yml').read_text(encoding='utf-8'))
    from fastcore.nbio import write_nb
    write_nb(nb, tmp_path/'_proc'/name)
    first = bridge.convert(name)['cells'][0]['source']
    assert first.startswith(f'# {about["title"]}{bridge.MARK}\n')
    assert str(about.get('description', '')) in first

def test_the_workflow_builds_and_deploys_the_site_of_quarto():
    text = (root/'.github/workflows/docs.yml').read_text(encoding='utf-8')
    jobs = yaml.safe_load(text)['jobs']
    steps = [s for job in jobs.values() for s in job['steps']]
    assert 'make docs' in [s.get('run') for s in steps]
    assert any('quarto' in s.get('uses', '') for s in steps)
    assert any(s.get('uses', '').startswith('actions/deploy-pages') for s in steps)
    uploaded = next(s for s in steps if 'upload-pages' in s.get('uses', ''))
    site = yaml.safe_load((root/'_quarto.yml').read_text(encoding='utf-8'))
    assert uploaded['with']['path'] == site['project']['output-dir']

def test_what_quarto_reads_is_there():
    site = yaml.safe_load((root/'_quarto.yml').read_text(encoding='utf-8'))
    html, web = site['format']['html'], site['website']
    styles = [f for theme in html['theme'].values() for f in theme if '/' in f]
    named = [*styles, web['favicon'], web['open-graph']['image'], web['twitter-card']['image']]
    assert [f for f in named if not (docs_check.nbs/f).exists()] == []
    scss = ''.join((docs_check.nbs/f).read_text(encoding='utf-8') for f in styles)
    assert '$web-font-path: false' in scss and 'http' not in scss
    assert html['html-math-method'] == 'mathml'  # a script would come from outside

# -- the bridge

def test_a_callout_becomes_an_admonition():
    text = ('::: {.callout-note}\n## Choice: a\nOne.\n:::\n\n'
            '::: {.callout-tip collapse="true"}\nTwo.\n:::')
    assert bridge.markdown(text, 0) == (':::{admonition} Choice: a\n:class: note\n\nOne.\n:::\n\n'
                                        ':::{admonition} Tip\n:class: tip\n'
                                        ':collapsible: closed\n\nTwo.\n:::')

@pytest.mark.parametrize('link, depth, local', [
    ('13_ham.ipynb#ham', 0, 'ham.ipynb#ham'),
    ('../23a_callbacks.ipynb', 1, '../callbacks.ipynb'),
    ('{home}tutorials/faq.html#on-colab', 0, 'tutorials/faq.ipynb#on-colab'),
    ('{home}ham.html#ham', 1, '../ham.ipynb#ham'),
    ('https://arxiv.org/abs/2509.13211', 0, 'https://arxiv.org/abs/2509.13211')])
def test_a_link_leads_to_the_local_page(link, depth, local):
    home = docs_check.addresses(docs_check.settings()['repository'])[1]
    text = bridge.markdown(f'[x]({link.format(home=home)})', depth)
    assert text == f'[x]({local})'

def test_what_a_cell_says_to_quarto_becomes_what_sphinx_reads():
    figure = dict(data={'image/png': ''}, output_type='display_data')
    source = '#| fig-cap: "A: b"\n#| fig-alt: "C"\n#| code-fold: true\nplot()'
    cell = bridge.code(dict(cell_type='code', source=source, outputs=[figure]), 0)
    assert cell['source'] == 'plot()' and cell['metadata']['tags'] == ['hide-input']
    assert cell['metadata']['mystnb'] == {'image': {'alt': 'C'}, 'figure': {'caption': 'A: b'}}
    said = dict(data={'text/markdown': ['# a']}, output_type='display_data')
    cell = bridge.code(dict(source='#| echo: false\n#| output: asis\ndoc()', outputs=[said]), 0)
    assert cell == bridge.text_cell('# a')

def test_a_class_keeps_the_anchor_that_its_page_has_too():
    assert bridge.anchor(f'HAM{bridge.MARK}') != bridge.anchor('HAM') == 'ham'

# -- the reference

@pytest.mark.parametrize('kind', [HAM, TrainConfig])
def test_every_field_of_a_dataclass_has_its_line(kind):
    rows = [l.split(' | ') for l in shown(kind).splitlines() if l.startswith('| `')]
    assert [r[0] for r in rows] == [f'| `{f.name}`' for f in fields(kind) if f.init]
    assert all(r[-1].strip(' |') for r in rows)

def test_a_method_is_headed_with_its_class():
    assert shown(TaskStream.from_folder).startswith('### TaskStream.from_folder {.api}\n')
    assert shown(LoRALinear.reset).startswith('### LoRALinear.reset {.api}\n')  # within no_grad

def test_an_override_inherits_the_meaning_of_its_parameters():
    assert '| `task` | `int` |  | From 0 |' in shown(HAM.begin_task)

def test_further_parameters_keep_their_comment():
    from ham_nb.learn import begin
    rows = [l for l in shown(begin).splitlines() if 'As for `new_run`' in l]
    assert len(rows) == 1 and rows[0].startswith('| `**')

def test_a_name_leads_to_its_lines():
    path, first, last = re.search(r'/(ham_nb/\w+\.py)#L(\d+)-L(\d+)', shown(HAM)).groups()
    lines = (root/path).read_text(encoding='utf-8').splitlines()[int(first) - 1:int(last)]
    assert '@dataclass' in lines[0] and 'class HAM' in lines[1]

def test_code_is_open_in_the_method_and_folded_elsewhere():
    def folds(name): return set(re.findall(r'code-fold: (\w+)', str(processed(name).cells)))
    assert folds('08_similarity.ipynb') == {'show'} and folds('22_metrics.ipynb') == {'true'}

def test_documented_names_stand_in_the_order_of_their_definition():
    nb, names = processed('13_ham.ipynb'), []
    for c in nb.cells: names += re.findall(r'show_doc\((Method\.\w+)\)', c.source)
    assert names == ['Method.begin_task', 'Method.penalty', 'Method.end_task', 'Method.state',
                     'Method.load_state']

# -- words

def text_of(page):
    cells = docs_check.cells(docs_check.nbs/f'tutorials/{page}.ipynb')
    return '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')

@pytest.mark.parametrize('page', ['glossary', 'paper', 'settings'])
def test_names_in_backticks_are_in_the_package(page):
    code = ''.join(f.read_text(encoding='utf-8') for f in (root/'ham_nb').glob('*.py'))
    prose = re.sub(r'```.*?```', '', text_of(page), flags=re.S)
    names = {*re.findall(r'`([A-Za-z_]\w*)`', prose)} - {*METHODS}
    assert sorted(n for n in names if not re.search(rf'\b{n}\b', code)) == []

def test_every_word_of_the_glossary_has_one_anchor_and_every_link_its_word():
    page = text_of('glossary')
    anchors = re.findall(r'<a id="(.*?)">', page)
    assert len({*anchors}) == len(anchors) > 100
    assert {*re.findall(r'\]\(#(.*?)\)', page)} == {*anchors}
