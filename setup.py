"Build ham_nb from settings.ini: the one place where the package's metadata is written."
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

here = Path(__file__).parent
parser = ConfigParser(delimiters='=')
parser.read(here/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']
def lines(key): return cfg[key].strip().splitlines()

licenses = {'apache2': 'Apache-2.0'}
statuses = {'3': '3 - Alpha', '4': '4 - Beta', '5': '5 - Production/Stable'}

def absolute(md):
    "Links and images of README.md as they work away from the repository, on a registry's page"
    source = f"{cfg['git_url']}/{{}}/{cfg['branch']}/"
    md = re.sub(r'(!\[[^\]]*\]\()(?!\w+:|#)', r'\1' + source.format('raw'), md)
    return re.sub(r'(\]\()(?!\w+:|#)', r'\1' + source.format('blob'), md)

setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=absolute((here/'README.md').read_text(encoding='utf-8')),
    long_description_content_type='text/markdown',
    author=cfg['author'],
    license=licenses[cfg['license']],
    keywords=cfg['keywords'].split(),
    classifiers=[
        f"Development Status :: {statuses[cfg['status']]}",
        f"Intended Audience :: {cfg['audience']}",
        'Programming Language :: Python :: 3 :: Only',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    python_requires=f">={cfg['min_python']}",
    packages=[cfg['lib_name'], f"{cfg['lib_name']}.assets"],
    # weights, style of figures, records behind the numbers
    package_data={f"{cfg['lib_name']}.assets": ['*', 'results/*.json', 'results/study/*.json']},
    install_requires=lines('requirements'),
    extras_require={'dev': lines('dev_requirements'), 'site': lines('site_requirements')},
    entry_points={
        'console_scripts': lines('console_scripts'),
        # lets other nbdev projects link to our symbols
        'nbdev': [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"],
    },
    zip_safe=False,
)
