"Benchmarks by name: from a server that stands in for the authors' sites to images in memory"
import hashlib
import io
import pickle
import re
import socket
import tarfile
import threading
import urllib.request
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR100

from ham_nb import datasets, download as downloads, folders
from ham_nb.images import Augment, Images, batches, digits, for_testing, split, toy
from ham_nb.stream import SOURCES, TaskStream
from ham_nb.folders import folder, read_image
from ham_nb.download import download, unpack
from ham_nb.datasets import ARCHIVES, cifar100, cub200, imagenet_r, tiny_imagenet

def md5(content): return hashlib.md5(content).hexdigest()
def names(path): return sorted(p.name for p in path.iterdir()) if path.exists() else []
def everything(path): return sorted(p.relative_to(path).as_posix() for p in path.rglob('*'))
def one_sentence(e): return '\n' not in str(e.value) and len(str(e.value)) < 500

# -- a server

class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args): pass
    def do_GET(self):
        s, asked = self.server, self.headers.get('Range')
        name = self.path.rsplit('/', 1)[-1]
        s.requests.append((name, asked))
        if name == 'sleepy.bin': return s.awake.wait(10)
        if name not in s.files: return self.send_error(404)
        content, first = s.files[name], 0
        if asked and s.ranges:
            first = int(re.fullmatch(r'bytes=(\d+)-', asked)[1])
            if first >= len(content): return self.send_error(416)
            self.send_response(206)
            self.send_header('Content-Range', f'bytes {first}-{len(content) - 1}/{len(content)}')
        else: self.send_response(200)
        rest = content[first:]
        if s.tell_length: self.send_header('Content-Length', str(len(rest)))
        self.end_headers()
        body = rest[:s.cut_after]  # a connection that breaks
        s.sent.append(len(body))  # before the client can have all of it and look
        self.wfile.write(body)

@pytest.fixture
def server():
    s = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    s.files, s.requests, s.sent, s.ranges, s.tell_length, s.cut_after = {}, [], [], True, True, None
    s.awake, s.url = threading.Event(), f'http://127.0.0.1:{s.server_port}'
    thread = threading.Thread(target=s.serve_forever, kwargs=dict(poll_interval=.02), daemon=True)
    thread.start()
    yield s
    s.awake.set()
    s.shutdown()
    s.server_close()
    thread.join()

CONTENT = np.random.RandomState(0).bytes(1_000_003)

@pytest.fixture
def fetch(server, tmp_path):
    "Downloads CONTENT; keywords replace what is expected of it"
    server.files['a.bin'] = CONTENT
    expected = dict(url=f'{server.url}/x/a.bin', folder=tmp_path/'new'/'data', size=len(CONTENT),
                    md5=md5(CONTENT), progress=False)
    def call(**other): return download(**{**expected, **other})
    call.folder = expected['folder']
    return call

# -- download

@pytest.mark.parametrize('size', [len(CONTENT), None])
@pytest.mark.parametrize('tell_length', [True, False])
def test_download(fetch, server, size, tell_length):
    server.tell_length = tell_length
    path = fetch(size=size)
    assert path == fetch.folder/'a.bin' and path.read_bytes() == CONTENT
    assert names(fetch.folder) == ['a.bin']

def test_a_query_is_no_part_of_the_name(fetch, server):
    server.files['a.bin?download=1'] = CONTENT
    assert fetch(url=f'{server.url}/a.bin?download=1').name == 'a.bin'

def test_a_second_call_asks_the_server_nothing(fetch, server):
    fetch(), fetch()
    assert server.requests == [('a.bin', None)]

@pytest.mark.parametrize('other', [CONTENT[:-1], CONTENT[:-1] + b'?'],
                         ids=['another size', 'another checksum'])
def test_a_file_that_is_not_the_right_one_is_replaced(fetch, server, other):
    fetch.folder.mkdir(parents=True)
    (fetch.folder/'a.bin').write_bytes(other)
    assert fetch().read_bytes() == CONTENT and names(fetch.folder) == ['a.bin']

@pytest.mark.parametrize('size', [len(CONTENT), None])
def test_an_interrupted_download_goes_on(fetch, server, size):
    server.cut_after = 300_000
    words = 'a.bin.*(300,000 of 1,000,003|IncompleteRead).*try again'
    with pytest.raises(ValueError, match=words) as e:
        fetch(size=size)
    assert one_sentence(e) and names(fetch.folder) == ['a.bin.part']
    have = (fetch.folder/'a.bin.part').stat().st_size
    assert have == 300_000
    server.cut_after = None
    assert fetch(size=size).read_bytes() == CONTENT and names(fetch.folder) == ['a.bin']
    assert server.requests == [('a.bin', None), ('a.bin', f'bytes={have}-')]
    assert server.sent == [have, len(CONTENT) - have]

def test_a_connection_that_breaks_without_having_told_the_length(fetch, server):
    server.cut_after, server.tell_length = 300_000, False
    with pytest.raises(ValueError, match='300,000 of 1,000,003'): fetch()
    server.cut_after = None
    assert fetch().read_bytes() == CONTENT and server.sent == [300_000, 700_003]

def test_a_server_without_ranges_starts_anew(fetch, server):
    server.ranges = False
    fetch.folder.mkdir(parents=True)
    (fetch.folder/'a.bin.part').write_bytes(b'something else')
    assert fetch().read_bytes() == CONTENT
    assert server.requests == [('a.bin', 'bytes=14-')] and server.sent == [len(CONTENT)]

@pytest.mark.parametrize('size', [len(CONTENT), None])
def test_all_had_arrived_but_the_name(fetch, server, size):
    fetch.folder.mkdir(parents=True)
    (fetch.folder/'a.bin.part').write_bytes(CONTENT)
    assert fetch(size=size).read_bytes() == CONTENT and server.sent == []
    # without a size the server is asked, and has nothing left to send
    assert len(server.requests) == (size is None)

def test_more_had_arrived_than_there_is(fetch, server):
    fetch.folder.mkdir(parents=True)
    (fetch.folder/'a.bin.part').write_bytes(CONTENT + b'more')
    assert fetch().read_bytes() == CONTENT and server.requests == [('a.bin', None)]

@pytest.mark.parametrize('wrong, words', [
    (dict(md5='0' * 32), f'md5 {md5(CONTENT)} instead of {"0" * 32}'),
    (dict(size=len(CONTENT) - 1), '1,000,003 bytes instead of 1,000,002'),
    (dict(size=len(CONTENT) + 1), '1,000,003 bytes instead of 1,000,004'),
], ids=['checksum', 'too long', 'too short'])
def test_a_wrong_file_is_refused_and_removed(fetch, wrong, words):
    with pytest.raises(ValueError, match=words) as e: fetch(**wrong)
    assert one_sentence(e) and '/a.bin' in str(e.value) and names(fetch.folder) == []

def test_what_does_not_continue_the_file_is_refused_and_removed(fetch, server):
    fetch.folder.mkdir(parents=True)
    (fetch.folder/'a.bin.part').write_bytes(b'of another file')
    with pytest.raises(ValueError, match='instead of'): fetch()
    assert names(fetch.folder) == []
    assert fetch().read_bytes() == CONTENT

def test_no_network(tmp_path):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        url = f'http://127.0.0.1:{s.getsockname()[1]}/a.bin'  # nobody listens
        with pytest.raises(ValueError, match='refused') as e:
            download(url, tmp_path/'data', 3, '0' * 32)
    assert one_sentence(e) and url in str(e.value) and repr(str(tmp_path/'data')) in str(e.value)

def test_not_found(fetch, server):
    with pytest.raises(ValueError, match='404') as e: fetch(url=f'{server.url}/b.bin')
    assert one_sentence(e) and 'b.bin' in str(e.value) and names(fetch.folder) == []

def test_a_server_that_says_nothing(fetch, server, monkeypatch):
    monkeypatch.setattr(downloads, '_TIMEOUT', .3)
    with pytest.raises(ValueError, match='timed out'): fetch(url=f'{server.url}/sleepy.bin')

def test_a_folder_that_cannot_be_made(fetch, tmp_path):
    (tmp_path/'file').write_text('x')
    with pytest.raises(ValueError, match='file') as e: fetch(folder=tmp_path/'file'/'data')
    assert one_sentence(e)

def test_a_bar_is_shown_where_it_is_asked_for(fetch, capsys):
    fetch(progress=True)
    assert 'a.bin' in capsys.readouterr().err

def test_no_bar_in_a_log(fetch, capsys):
    fetch(progress=None)
    assert capsys.readouterr().err == ''

# -- unpack

def tar(path, members, mode='w'):
    "A tar of (name, content, what else its header says)"
    with tarfile.open(path, mode) as t:
        for name, content, more in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for k, v in more.items(): setattr(info, k, v)
            t.addfile(info, io.BytesIO(content))
    return path

def zipped(path, members):
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z:
        for name, content, more in members:
            info = zipfile.ZipInfo(name)
            for k, v in more.items(): setattr(info, k, v)
            z.writestr(info, content)
    return path

GOOD = [('set/a/1.txt', b'one', {}), ('./set/b/2.txt', b'two', {}),
        ('beside.txt', b'not wanted', {})]
plain = [('good.tar', 'w', tar), ('good.tar.gz', 'w:gz', tar), ('good.tgz', 'w:gz', tar),
         ('good.zip', None, zipped)]

@pytest.mark.parametrize('name, mode, make', plain, ids=[p[0] for p in plain])
def test_unpack(tmp_path, name, mode, make):
    archive = make(tmp_path/name, GOOD, *([mode] if mode else []))
    assert unpack(archive, tmp_path/'set') == tmp_path/'set'
    assert everything(tmp_path/'set') == ['a', 'a/1.txt', 'b', 'b/2.txt']
    assert (tmp_path/'set'/'b'/'2.txt').read_bytes() == b'two'
    assert names(tmp_path) == sorted([name, 'set'])
    archive.unlink()
    assert unpack(archive, tmp_path/'set') == tmp_path/'set'  # there already

def test_unpack_with_a_python_without_filters(tmp_path, monkeypatch):
    monkeypatch.delattr(tarfile, 'data_filter', raising=False)
    folder = unpack(tar(tmp_path/'a.tar', [('set/x', b'1', dict(mode=0o6777))]), tmp_path/'set')
    assert (folder/'x').read_bytes() == b'1' and (folder/'x').stat().st_mode & 0o7777 == 0o644

SYMLINK, HARDLINK = tarfile.SYMTYPE, tarfile.LNKTYPE
DEVICE, PIPE = tarfile.CHRTYPE, tarfile.FIFOTYPE
evil = { # members that follow a good one
    'above': ('../x', b'x', {}),
    'above, within': ('set/../../x', b'x', {}),
    'absolute': ('{}/x', b'x', {}),
    'symlink outside': ('set/x', b'', dict(type=SYMLINK, linkname='../../x')),
    'symlink, absolute': ('set/x', b'', dict(type=SYMLINK, linkname='{}/x')),
    'symlink inside': ('set/x', b'', dict(type=SYMLINK, linkname='a')),
    'hardlink outside': ('set/x', b'', dict(type=HARDLINK, linkname='../secret')),
    'hardlink, absolute': ('set/x', b'', dict(type=HARDLINK, linkname='{}/secret')),
    'device': ('set/x', b'', dict(type=DEVICE, devmajor=1, devminor=3)),
    'pipe': ('set/x', b'', dict(type=PIPE)),
    'drive': ('C:/x', b'x', {}),
    'drive, relative': ('C:x', b'x', {}),
    'backslashes': ('set\\..\\..\\x', b'x', {}),
    'network share': ('\\\\host\\share\\x', b'x', {}),
    'outside the wanted folder': ('other/../../x', b'x', {}),
}
evil_zip = {k: v for k, v in evil.items() if 'type' not in v[2]} | {
    'symlink': ('set/x', b'../../secret', dict(create_system=3, external_attr=0o120777 << 16)),
    'device': ('set/x', b'', dict(create_system=3, external_attr=0o020666 << 16)),
}
cases = [(tar, 'a.tar', k, v) for k, v in evil.items()]
cases += [(zipped, 'a.zip', k, v) for k, v in evil_zip.items()]

@pytest.mark.parametrize('make, file, case, member', cases,
                         ids=[f'{c[1][2:]}: {c[2]}' for c in cases])
def test_evil_members(tmp_path, make, file, case, member):
    inside = tmp_path/'deep'/'er'
    inside.mkdir(parents=True)
    (tmp_path/'deep'/'secret').write_text('secret')
    def at(o): return o.replace('{}', str(tmp_path)) if isinstance(o, str) else o
    name, content, more = member
    make(inside/file, [GOOD[0], (at(name), content, {k: at(v) for k, v in more.items()}), GOOD[1]])
    before = everything(tmp_path)
    with pytest.raises(ValueError, match='outside its folder|neither a file nor a folder') as e:
        unpack(inside/file, inside/'set')
    assert one_sentence(e) and file in str(e.value) and repr(at(name)) in str(e.value)
    assert everything(tmp_path) == before

@pytest.mark.parametrize('name, mode, make', plain[1:], ids=[p[0] for p in plain[1:]])
@pytest.mark.parametrize('keep', [0, .3, .9])
def test_a_truncated_archive(tmp_path, name, mode, make, keep):
    content = np.random.RandomState(0).bytes(50_000)
    members = [('set/a', content, {}), ('set/b', content, {})]
    archive = make(tmp_path/name, members, *([mode] if mode else []))
    archive.write_bytes(archive.read_bytes()[:int(keep * archive.stat().st_size)])
    with pytest.raises(ValueError, match='Cannot unpack') as e: unpack(archive, tmp_path/'set')
    assert one_sentence(e) and name in str(e.value) and names(tmp_path) == [name]

@pytest.mark.parametrize('name, mode, make', plain[1:], ids=[p[0] for p in plain[1:]])
def test_a_damaged_archive(tmp_path, name, mode, make):
    content = np.random.RandomState(0).bytes(50_000)
    archive = make(tmp_path/name, [('set/a', content, {})], *([mode] if mode else []))
    raw = bytearray(archive.read_bytes())
    raw[20_000:20_100] = bytes(100)
    archive.write_bytes(raw)
    with pytest.raises(ValueError, match='Cannot unpack'): unpack(archive, tmp_path/'set')
    assert names(tmp_path) == [name]

def test_an_archive_without_the_folder(tmp_path):
    with pytest.raises(ValueError, match="holds no folder 'other'"):
        unpack(tar(tmp_path/'a.tar', GOOD), tmp_path/'other')
    with pytest.raises(ValueError, match="holds no folder 'beside.txt'"):
        unpack(tmp_path/'a.tar', tmp_path/'beside.txt')
    assert names(tmp_path) == ['a.tar']

def test_no_archive(tmp_path):
    with pytest.raises(ValueError, match='none.tar'): unpack(tmp_path/'none.tar', tmp_path/'set')

@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError(28, 'No space left on device')])
def test_an_interrupted_extraction_is_not_taken_for_complete(tmp_path, monkeypatch, error):
    archive, extract = tar(tmp_path/'a.tar', GOOD), downloads._extract
    def stops(archive, members, to):
        extract(archive, members[:1], to)
        raise error
    with monkeypatch.context() as m:
        m.setattr(downloads, '_extract', stops)
        with pytest.raises(ValueError if isinstance(error, OSError) else KeyboardInterrupt):
            unpack(archive, tmp_path/'set')
    assert names(tmp_path) == ['a.tar']
    assert everything(unpack(archive, tmp_path/'set')) == ['a', 'a/1.txt', 'b', 'b/2.txt']

def test_a_process_that_was_killed_leaves_nothing_that_counts(tmp_path):
    (tmp_path/'.set-killed'/'set'/'a').mkdir(parents=True)
    folder = unpack(tar(tmp_path/'a.tar', GOOD), tmp_path/'set')
    assert everything(folder) == ['a', 'a/1.txt', 'b', 'b/2.txt']

# -- the four sets, small, in their true layout

def jpeg(colour, size=(12, 10), mode='RGB'):
    out = io.BytesIO()
    Image.new(mode, size, colour).save(out, 'JPEG', quality=95)
    return out.getvalue()

def red(i): return jpeg((200, i, 0))
def lines(*rows): return ''.join(f'{r}\n' for r in rows).encode()

def make_cub(path):
    "Two species with 3 + 2 images, numbered across both, the split as the authors write it"
    black, laysan = '001.Black_footed_Albatross', '002.Laysan_Albatross'
    birds = [(black, 'Black_Footed_Albatross_0046_18.jpg', 0), (black, 'B_0009_34.jpg', 1),
             (black, 'B_0002_55.jpg', 1), (laysan, 'L_0001_545.jpg', 1),
             (laysan, 'L_2.jpg', 0)]
    rows = [(i, *bird) for i, bird in enumerate(birds, 1)]
    files = {'images.txt': [f'{i} {c}/{f}' for i, c, f, _ in rows],
             'image_class_labels.txt': [f'{i} {int(c[:3])}' for i, c, *_ in rows],
             'train_test_split.txt': [f'{i} {t}' for i, *_, t in rows],
             'classes.txt': ['1 001.Black_footed_Albatross', '2 002.Laysan_Albatross'],
             'README': ['CUB']}
    members = [('attributes.txt', b'1 has_bill_shape::curved\n', {})]
    members += [(f'CUB_200_2011/{f}', lines(*rows), {}) for f, rows in files.items()]
    members += [(f'CUB_200_2011/images/{c}/{f}', red(10 * (i - 1)), {}) for i, c, f, _ in rows]
    tar(path, members, 'w:gz')

def make_tiny(path):
    "Three classes of four images and boxes; validation images in one folder, tests without labels"
    ids = ['n02124075', 'n01443537', 'n09999999']  # the authors' order is not the sorted one
    words = 'n00001740\tentity', 'n01443537\tgoldfish, Carassius auratus', 'n02124075\tEgyptian cat'
    members = [('wnids.txt', lines(*ids)), ('words.txt', lines(*words))]
    for c in ids:
        boxes = lines(*(f'{c}_{i}.JPEG\t0\t0\t9\t9' for i in range(4)))
        members += [(f'train/{c}/{c}_boxes.txt', boxes)]
        grey_first = [jpeg(128, mode='L'), *(red(i) for i in range(1, 4))]
        members += [(f'train/{c}/images/{c}_{i}.JPEG', im) for i, im in enumerate(grey_first)]
    val = [ids[1], ids[0], ids[2], ids[1]]
    table = lines(*(f'val_{i}.JPEG\t{c}\t0\t32\t44\t62' for i, c in enumerate(val)))
    members += [('val/val_annotations.txt', table), ('test/images/test_0.JPEG', red(0))]
    members += [(f'val/images/val_{i}.JPEG', red(50 * i)) for i in range(4)]
    zipped(path, [(f'tiny-imagenet-200/{f}', content, {}) for f, content in members])

def make_imagenet_r(path):
    "Two classes of 5 and 10 images and the authors' README"
    classes = 'n01443537 goldfish', 'n01484850 great_white_shark'
    readme = 'ImageNet-R', '', 'The classes', '', *classes
    members = [('README.txt', lines(*readme))]
    for c, n in (('n01443537', 5), ('n01484850', 10)):
        members += [(f'{c}/art_{i}.jpg', red(20 * i)) for i in range(n)]
    top = ('imagenet-r', b'', dict(type=tarfile.DIRTYPE, mode=0o755))
    tar(path, [top] + [(f'imagenet-r/{f}', content, {}) for f, content in members])

CIFAR = { # as torchvision reads them: flat rows, red plane first
    'train': {'filenames': [f'{i}.png' for i in range(6)], 'fine_labels': [0, 1, 2, 0, 1, 2],
              'coarse_labels': [0] * 6,
              'data': np.arange(6 * 3072).reshape(6, 3072).astype(np.uint8)},
    'test': {'fine_labels': [2, 1, 0], 'data': np.full((3, 3072), 7, np.uint8)},
    'meta': {'fine_label_names': ['apple', 'aquarium_fish', 'baby'],
             'coarse_label_names': ['fruit']},
}
def cifar_pickles(): return {f: pickle.dumps(o, protocol=2) for f, o in CIFAR.items()}
def make_cifar(path):
    members = [(f'cifar-100-python/{f}', content, {}) for f, content in cifar_pickles().items()]
    tar(path, members, 'w:gz')

makers = { # function, classes, train, test
    'cifar100': (make_cifar, 3, 6, 3), 'cub200': (make_cub, 2, 3, 2),
    'tiny_imagenet': (make_tiny, 3, 12, 4), 'imagenet_r': (make_imagenet_r, 2, 12, 3),
}
small = dict(cifar100={}, cub200=dict(size=8), tiny_imagenet=dict(size=8), imagenet_r=dict(size=8))
each_set = pytest.mark.parametrize('name', makers)

@pytest.fixture
def site(server, tmp_path, monkeypatch):
    "Serves the small archives; ARCHIVES and torchvision's checksums are those of these files"
    (tmp_path/'site').mkdir()
    for name, (make, classes, train, test) in makers.items():
        file = ARCHIVES[name].url.rsplit('/', 1)[-1]
        make(tmp_path/'site'/file)
        content = server.files[file] = (tmp_path/'site'/file).read_bytes()
        expected = dict(url=f'{server.url}/{file}', md5=md5(content), bytes=len(content),
                        classes=classes, train=train, test=test)
        monkeypatch.setitem(ARCHIVES, name, replace(ARCHIVES[name], **expected))
    sums = {f: md5(content) for f, content in cifar_pickles().items()}
    monkeypatch.setattr(CIFAR100, 'train_list', [['train', sums['train']]])
    monkeypatch.setattr(CIFAR100, 'test_list', [['test', sums['test']]])
    monkeypatch.setattr(CIFAR100, 'meta', {**CIFAR100.meta, 'md5': sums['meta']})
    return server

def read(name, root, **kwargs): return SOURCES[name](root, **{**small[name], **kwargs})

@each_set
def test_the_published_archives(name):
    a = ARCHIVES[name]
    assert a.url.startswith('http') and re.fullmatch('[0-9a-f]{32}', a.md5) and a.bytes > 10**8
    assert name in SOURCES
    assert a.classes in (100, 200) and a.train > a.test

@each_set
def test_nothing_is_downloaded_unasked(name, site, tmp_path):
    with pytest.raises(ValueError, match='download=True .*--download') as e:
        read(name, tmp_path/'data')
    a = ARCHIVES[name]
    assert one_sentence(e) and a.url in str(e.value) and a.title in str(e.value)
    assert repr(str(tmp_path/'data'/a.folder)) in str(e.value)
    assert site.requests == [] and not (tmp_path/'data').exists()

@each_set
def test_from_url_to_images(name, site, tmp_path):
    train, test = read(name, tmp_path/'data', download=True)
    a = ARCHIVES[name]
    assert (len(train), len(test), len(train.classes)) == (a.train, a.test, a.classes)
    assert train.classes == test.classes
    side = 32 if name == 'cifar100' else 8
    assert train.x.shape[1:] == test.x.shape[1:] == (3, side, side) and train.x.dtype == torch.uint8
    assert train.y.dtype == torch.int64
    assert set(train.y.tolist()) == set(range(a.classes)) and train.flip
    assert names(tmp_path/'data') == sorted([a.folder, a.url.rsplit('/', 1)[-1]])

@each_set
def test_the_second_call_downloads_nothing(name, site, tmp_path, monkeypatch):
    first, _ = read(name, tmp_path, download=True)
    assert len(site.requests) == 1
    (tmp_path/ARCHIVES[name].url.rsplit('/', 1)[-1]).unlink()
    monkeypatch.setattr(urllib.request, 'urlopen', None)
    for asked in True, False: assert torch.equal(read(name, tmp_path, download=asked)[0].x, first.x)

@each_set
def test_an_archive_put_there_by_hand_is_unpacked(name, site, tmp_path):
    file = ARCHIVES[name].url.rsplit('/', 1)[-1]
    (tmp_path/file).write_bytes(site.files[file])
    assert len(read(name, tmp_path)[0]) == ARCHIVES[name].train and site.requests == []

@each_set
def test_half_an_archive_put_there_by_hand_is_refused(name, site, tmp_path):
    file = ARCHIVES[name].url.rsplit('/', 1)[-1]
    (tmp_path/file).write_bytes(site.files[file][:-9])
    n = len(site.files[file])
    with pytest.raises(ValueError, match=f'{n - 9:,} bytes instead of {n:,}') as e:
        read(name, tmp_path)
    assert one_sentence(e) and file in str(e.value)
    assert names(tmp_path) == sorted([file, 'site'])  # it is the user's, so it stays
    assert len(read(name, tmp_path, download=True)[0]) == ARCHIVES[name].train

@each_set
def test_an_interrupted_benchmark_goes_on(name, site, tmp_path):
    file = ARCHIVES[name].url.rsplit('/', 1)[-1]
    site.cut_after = half = len(site.files[file]) // 2
    with pytest.raises(ValueError, match=file): read(name, tmp_path, download=True)
    site.cut_after = None
    assert len(read(name, tmp_path, download=True)[0]) == ARCHIVES[name].train
    assert site.sent == [half, len(site.files[file]) - half]

@each_set
def test_a_stream_by_name(name, site, tmp_path):
    stream = TaskStream.named(name, tmp_path, tasks=2, seed=1993, limit_per_class=1,
                              download=True, **small[name])
    assert stream.name == name and len(stream) == 2
    assert sum(n for n, _ in stream.sizes()) == ARCHIVES[name].classes
    with pytest.raises(ValueError, match=f"'{name}' needs a folder"):
        TaskStream.named(name, download=True)

@pytest.mark.parametrize('name', ['digits', 'toy', 'folder'])
def test_nothing_to_download(name, tmp_path):
    with pytest.raises(ValueError, match=f"nothing to download for '{name}'"):
        TaskStream.named(name, tmp_path, download=True)

# -- what each of them says

def test_cifar100(site, tmp_path):
    train, test = cifar100(tmp_path, download=True)
    assert train.y.tolist() == [0, 1, 2, 0, 1, 2] and test.y.tolist() == [2, 1, 0]
    assert train.classes == ['apple', 'aquarium_fish', 'baby']
    assert torch.equal(train.x.flatten(1), torch.from_numpy(CIFAR['train']['data']))
    assert train.x.is_contiguous()

@pytest.mark.parametrize('damage', [lambda f: f.unlink(),
                                    lambda f: f.write_bytes(f.read_bytes() + b'.')])
@pytest.mark.parametrize('file', ['train', 'test', 'meta'])
def test_cifar100_damaged(site, tmp_path, file, damage):
    cifar100(tmp_path, download=True)
    damage(tmp_path/'cifar-100-python'/file)
    with pytest.raises(ValueError, match='CIFAR-100 at .*cifar-100-python.*not complete') as e:
        cifar100(tmp_path, download=True)
    assert one_sentence(e)

def test_cub200_has_the_split_and_labels_of_its_authors(site, tmp_path):
    train, test = cub200(tmp_path, size=8, download=True)
    assert train.classes == ['Black footed Albatross', 'Laysan Albatross']
    assert train.y.tolist() == [0, 0, 1] and test.y.tolist() == [0, 1]
    def image(images): return (images.x[:, 1].float().mean((1, 2)) / 10).round().int().tolist()
    assert image(train) == [1, 2, 3] and image(test) == [0, 4]

@pytest.mark.parametrize('table', ['images', 'image_class_labels', 'train_test_split', 'classes'])
def test_cub200_with_a_short_or_missing_table(site, tmp_path, table):
    cub200(tmp_path, size=8, download=True)
    file = tmp_path/'CUB_200_2011'/f'{table}.txt'
    file.write_text(''.join(file.read_text().splitlines(True)[:-1]))
    with pytest.raises(ValueError, match='disagree on'): cub200(tmp_path, size=8)
    file.unlink()
    with pytest.raises(ValueError, match=f'{table}.txt'): cub200(tmp_path, size=8)

def test_tiny_imagenet_is_tested_on_its_validation_images(site, tmp_path):
    train, test = tiny_imagenet(tmp_path, size=8, download=True)
    # sorted by id; an id without a name stays
    assert train.classes == ['goldfish', 'Egyptian cat', 'n09999999']
    assert train.y.tolist() == [0] * 4 + [1] * 4 + [2] * 4 and test.y.tolist() == [0, 1, 2, 0]
    assert (test.x[:, 1].float().mean((1, 2)) / 50).round().int().tolist() == [0, 1, 2, 3]
    assert train.x[0].float().mean((1, 2)).tolist() == [128] * 3  # a grey file

def test_tiny_imagenet_without_its_tables(site, tmp_path):
    tiny_imagenet(tmp_path, size=8, download=True)
    at = tmp_path/'tiny-imagenet-200'
    (at/'words.txt').unlink()
    assert tiny_imagenet(tmp_path, size=8)[0].classes == ['n01443537', 'n02124075', 'n09999999']
    table = at/'val'/'val_annotations.txt'
    table.write_text(table.read_text().replace('n09999999', 'n00000001'))
    with pytest.raises(ValueError, match="'n00000001', which has no folder"):
        tiny_imagenet(tmp_path, size=8)
    table.unlink()
    with pytest.raises(ValueError, match='val_annotations.txt'): tiny_imagenet(tmp_path, size=8)

def test_imagenet_r_gives_a_fifth_of_each_class(site, tmp_path):
    train, test = imagenet_r(tmp_path, size=8, download=True)
    assert train.classes == ['goldfish', 'great white shark']
    assert train.y.bincount().tolist() == [4, 8] and test.y.bincount().tolist() == [1, 2]

def test_imagenet_r_is_split_as_a_folder_is(site, tmp_path):
    "The same files in the same order, so that the split of one is the split of the other"
    named = imagenet_r(tmp_path, size=8, download=True)
    plainly = folder(tmp_path/'imagenet-r', size=8, test_share=.2, seed=0)
    for ours, theirs in zip(named, plainly):
        assert torch.equal(ours.x, theirs.x) and torch.equal(ours.y, theirs.y)

def test_files_listed_apart_are_split_as_images_are(tmp_path):
    for c, n in dict(a=4, b=9).items():
        (tmp_path/c).mkdir()
        for i in range(n): (tmp_path/c/f'{i}.jpg').write_bytes(red(20 * i))
    paths, y, classes = folders.list_classes(tmp_path)
    whole, = folders.read_files([(paths, y)], classes, 8)
    for ours, theirs in zip(folder(tmp_path, size=8, seed=3), split(whole, seed=3)):
        assert torch.equal(ours.x, theirs.x) and torch.equal(ours.y, theirs.y)

def test_names_that_two_classes_share(tmp_path):
    (tmp_path/'words').write_text('n1\tcrane\nn2\tcrane, lifting device\n')
    found = datasets._names(['n1', 'n2', 'n3'], tmp_path/'words')
    assert found == ['crane (n1)', 'crane (n2)', 'n3']

@pytest.mark.parametrize('name, file', [
    ('cub200', 'CUB_200_2011/images/002.Laysan_Albatross/L_2.jpg'),
    ('tiny_imagenet', 'tiny-imagenet-200/train/n01443537/images/n01443537_2.JPEG'),
    ('tiny_imagenet', 'tiny-imagenet-200/val/images/val_2.JPEG'),
    ('imagenet_r', 'imagenet-r/n01443537/art_2.jpg'),
])
def test_a_missing_image_is_noticed(site, tmp_path, name, file):
    read(name, tmp_path, download=True)
    (tmp_path/file).unlink()
    with pytest.raises(ValueError, match=f'expected|{file.rsplit("/")[-1]}') as e:
        read(name, tmp_path)
    assert one_sentence(e)

# -- memory

def has_memory(monkeypatch, n):
    monkeypatch.setattr(folders.psutil, 'virtual_memory', lambda: SimpleNamespace(available=n))

@pytest.mark.parametrize('name', ['cub200', 'tiny_imagenet', 'imagenet_r'])
def test_what_does_not_fit_into_memory_is_refused_unread(site, tmp_path, monkeypatch, name):
    read(name, tmp_path, download=True)
    a = ARCHIVES[name]
    need = (a.train + a.test) * 3 * 10_000**2
    monkeypatch.setattr(folders, 'read_image', None)
    has_memory(monkeypatch, need - 10**7)
    words = f'{need / 1e9:.2f} GB of memory, {need / 1e9 - .01:.2f} GB .*lower size'
    with pytest.raises(ValueError, match=words) as e: read(name, tmp_path, size=10_000)
    assert one_sentence(e)

def test_what_just_fits_is_read(tmp_path, monkeypatch):
    for c in 'ab':
        (tmp_path/c).mkdir()
        for i in range(2): (tmp_path/c/f'{i}.jpg').write_bytes(red(i))
    has_memory(monkeypatch, 4 * 3 * 8 * 8)
    assert len(folder(tmp_path, size=8)[0]) == 2
    with pytest.raises(ValueError, match='4 images of 9 x 9 pixels'): folder(tmp_path, size=9)

def test_hidden_files_are_no_images(tmp_path):
    "macOS leaves `._photo.jpg` beside each photo that it copies"
    for c in 'ab':
        (tmp_path/c).mkdir()
        for i in range(2): (tmp_path/c/f'{i}.jpg').write_bytes(red(i))
        (tmp_path/c/'._0.jpg').write_bytes(b'no image')
    assert [len(part) for part in folder(tmp_path, size=8)] == [2, 2]

def test_photographs_are_mirrored_unless_told_not_to(tmp_path):
    for c in ('a', 'b'):
        (tmp_path/c).mkdir()
        for i in range(2): Image.new('RGB', (8, 8), 'red').save(tmp_path/c/f'{i}.png')
    def stream(**o): return TaskStream.from_folder(tmp_path, tasks=2, size=8, **o)
    assert stream().train(0).flip and not stream(flip=False).train(0).flip
    assert not TaskStream.named('digits').train(0).flip

@pytest.mark.parametrize('h, w', [(8, 32), (64, 8)])
def test_images_that_are_not_square_get_no_border(h, w):
    x = torch.full((2, 3, h, w), 255, dtype=torch.uint8)
    assert (Augment(zoom=(1., 1.))(x, 32, torch.Generator().manual_seed(0)) > .999).all()

# -- images in memory

def pairs(found):
    return [(x.numpy().tobytes(), int(y)) for xb, yb in found for x, y in zip(xb, yb)]

def test_batches_hold_each_image_once():
    images, g = digits()[1], torch.Generator().manual_seed(0)
    shuffled = pairs(batches(images, 64, g))
    assert pairs(batches(images, 64)) == pairs([(images.x, images.y)]) != shuffled
    assert sorted(shuffled) == sorted(pairs(batches(images, 64)))

def test_an_order_wins_over_a_generator():
    images, g = digits()[1], torch.Generator().manual_seed(0)
    before, order = g.get_state(), torch.randperm(len(images))[:50]
    found = pairs(batches(images, 16, g, order=order))
    assert found == pairs([(images.x[order], images.y[order])]) and len(found) == 50
    assert torch.equal(g.get_state(), before)

def test_the_order_of_a_generator_is_its_permutation():
    images, (g, again) = digits()[1], (torch.Generator().manual_seed(3) for _ in range(2))
    order = torch.randperm(len(images), generator=again)
    assert pairs(batches(images, 64, g)) == pairs(batches(images, 64, order=order))

def test_bytes_move_to_a_device_that_has_four_times_their_memory():
    images, meta = digits()[0], torch.device('meta')
    small, large = (images.to_device(meta, free=4 * images.x.nbytes - n) for n in (0, 1))
    assert [i.x.device.type for i in (small, large)] == ['meta', 'cpu']
    assert [i.y.device.type for i in (small, large)] == ['meta', 'meta']
    assert {t.device.type for b in batches(large, 512, device=meta) for t in b} == {'meta'}

def test_a_seed_means_the_same_crops():
    x, augment = digits()[1].x[:8], Augment(zoom=(.8, 1.1), degrees=15)
    ours, again = (augment(x, 32, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(ours, again)

def test_changed_colours_leave_a_channel_full_or_missing():
    rgb = torch.zeros(10, 3, 8, 8, dtype=torch.uint8)
    rgb[:, 0] = 255
    augment = Augment(zoom=(1., 1.), flip=False, colours=True)
    x = augment(rgb, 8, torch.Generator().manual_seed(0))
    assert {tuple(c.unique().tolist()) for c in x.flatten(2)[:, :, :1]} == {(0., 1.)}

def some(**other): return Images(**{**vars(digits()[0]), **other})

@pytest.mark.parametrize('call, words', [
    (lambda i: some(y=i.y[:-1]), '1438 images but 1437 labels'),
    (lambda i: some(x=i.x.float()), 'kept as torch.uint8, got torch.float32'),
    (lambda i: some(y=i.y.int()), 'kept as torch.int64, got torch.int32'),
    (lambda i: toy(pairs=4), 'got pairs=4'),
    (lambda i: split(i, 1.), r'lie in \(0, 1\), got 1.0'),
    (lambda i: for_testing(np.array([0, 0, 1]), ['a', 'b'], .2, 0), "'b' has 1 image"),
], ids=['lengths', 'floats', 'short labels', 'pairs', 'share', 'one image'])
def test_bad_images(call, words):
    with pytest.raises(ValueError, match=words) as e: call(some())
    assert one_sentence(e)

# -- streams

@pytest.mark.parametrize('train, test, other, words', [
    ({}, {}, dict(tasks=11), '10 classes cannot make 11 tasks'),
    ({}, {}, dict(limit_per_class=0), 'at least 1, got 0'),
    ({}, {}, dict(seed=-1), r'seed must lie in .* got -1'),
    ({}, dict(classes=[*'9876543210']), {}, 'different classes'),
    (dict(y=some().y + 1), {}, {}, 'labels 0 to 9, got a training image with label 10'),
    ({}, dict(y=some().y.clamp(max=8)), {}, "Class '9' has no test image"),
], ids=['tasks', 'limit', 'seed', 'classes', 'labels', 'empty'])
def test_bad_streams(train, test, other, words):
    with pytest.raises(ValueError, match=words) as e:
        TaskStream(some(**train), some(**test), **{'tasks': 2, **other})
    assert one_sentence(e)

def test_uneven_tasks_lose_no_class():
    s = TaskStream(*digits(), tasks=3, seed=1, limit_per_class=20)
    assert [len(s.labels(t)) for t in range(3)] == [4, 3, 3]
    assert [c for t in range(3) for c in s.labels(t)] == sorted(s.class_order) == [*range(10)]
    assert s.sizes() == [(len(s.train(t)), len(s.test(t))) for t in range(3)]

def test_a_source_takes_what_it_names(monkeypatch, tmp_path):
    monkeypatch.setitem(SOURCES, 'mine', lambda root, n=48: toy(per_class=n))
    stream = TaskStream.named('mine', tmp_path/'photos', tasks=6, n=4)
    assert stream.name == 'photos' and stream.sizes() == [(8, 4)] * 6
    with pytest.raises(ValueError, match="'mine' needs a folder"): TaskStream.named('mine')
    with pytest.raises(ValueError, match="Unknown dataset 'mnist'"): TaskStream.named('mnist')

# -- folders

def test_what_pixels_become(tmp_path):
    Image.fromarray(np.full((8, 8), 256 * 150, np.uint16)).save(tmp_path/'deep.png')
    Image.new('RGBA', (8, 8), (0, 255, 0, 0)).save(tmp_path/'clear.png')
    assert (read_image(tmp_path/'deep.png', 8) == 150).all()  # the upper 8 of 16 bits
    assert (read_image(tmp_path/'clear.png', 8) == 255).all()
    Image.fromarray(np.full((8, 8), .5, np.float32)).save(tmp_path/'float.tif')
    with pytest.raises(ValueError, match="float.tif': its pixels are of mode 'F'") as e:
        read_image(tmp_path/'float.tif', 8)
    assert one_sentence(e)

def photos(root, *files):
    for f in files:
        (root/f).parent.mkdir(parents=True, exist_ok=True)
        (root/f).write_bytes(red(0))
    return root

@pytest.mark.parametrize('files, words', [
    (['a/0.jpg', 'a/1.jpg', 'b/phone.HEIC'], "phone.HEIC' is of a format that is not read"),
    (['0.jpg'], 'expected one folder of images per class'),
    (['a/0.jpg', 'b/0.txt'], "b' holds no image"),
    (['a/0.jpg', 'a/1.jpg'], 'holds 1 class, at least 2'),
    (['Train/a/0.jpg', 'Train/b/0.jpg', 'Test/a/0.jpg', 'Test/c/0.jpg'],
     r"'b' is in only one of them \(2 such\)"),
    (['train/a/0.jpg', 'val/a/0.jpg'], r"holds \['train', 'val'\]"),
], ids=['format', 'no folders', 'empty', 'one class', 'classes differ', 'no test'])
def test_bad_folders(tmp_path, files, words):
    with pytest.raises(ValueError, match=words) as e: folder(photos(tmp_path, *files), size=8)
    assert one_sentence(e)

def test_parts_in_capitals(tmp_path):
    photos(tmp_path, 'Train/a/0.jpg', 'Train/d/0.jpg', 'Test/a/0.jpg', 'Test/d/0.jpg')
    assert [len(part) for part in folder(tmp_path, size=8)] == [2, 2]
    (tmp_path/'test').mkdir(exist_ok=True)  # the same folder where file names have no case
    if len([*tmp_path.iterdir()]) == 3:
        with pytest.raises(ValueError, match="'Test', 'test', 'Train'"): folder(tmp_path, size=8)
