"The test of the site finds what it looks for"
import os
import shutil
import subprocess
from pathlib import Path

import pytest

root = Path(__file__).resolve().parent.parent
chromium = os.environ.get('CHROMIUM', '/usr/bin/chromium')
missing = [name for name, there in {
    'node': shutil.which('node'), chromium: Path(chromium).exists(),
    'docs/node_modules': (root/'docs/node_modules').exists()}.items() if not there]

PAGE = '''<html lang="en"><head><title>Page</title></head>
<body><main><h1>Page</h1>{}</main></body></html>'''
DOT = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'

FAULTS = '''
<style>
  a, input {{ outline: none }}
  div.math {{ overflow-x: auto }}
</style>
<a href="#top" id="top">The top</a> <button style="opacity: 0">ghost</button>
<a href="nowhere.html">dead</a> <a href="index.html#none">dead</a>
<img src="lost.png" alt="lost"> <img src="dot.svg"> <img src="dot.svg" alt="dot.svg">
<p style="color: #bbb; background: #aaa">pale</p>
<pre style="overflow: auto">{long}</pre>
<div style="overflow: hidden; width: 200px">
  <p style="width: 300px; text-align: right">cut</p>
</div>
<p id="wide">{long}</p>
<div class="math">{long}</div>
<details><summary>More</summary><div style="overflow: auto"><b>{long}</b></div></details>
<span class="math">
  <mjx-container><mjx-merror data-mjx-error="Missing brace"></mjx-merror></mjx-container>
</span>
<script src="https://example.com/x.js"></script>
<script>console.error('loud'); undefinedName()</script>
'''

EXPECTED = '''
axe: color-contrast, 1 times, first p
axe: image-alt, 1 times
box: div “aaa
box: div “cut” cuts off 100 pixels
box: div.math “aaa
box: p#wide “aaa
box: pre “aaa
console: loud
focus: a#top “The top” looks the same with focus
focus: button “ghost” is invisible
image: dot.svg has a file name as alt text: dot.svg
image: dot.svg has no alt text
image: lost.png is broken
link: index.html#none: no anchor #none in index.html
link: nowhere.html: no file nowhere.html
math: div.math “aaa
math: span.math Missing brace
outside: asks https://example.com/x.js
overflow:
request: 404 /lost.png
script: undefinedName is not defined
search: the first page has no search box
'''.strip('\n').splitlines()

def run(site):
    command = ['node', root/'docs/site_test.mjs', site]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)

@pytest.mark.skipif(bool(missing), reason=f"without {', '.join(missing)} (make site)")
def test_the_site_test_finds_faults(tmp_path):
    (tmp_path/'dot.svg').write_text(DOT)
    (tmp_path/'index.html').write_text(PAGE.format('<p>Nothing to find.</p>'))
    (tmp_path/'faulty.html').write_text(PAGE.format(FAULTS.format(long='a'*400)))
    result = run(tmp_path)
    lines = result.stdout.splitlines()
    assert result.returncode == 1, result.stderr
    assert [fault for fault in EXPECTED if not any(fault in line for line in lines)] == []
    assert [line for line in lines if line.startswith('index.html')] == []
    pre = [line for line in lines if 'pre “aaa' in line]
    assert all('1280' in line and '390' not in line for line in pre), 'on a phone code may scroll'
