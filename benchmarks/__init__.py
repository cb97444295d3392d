"Speed, memory and size of ham_nb, measured side by side in one process: `python -m benchmarks`."
