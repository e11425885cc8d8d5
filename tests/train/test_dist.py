"""What ranks say to each other."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

from dinowds.train.dist import on_rank_0
from tests.support import free_port

SCRIPT = textwrap.dedent("""
    import os
    import torch
    from dinowds.errors import OutputError
    from dinowds.train import dist
    from dinowds.world import World

    def fail():
        raise OutputError("the disk is full")

    with dist.process_group(World.from_environment(), torch.device("cpu")):
        print("value of rank", dist.on_rank_0(lambda: os.environ["RANK"]))
        try:
            dist.on_rank_0(fail)
        except OutputError as error:
            print(error)
        print("sum", int(dist.all_reduce_sum(torch.tensor(int(os.environ["RANK"]) + 1))))
""")


def test_on_rank_0__every_rank_gets_its_value_and_its_error() -> None:
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT], env={**common, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    for process in ranks:
        assert process.communicate(timeout=120)[0].splitlines() == ["value of rank 0", "the disk is full", "sum 3"]
        assert process.returncode == 0


def test_on_rank_0__of_one_process_is_a_call() -> None:
    assert on_rank_0(lambda: 5) == 5
