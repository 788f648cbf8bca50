"""Puts the folder of the benchmarks on the path, as their command lines do, before the tests are imported."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
