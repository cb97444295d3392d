"Draw the figure of the front page from the records: `python -m benchmarks.home`"

import matplotlib.pyplot as plt

from ham_nb.plots import STYLE, plot_curves

from .experiments import ORDERS
from .study import ROOT, record_of

SHOWN = {'ham': 'HAM, five groups', 'sd-lora': 'SD-LoRA, an adapter per task',
         'sequential': 'one adapter, trained on', 'frozen': 'frozen backbone'}


def draw(path):
    "Accuracy on the tasks so far over fifty tasks, mean and range of three class orders"
    def matrices(name):
        cards = (record_of(f'{name}-50-{order}') for order in ORDERS)
        return [c['heads']['discriminant']['accuracy_matrix'] for c in cards]
    with plt.style.context(STYLE):
        _, ax = plt.subplots(figsize=(4.8, 3.4))
        plot_curves({label: matrices(name) for name, label in SHOWN.items()}, ax,
                    title='HAM goes on where one adapter falls behind')
        ax.set(xlabel='classes learnt', xticks=range(1, 10, 2), xticklabels=range(20, 101, 20))
        plt.gcf().savefig(path, dpi=160)


if __name__ == '__main__': draw(ROOT/'nbs/images/fifty.png')
