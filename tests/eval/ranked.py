"""What each rank does for `test_tune.py`: verdicts on replicated models, then on sharded ones. Arguments: the training
data, query and test samples.
"""

from __future__ import annotations

import json
import sys

import torch

from dinowds.model.dino import DinoModel
from dinowds.train import dist, sharding
from dinowds.world import World
from tests.eval.support import config_for, models_of, tune_of

CPU = torch.device("cpu")


def shard(model: DinoModel) -> None:
    sharding.shard(model, CPU)
    with torch.no_grad():
        model([torch.zeros(1, 3, 24, 24)])  # the first forward pass is to be of the whole model


def main(data: str, query: str, test: str) -> None:
    config = config_for(query, test)
    tune, _ = tune_of(config, data)
    with dist.process_group(World.from_environment(), CPU):
        models = models_of(config)
        replicated = tune(3, 1, *models).figures
        for model in models:
            shard(model)
        sharded = tune(4, 1, *models).figures
        print(json.dumps({"replicated": replicated, "sharded": sharded, "state": tune.state_dict()}))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
