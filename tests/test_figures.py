"""The style of the figures, and the figures that the notebooks hold."""
import base64
import io
import json
import os
import re
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib import rc_params_from_file
from matplotlib import get_data_path
from matplotlib.colors import to_rgb
from PIL import Image, ImageFont

import docs_check
import shrink
from docs_check import cells, root
from ham_nb.plots import label_lines, plot_curves, plot_similarity, plot_timeline

WHITE, DARK = '#ffffff', '#131416'  # paper of a light and of a dark page
style = rc_params_from_file(root/'ham_nb/assets/figures.mplstyle', use_default_template=False)
COLOURS = style['axes.prop_cycle'].by_key()['color']
# how full colour blindness shows linear RGB (Machado, Oliveira and Fernandes, 2009)
SEEN = dict(
    normal=np.eye(3),
    protanopia=[[.152286, 1.052583, -.204868], [.114503, .786281, .099216],
                [-.003882, -.048116, 1.051998]],
    deuteranopia=[[.367322, .860646, -.227968], [.280085, .672501, .047413],
                  [-.011820, .042940, .968881]],
    tritanopia=[[1.255528, -.076749, -.178779], [-.078411, .930809, .147602],
                [.004733, .691367, .303900]])

def linear(colour):
    c = np.array(to_rgb(colour))
    return np.where(c <= .04045, c / 12.92, ((c + .055) / 1.055) ** 2.4)

def lab(rgb): # linear (3,) -> CIELAB, in which a distance of 2 is just seen
    to_xyz = [[.4124564, .3575761, .1804375], [.2126729, .7151522, .0721750],
              [.0193339, .1191920, .9503041]]
    f = np.array(to_xyz) @ rgb / [.95047, 1, 1.08883]
    x, y, z = np.where(f > .008856, np.cbrt(f), 7.787 * f + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])

def contrast(a, b): # of WCAG 2
    low, high = sorted(linear(c) @ [.2126, .7152, .0722] for c in (a, b))
    return (high + .05) / (low + .05)

def apart(colours, matrix):
    "Distance of the two colours that are hardest to tell apart"
    seen = [lab(np.clip(matrix @ linear(c), 0, 1)) for c in colours]
    return min(np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i])

@pytest.mark.parametrize('sight', SEEN)
def test_colours_stay_apart(sight):
    assert apart(COLOURS, np.array(SEEN[sight])) > 25
    assert apart(['#00aa00', '#aa5500'], np.array(SEEN['deuteranopia'])) < 25  # red and green

@pytest.mark.parametrize('paper', [WHITE, DARK])
def test_colours_and_text_are_read_on_paper(paper):
    for c in COLOURS: assert contrast(c, paper) >= 3, c
    assert contrast(style['text.color'], paper) >= 4

def test_a_plot_has_the_style_whatever_is_set_outside():
    with plt.style.context('dark_background'):
        plot_similarity(np.eye(3))
        ax = plt.gca()
        fig, grey = ax.figure, to_rgb(style['text.color'])
        assert fig.get_facecolor()[3] == 0 and to_rgb(ax.xaxis.label.get_color()) == grey
        assert {t.get_size() for t in fig.findobj(plt.Text)} == {style['font.size']}
        assert {to_rgb(a.yaxis.label.get_color()) for a in fig.axes} == {grey}
        assert plt.rcParams['axes.facecolor'] == 'black'
    plt.close(fig)

def test_labels_stand_at_their_lines_and_not_on_each_other():
    plot_curves({f'run {i}': [[.9], [.9, .9 - .001 * i]] for i in range(6)})
    ax = plt.gca()
    ax.figure.canvas.draw()
    boxes = sorted((t.get_window_extent() for t in ax.texts), key=lambda b: b.y0)
    assert len(boxes) == 6 and ax.get_legend() is None
    for low, high in zip(boxes, boxes[1:]): assert high.y0 >= low.y0 + .6 * low.height
    assert {t.get_color() for t in ax.texts} == {l.get_color() for l in ax.lines}
    plt.close()

def test_a_line_without_a_label_and_no_line_at_all_are_left_alone():
    _, ax = plt.subplots()
    label_lines(ax)
    ax.plot([0, 1])
    label_lines(ax)
    assert not ax.texts
    plt.close()

def test_long_labels_stand_below():
    plot_curves({'runs/of/a/long/name/in/a/deep/folder': [[1.]], 'short': [[.5]]})
    fig = plt.gcf()
    assert len(fig.legends) == 1 and not plt.gca().texts
    plt.close()

def test_a_timeline_has_a_colour_for_each_group_and_a_marker_for_each_way():
    keys = 'task', 'group', 'opened', 'forced'
    ways = [(0, 0, True, False), (1, 1, True, False), (2, 0, False, False), (3, 1, False, True)]
    plot_timeline([dict(zip(keys, w)) for w in ways])
    ax = plt.gca()
    marks = {(l.get_xdata()[0], l.get_marker()): l for l in ax.lines
             if len(l.get_xdata()) == 1 and l.get_marker()}
    assert {m for _, m in marks} == {'s', 'o', 'x'}
    assert marks[0, 's'].get_color() == marks[2, 'o'].get_color() != marks[3, 'x'].get_color()
    plt.close()

# -- stored figures

FIGURES = [(p.stem, i, o) for p in docs_check.notebooks() for i, c in enumerate(cells(p))
           for o in c.get('outputs', []) if 'image/png' in o.get('data', {})]

def stored(o): return Image.open(io.BytesIO(base64.b64decode(''.join(o['data']['image/png']))))

@pytest.mark.parametrize('page, place, o', FIGURES, ids=[f'{p}-{i}' for p, i, _ in FIGURES])
def test_a_stored_figure_fits_the_page_in_one_size_of_letters(page, place, o):
    if 'Image' in ''.join(o['data'].get('text/plain', '')): return  # a file that is shown
    im, shown = stored(o), o['metadata']['image/png']
    assert shown['width'] <= 740 and im.width == pytest.approx(2 * shown['width'], abs=2)
    assert im.convert('RGBA').getpixel((0, 0))[3] == 0  # transparent

def test_shrinking_keeps_the_picture_and_leaves_photographs_alone(tmp_path):
    rng = np.random.RandomState(0)
    drawn = np.zeros((200, 200, 4), np.uint8)
    drawn[20:60, 20:60] = 76, 148, 255, 255
    noise = np.dstack([rng.randint(0, 255, (200, 200, 3)), np.full((200, 200), 255)])
    def png(a):
        out = io.BytesIO()
        Image.fromarray(a.astype(np.uint8)).save(out, 'png', compress_level=1)
        return out.getvalue()
    few = shrink.shrunk(png(drawn))
    assert len(few) < len(png(drawn))
    assert np.array_equal(np.array(Image.open(io.BytesIO(few)).convert('RGBA')), drawn)
    assert shrink.shrunk(png(noise)) == png(noise)
    page = tmp_path/'a.ipynb'
    def notebook(data): return dict(cells=[dict(cell_type='code', source=[], outputs=[
        dict(output_type='display_data', metadata={}, data={'image/png': data})])])
    page.write_text(json.dumps(notebook(base64.b64encode(png(drawn)).decode())))
    shrink.shrink(page)
    assert stored(json.loads(page.read_text())['cells'][0]['outputs'][0]).mode == 'P'

# -- drawings: SVG without `transform` and `style`, so that a few lines can read what stands where

PHONE = 358  # pixels that a page has on a phone
SVG = '{http://www.w3.org/2000/svg}'
INHERITED = 'fill', 'stroke', 'font-size', 'font-weight', 'font-family', 'text-anchor', 'marker-end'

def drawn(e, outer=()):
    "(tag, attributes, text) of all that is drawn, bottom first, with what is inherited"
    own = {**{k: v for k, v in dict(outer).items() if k in INHERITED}, **e.attrib}
    tag = e.tag.removeprefix(SVG)
    if tag in ('rect', 'path', 'text'): yield tag, own, ''.join(e.itertext())
    if tag in ('svg', 'g'):
        for child in e: yield from drawn(child, own)

def points(d): # of a path, up to its first relative command; curves by their controls
    found, x, y = [], 0, 0
    for command, numbers in re.findall('([A-Za-z])([^A-Za-z]*)', d):
        if command not in 'MLHVQz': break
        ns = [float(n) for n in re.findall(r'-?[\d.]+', numbers)]
        pairs = (zip(ns, [y] * len(ns)) if command == 'H' else zip([x] * len(ns), ns)
                 if command == 'V' else zip(ns[::2], ns[1::2]))
        for x, y in pairs: found.append((x, y))
    return found

def box(tag, a): # left, top, right, bottom of what is filled; None for lines, letters, pictures
    if tag == 'text' or a.get('fill', 'none') == 'none': return None
    if tag == 'rect':
        x, y, width, height = (float(a[k]) for k in ('x', 'y', 'width', 'height'))
        return x, y, x + width, y + height
    xs, ys = zip(*points(a['d']))
    return (min(xs), min(ys), max(xs), max(ys)) if len(xs) > 2 else None

def ground(x, y, below): # box and colour of the uppermost that lies there
    for tag, a, _ in reversed(below):
        if (b := box(tag, a)) and b[0] <= x <= b[2] and b[1] <= y <= b[3]: return b, a['fill']
    return None, None

DRAWINGS = sorted((root/'nbs/images').glob('*.svg'))
drawings = pytest.mark.parametrize('path', DRAWINGS, ids=[p.stem for p in DRAWINGS])

def test_there_are_drawings(): assert {'method', 'ham', 'run'} <= {p.stem for p in DRAWINGS}

@drawings
def test_a_drawing_says_what_it_is_and_asks_nobody(path):
    svg = ElementTree.parse(path).getroot()
    title, desc = (svg.find(SVG + t) for t in ('title', 'desc'))
    assert title.text and desc.text and svg.get('role') == 'img'
    assert svg.get('aria-labelledby') == f'{title.get("id")} {desc.get("id")}'
    left, top, width, height = map(float, svg.get('viewBox').split())
    assert (left, top) == (0, 0) and 320 <= width <= 480
    assert float(svg.get('height')) * width == pytest.approx(float(svg.get('width')) * height)
    for e in svg.iter():
        assert e.tag.removeprefix(SVG) in ('svg', 'title', 'desc', 'defs', 'marker', 'g', 'path',
                                           'rect', 'text'), e.tag  # no script, no style, no image
        for key, value in e.attrib.items():
            assert not key.startswith('on') and 'href' not in key and key != 'transform', key
            assert ':' not in value or e is title or e is desc, value
            assert all(u.startswith('#') for u in re.findall(r'url\((.*?)\)', value)), value

@drawings
def test_a_drawing_is_read_on_both_papers_and_on_a_phone(path):
    svg = ElementTree.parse(path).getroot()
    _, _, width, height = map(float, svg.get('viewBox').split())
    marks = list(drawn(svg))
    for i, (tag, a, text) in enumerate(marks):
        if tag != 'text':
            if a.get('fill', 'none') != 'none': # a line crosses grounds
                b = box(tag, a)
                middle = ((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) if b else points(a['d'])[0]
                colour = ground(*middle, marks[:i])[1]
                papers = [colour] if colour else [WHITE, DARK]
                assert all(contrast(a['fill'], c) >= 3 for c in papers), a
            continue
        x, y, size = float(a['x']), float(a['y']), float(a['font-size'])
        assert size * PHONE / width >= 11 and 'system-ui' in a['font-family'], text
        bold = '-Bold' if a.get('font-weight') == 'bold' else ''  # DejaVu's letters are wide
        font = ImageFont.truetype(f'{get_data_path()}/fonts/ttf/DejaVuSans{bold}.ttf', 10 * size)
        room = font.getlength(text) / 10
        left = x - room / 2 if a.get('text-anchor') == 'middle' else x
        (l, t, r, b), colour = ground(left + room / 2, y - size / 3, marks[:i])
        assert contrast(a['fill'], colour) >= 4.5, text
        assert l + 7 <= left <= r - 7 - room and t + 5 + .75 * size <= y <= b - 7, text
        assert 0 <= l and 0 <= t and r <= width and b <= height

@drawings
def test_arrows_end_at_a_box(path):
    svg = ElementTree.parse(path).getroot()
    heads = {f'url(#{m.get("id")})': float(m.get('markerWidth')) for m in svg.iter(SVG + 'marker')}
    marks = list(drawn(svg))
    edges = [b for tag, a, _ in marks if (b := box(tag, a))]
    arrows = [a for _, a, _ in marks if 'marker-end' in a]
    assert arrows
    for a in arrows:
        (x0, y0), (x, y) = points(a['d'])[-2:]
        long = heads[a['marker-end']]
        x, y = x + long * np.sign(x - x0), y + long * np.sign(y - y0)
        assert any(l < x < r and y == t or t < y < b and x == r for l, t, r, b in edges), a['d']

# -- in Jupyter

def test_a_kernel_shows_every_figure_whichever_comes_first():
    "The first figure loads the kernel's backend; loaded within a style it was undone with it"
    from nbclient import NotebookClient
    from nbformat import v4
    cells = ['from ham_nb.images import show_images, toy\nfrom ham_nb.plots import plot_similarity',
             'show_images(toy(per_class=2)[0].x[:2])',
             'plot_similarity([[1., 0.], [0., 1.]])',
             'import matplotlib.pyplot as plt\nplt.plot([1, 2]);']
    env = {k: v for k, v in os.environ.items() if k != 'MPLBACKEND'}  # which conftest.py sets
    def shown(*sources):
        nb = v4.new_notebook(cells=[v4.new_code_cell(s) for s in sources])
        NotebookClient(nb, timeout=120, kernel_name='python3').execute(env=env)
        return [any('image/png' in o.get('data', {}) for o in c.outputs) for c in nb.cells]
    imports, images, matrix, plain = cells
    assert shown(imports, images, matrix, plain) == [False, True, True, True]
    assert shown(imports, matrix, plain) == [False, True, True]
