"""The records of the study and of the search, as any version wrote them, in today's words.

In `ham_nb/assets/results`, `study/NAME.json` is the record of an experiment, and a line of
`search.json` that of a trial; each names its `schema`.

Schema 1, the 127 records and 77 rows of version 0.1.0:
- settings of HAM are 13 (boost, fade, start, similarity, importance, prune, merge, energy, anchor
  and the four that kept their names); what a control does today was one of them then;
- `scale`, which was always 1, is a setting of a run; heads beside the trained one are `beside`;
- 25 lack `flip` and `image_shape`, which were the same in all, and the MD5 sum of the weights.

Schema 2: settings are those of the method by its name in `ham_nb.controls.METHODS`; further heads
are `extra_heads`.

Some of schema 1 are older than a name, a unit and a bound:
- `ham-even` was once `ham-paper`;
- `allowance` of the discriminant head had another unit: at two classes a task .3 of it is .6 of
  today's. `search.json` has it;
- the allowance had no bound. It is met where features drift far: *sequential* at fifty tasks,
  *ham-wide-50* and *ham-slow-rows-50* were measured again with it. Five of the others, made again
  in one order each (*ham*, *sd-lora* and *magmax* at fifty tasks, *sequential* and *ham-wide* at
  ten), ended where they had. `search.json` has no bound."""
from typing import NamedTuple

from ham_nb.controls import make_method

SCHEMA = 2
RENAMED = dict(boost='first_importance', fade='halving_classes')
CONTROLS = {('importance', 'layer'): 'ham-layer', ('importance', 'fixed'): 'ham-fixed',
            ('similarity', 'layers'): 'ham-by-layers', ('similarity', 'B'): 'ham-by-b',
            ('similarity', 'cka'): 'ham-by-features', ('prune', 'components'): 'ham-components',
            ('prune', 'singular'): 'ham-singular'}
NOW_CONTROLS = 'similarity', 'importance', 'prune', 'merge', 'energy'


class Settings(NamedTuple):
    "What made a record, in today's words"
    method: str    # One of `ham_nb.controls.METHODS`
    settings: dict # Of the method
    train: dict    # Of TrainConfig
    heads: list    # The trained one first


def today(method: str, old: dict) -> tuple[str, dict]:
    "A method and settings of schema 1, all or some of them"
    if method == 'ham':
        controls = [CONTROLS[o] for o in old.items() if o in CONTROLS]
        if old.get('anchor'): controls.append('ham-anchored')
        method = controls[0] if controls else 'ham'
    new = {RENAMED.get(k, k): v for k, v in old.items()}
    if 'start' in new: new['shared_start'] = new.pop('start') == 'shared'
    made = make_method(method)
    for k, v in new.items():  # what is no choice any more has the value that it was fixed at
        if k in made.settings or k in NOW_CONTROLS or v == getattr(made, k, 0): continue
        raise ValueError(f'{method} has {k} {getattr(made, k, 0)}, the record says {v}.')
    return method, {k: v for k, v in new.items() if k in made.settings}


def settings_of(record: dict) -> Settings:
    "What made a record of the study"
    c = record['config']
    if record['schema'] == SCHEMA:
        heads = [c['head'], *c['extra_heads']]
        return Settings(c['method'], c['method_settings'], c['train'], heads)
    method, settings = today(c['method'], c['method_settings'])
    if record['name'].startswith('folded-'): method = 'ham-folded'
    train = {{'views': 'cached_views'}.get(k, k): v for k, v in c['train'].items()}
    return Settings(method, settings, train, [c['head'], *c['beside']])


def trial_of(row: dict) -> dict:
    "What made a row of the search, the fields of a `Trial`"
    trial = {k: row[k] for k in ('tasks', 'seed', 'first', 'half', 'method', 'options', 'run')}
    if row['schema'] == SCHEMA: return trial
    method, options = today(row['method'], row['options'])
    return trial | dict(method=method, options=options)
