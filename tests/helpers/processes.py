"""Waiting for other processes and threads, without a limit that a busy machine could reach."""

import time
from pathlib import Path

# A process or a condition that takes longer hangs. Nothing is measured by it: no test needs a hundredth of it.
HANG_SECONDS = 1800


def wait_until(condition, what):
    """Return when ``condition()`` is true; fail, saying ``what`` was waited for, when that never comes."""
    end = time.monotonic() + HANG_SECONDS
    while not condition():
        assert time.monotonic() < end, f"still waiting for {what}"
        time.sleep(0.02)


def threads_of(process="self"):
    """Return the numbers of a process's threads. Linux only."""
    return {task.name for task in Path(f"/proc/{process}/task").iterdir()}


def asleep(process, thread):
    """Does a thread sleep? One that spins never does: it runs, or waits for a core."""
    text = Path(f"/proc/{process}/task/{thread}/stat").read_text()
    return text.rpartition(")")[2].split()[0] == "S"  # before it comes the thread's name, which may hold anything


def wait_for_sleep(process, threads):
    """Return when all of the threads were found asleep 25 times in a row."""
    found = []

    def at_rest():
        found.append(all(asleep(process, thread) for thread in threads))
        return len(found) >= 25 and all(found[-25:])

    wait_until(at_rest, f"threads {sorted(threads)} to sleep")
