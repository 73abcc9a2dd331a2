"""Work beside the main thread."""

from concurrent.futures import ThreadPoolExecutor

import torch


def background() -> ThreadPoolExecutor:
    """One thread that computes alone.

    A second team of OpenMP threads makes more threads than cores, and then libgomp lets the waiting ones of the first
    team sleep after every operation: training steps took half as long again.
    """
    threads = torch.get_num_threads()
    executor = ThreadPoolExecutor(1)
    executor.submit(torch.get_num_threads).result()  # a thread's first question sets its number to that of the process
    executor.submit(torch.set_num_threads, 1).result()
    torch.set_num_threads(threads)  # that of the process, which the line above has changed as well
    return executor
