"""No line of the package can run what a file says: ruff's rules and `unsafe_calls`, each seen to find bad lines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.hostile.unsafe import unsafe_calls

ROOT = Path(__file__).parents[3]
RUFF = Path(sys.executable).with_name("ruff")
ALLOWED = {
    "tests/data/test_grids.py",  # writes grids of objects, to see them refused
    "tests/shard/test_every_source.py",  # writes the roots of the reference as numpy does
    "tests/faults/hostile/test_weights.py",  # writes what a stranger would send
    "tests/faults/fuzz/targets/pickles.py",  # the same, as seeds
}
"""Files that write pickles with `allow_pickle=True`; none reads one."""

BAD = {
    "import numpy as np\nnp.load('a', allow_pickle=True)": "allow_pickle",
    "import numpy as np\nflag = 1\nnp.load('a', allow_pickle=flag)": "allow_pickle",
    "import torch\ntorch.load('a')": "weights_only",
    "import torch\ntorch.load('a', weights_only=False)": "weights_only",
    "import torch\noptions = {}\ntorch.load('a', **options)": "weights_only",
    "import torch as t\nt.load('a')": "weights_only",
    "from torch import load\nload('a')": "weights_only",
    "from torch import load as read\nread('a')": "weights_only",
    "from torch.hub import x\nx('a', weights_only=False)": "weights_only",
    "import subprocess\nsubprocess.run('a', shell=True)": "S602",
    "import subprocess\nsubprocess.Popen('a', shell=True)": "S602",
    "def do(x, shell):\n    return x\ndo('a', shell=True)": "S604",
    "import os\nos.system('a')": "S605",
    "import os\nos.popen('a')": "TID251",
    "eval('1')": "S307",
    "exec('1')": "S102",
    "import pickle\npickle.load(open('a', 'rb'))": "S301",
    "import pickle\npickle.loads(b'')": "S301",
    "import pickle\npickle.Unpickler(open('a', 'rb')).load()": "S301",
    "from pickle import loads\nloads(b'')": "S301",
    "import dill\ndill.load(1)": "TID251",
    "import joblib\njoblib.load('a')": "TID251",
    "from joblib import load\nload('a')": "TID251",
    "import shelve\nshelve.open('a')": "TID251",
    "import marshal\nmarshal.loads(b'')": "TID251",
    "import pandas\npandas.read_pickle('a')": "TID251",
    "import yaml\nyaml.load('a', yaml.Loader)": "TID251",
    "import yaml\nyaml.unsafe_load('a')": "TID251",
    "import yaml\nyaml.full_load('a')": "TID251",
    "import yaml\nyaml.load('a', Loader=yaml.UnsafeLoader)": "S506",
}


@pytest.fixture(scope="module")
def ruff_codes() -> dict[str, set[str]]:
    """Source of `BAD` → the rules of ruff that it breaks, as a file of the package."""
    found = {}
    for source in BAD:
        command = [
            str(RUFF),
            "check",
            "--output-format",
            "json",
            "--stdin-filename",
            str(ROOT / "dinowds" / "bad.py"),
            "-",
        ]
        run = subprocess.run(command, input=source, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)
        found[source] = {str(problem["code"]) for problem in json.loads(run.stdout)}
    return found


@pytest.mark.parametrize("source", list(BAD))
def test_bad_lines__are_found(ruff_codes: dict[str, set[str]], source: str) -> None:
    found = ruff_codes[source] | {problem.split()[0] for _, problem in unsafe_calls(source)}
    assert BAD[source] in found


def test_good_lines__are_not() -> None:
    good = (
        "import torch, numpy as np\ntorch.load('a', weights_only=True)\nnp.load('a')\nnp.load('a', allow_pickle=False)"
    )
    assert unsafe_calls(good) == []


def test_repository__has_no_such_line() -> None:
    found = {}
    for folder in ("dinowds", "cli", "configs", "benchmarks", "docs", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            if calls := unsafe_calls(path.read_text()):
                found[str(path.relative_to(ROOT))] = calls
    assert {name: calls for name, calls in found.items() if name not in ALLOWED} == {}
    assert {*found} == ALLOWED, "some need no exception any more"
    assert all(problem == "allow_pickle that may be true" for calls in found.values() for _, problem in calls)
