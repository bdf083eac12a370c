"""Freed memory is kept within a run, and given back after it."""

import os
import resource
import subprocess
import sys

import pytest

from gsb_vit.train.memory import _glibc, kept_memory

needs_glibc = pytest.mark.skipif(_glibc() is None, reason="another C library than glibc")

# Blocks of 40 MiB are beyond the largest that glibc keeps by itself; each of their pages that is new is one fault.
FAULTS = """
import ctypes, resource, sys
from gsb_vit.train.memory import kept_memory
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        block = library.malloc(ctypes.c_size_t(40 << 20))
        ctypes.memset(block, 1, 40 << 20)
        library.free(ctypes.c_void_p(block))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
outside, start = faults(), resident()
with kept_memory() as kept:
    inside, held = faults(), resident()
print(kept, outside, inside, held - start, resident() - start)
"""


def _faults(**variables: str) -> list[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], env={**environment, **variables}, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@needs_glibc
def test_freed_memory_is_kept_within_and_given_back_afterwards():
    kept, outside, inside, held, left = _faults()
    pages = (40 << 20) // resource.getpagesize()
    assert kept == "True"
    assert int(outside) > 10 * pages // 512  # large pages are cleared at once
    assert int(inside) < int(outside) / 5
    assert int(held) > 30 << 20 > int(left)


@needs_glibc
def test_a_user_who_says_how_memory_is_kept_is_left_alone():
    kept, outside, inside, *_ = _faults(MALLOC_ARENA_MAX="2")
    assert kept == "False"
    assert int(inside) > int(outside) / 2


def test_nothing_is_done_with_another_c_library(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with kept_memory() as kept:
        assert not kept
