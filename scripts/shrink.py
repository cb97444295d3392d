#!/usr/bin/env python3
"""Stored figures take a third of the bytes with a palette of 128 colours: python scripts/shrink.py

Photographs keep all their colours: a palette would show.
"""
import base64
import io
import json

from docs_check import notebooks
from PIL import Image

FEW, MANY = 128, 20_000  # colours of a palette, and those that only a photograph has

def shrunk(png: bytes) -> bytes:
    "The same picture in fewer bytes, or the same bytes"
    im = Image.open(io.BytesIO(png))
    if im.mode != 'RGBA' or im.getcolors(MANY) is None: return png
    out = io.BytesIO()
    few = im.quantize(FEW, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    few.save(out, 'png', optimize=True)
    return min(png, out.getvalue(), key=len)

def shrink(path):
    "Shrink the figures of a notebook"
    nb = json.loads(path.read_text(encoding='utf-8'))
    before = json.dumps(nb)
    for data in (o.get('data', {}) for c in nb['cells'] for o in c.get('outputs', [])):
        if 'image/png' in data:
            png = base64.b64decode(''.join(data['image/png']))
            data['image/png'] = base64.b64encode(shrunk(png)).decode()
    if json.dumps(nb) != before:
        path.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')

if __name__ == '__main__':
    for path in notebooks(): shrink(path)
