"""`genai-ray --help` beside an empty Python, in turn: `python benchmarks/cli.py`."""

import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 15


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    program = shutil.which("genai-ray", path=str(Path(sys.executable).parent)) or "genai-ray"
    helps, empties = [], []
    for _ in range(ROUNDS):
        helps.append(seconds([program, "--help"]))
        empties.append(seconds([sys.executable, "-c", "pass"]))
    shown, empty = statistics.median(helps), statistics.median(empties)
    print(f"genai-ray --help {shown:.3f} s   python -c pass {empty:.3f} s   ratio {shown / empty:.1f}")


if __name__ == "__main__":
    main()
