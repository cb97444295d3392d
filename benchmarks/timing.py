"Alternating measurements: what changes on the machine meanwhile meets every subject alike."
import statistics
import time
from collections.abc import Callable

import torch


def alternate(
    subjects: dict,  # Name -> function without arguments
    rounds: int,  # Each round runs every subject once
    device: torch.device,
    warmup: int = 1,  # Rounds that are not counted
) -> dict:  # Name -> seconds of each round
    """Run the subjects in turn, each round starting with another one.

    The first call of a turn finds cold caches and is not counted."""
    seconds, names = {name: [] for name in subjects}, list(subjects)
    for r in range(warmup + rounds):
        first = r % len(names)
        for name in names[first:] + names[:first]:
            subjects[name]()
            took = min(clock(subjects[name], device) for _ in range(2))
            if r >= warmup: seconds[name].append(took)
    return seconds


def clock(f: Callable, device: torch.device) -> float:
    "Seconds that one call takes, what it started on the device included"
    finish = torch.cuda.synchronize if device.type == 'cuda' else lambda: None
    finish()
    start = time.perf_counter()
    f()
    finish()
    return time.perf_counter() - start


def summary(seconds: list) -> dict:
    "Median and quartiles in milliseconds"
    low, median, high = (1000 * s for s in statistics.quantiles(seconds, n=4))
    quartiles = [round(low, 3), round(high, 3)]
    return dict(ms=round(median, 3), ms_quartiles=quartiles, rounds=len(seconds))


def ratio(a: list, b: list) -> dict:
    "How many times longer a took than b in the same round: median and quartiles over rounds"
    low, median, high = statistics.quantiles([x / y for x, y in zip(a, b)], n=4)
    return dict(ratio=round(median, 4), quartiles=[round(low, 4), round(high, 4)])
