"""Peak memory of a command, run on several inputs in a process each."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

# The imports are done once; then a copy of the process runs each command line. Unlike `ru_maxrss`,
# the kernel's VmHWM does not count the process that started this one.
_PROGRAM = """
import json, os, re, sys, traceback
def peak():
    with open("/proc/self/status") as status:
        return int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read())[1]) * 1024
{imports}
for args in json.loads(sys.argv[1]):
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0, args
        continue
    try:
        status = main(args)
        # By itself on a line, after whatever the command wrote last.
        found = json.dumps({{"num_bytes": peak(), "modules": sorted(sys.modules)}})
        os.write(1, f"\\n{{found}}\\n".encode())
        os._exit(status)
    except BaseException:
        traceback.print_exc()
        os._exit(99)
"""


@dataclass(frozen=True)
class Peak:
    """One run of the command.

    Attributes:
        num_bytes: the most memory that its process held.
        modules: all that it imported.
    """

    num_bytes: int
    modules: frozenset[str]


def peaks(imports: str, runs: Sequence[Sequence[str]]) -> list[Peak]:
    """Run `main`, which the imports define, with each list of arguments; each must succeed."""
    command = [sys.executable, "-c", _PROGRAM.format(imports=imports), json.dumps(runs)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"num_b')]
    assert len(found) == len(runs)
    return [Peak(each["num_bytes"], frozenset(each["modules"])) for each in found]
