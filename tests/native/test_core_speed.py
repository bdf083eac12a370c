"""What the core's clock and its vector units are measured with has the instructions that are counted for it.

The figures themselves are up to the machine and to what else it runs: ``benchmarks/roofline.py`` prints them.
"""

import platform
import re

import pytest
from native_build import needed, run
from needs import needs
from paths import ROOT

pytestmark = needs("core speed", "an x86-64 processor", platform.machine() in ("x86_64", "AMD64"))

# native/src/machine/core_speed.h multiplies the rounds by these.
STREAM = 4 * 14
LOOPS = {
    "add_chain": (r"add\s+%r\w+,%r\w+", 64),
    "add512": (r"vpaddd %zmm15,%zmm(\d+),%zmm\1$", STREAM),
    "dot512": (r"vpdpbusd %zmm15,%zmm14,%zmm(?!1[45])\d+$", STREAM),
    "add256": (r"vpaddd %ymm15,%ymm(\d+),%ymm\1$", STREAM),
    "dot256": (r"vpmaddwd %ymm15,%ymm14,%ymm(?!1[45])\d+$", STREAM),
    "read512": (r"vmovdqu64 (0x[0-9a-f]+)?\(%r\w+\),%zmm\d", 8),
    "read256": (r"vmovdqu (0x[0-9a-f]+)?\(%r\w+\),%ymm\d", 8),
}
KEPT = """#include "machine/core_speed.h"
namespace gsb::core_speed_detail {
%s
}
"""


@pytest.fixture(scope="module")
def loops(tmp_path_factory):
    """The instructions of each loop, from its label to the jump back: → by name."""
    objdump = needed("objdump", "core speed")
    folder = tmp_path_factory.mktemp("core_speed")
    kept = "\n".join(f"auto kept_{name} = {name};" for name in LOOPS)
    (folder / "loops.cpp").write_text(KEPT % kept)
    include = f"-I{ROOT / 'native/src'}"
    run(needed("c++"), "-std=c++17", "-O1", "-c", include, folder / "loops.cpp", "-o", folder / "loops.o")
    text = run(objdump, "-d", "-C", "--no-show-raw-insn", folder / "loops.o").stdout.decode()
    found = {}
    for name, body in re.findall(r"^\w+ <gsb::core_speed_detail::(\w+)\(.*?>:\n(.*?)(?:\n\n|\Z)", text, re.M | re.S):
        lines = re.findall(r"^\s*([0-9a-f]+):\s+(.*?)\s*$", body, re.M)
        jump, target = next(
            (n, re.search(r"[0-9a-f]+", line[4:])[0]) for n, (_, line) in enumerate(lines) if line[:4] == "jne "
        )
        start = [address for address, _ in lines].index(target)
        found[name] = [" ".join(line.split()) for _, line in lines[start : jump + 1]]
    return found


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_has_the_instructions_that_are_counted(loops, name):
    pattern, expected = LOOPS[name]
    counted = [line for line in loops[name] if re.match(pattern, line)]
    assert len(counted) == expected
    # Beside them the loop counts down, and what reads memory goes on to the next.
    rest = [line.split()[0] for line in loops[name] if line not in counted]
    assert rest in (["dec", "jne"], ["add", "dec", "jne"])
    if name.startswith(("add", "dot")) and name != "add_chain":
        # No instruction waits for the one before it: fourteen registers in turn.
        assert [line.rsplit("mm", 1)[1] for line in counted] == [str(n) for n in range(14)] * 4
