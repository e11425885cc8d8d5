"""Two ranks that share out the weights compute, and save, what two that hold all of them do."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.train import sharded
from tests.train.ranks import start_ranks


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("sharded")
    ranks = start_ranks([sys.executable, "-W", "error:FSDP2", "-m", "tests.train.sharded", folder])
    outputs = [process.communicate(timeout=240)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], outputs
    loaded: dict[str, Any] = torch.load(folder / "results.pt", weights_only=True)
    return loaded


def assert_alike(ours: Any, theirs: Any, tolerance: float, place: str = "") -> None:
    """The same names in the same order, shapes and dtypes, and values within `tolerance`."""
    assert type(ours) is type(theirs), place
    if isinstance(ours, dict):
        assert list(ours) == list(theirs), place
        for name, value in ours.items():
            assert_alike(value, theirs[name], tolerance, f"{place}.{name}")
    elif isinstance(ours, Tensor):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance, msg=lambda text: f"{place}: {text}")
    else:
        assert ours == theirs, place


def test_sharded__losses_norms_and_states_are_those_of_replicas(results: dict[str, Any]) -> None:
    """Six steps of two micro-batches; each tensor is clipped, then all together; one is bad, one freezes prototypes."""
    ours, theirs = results["sharded"], results["replicated"]
    assert ours["losses"] == pytest.approx(theirs["losses"], abs=1e-5)
    assert len(set(theirs["losses"])) == 6
    for norms, expected in zip(ours["norms"], theirs["norms"], strict=True):
        torch.testing.assert_close(norms, expected, rtol=1e-3, atol=1e-5)  # float32 sums of 4 M squares
    assert_alike(ours["middle"], theirs["middle"], 1e-6)
    assert_alike(ours["end"], theirs["end"], 1e-6)
    torch.testing.assert_close(ours["features"], theirs["features"], rtol=0, atol=1e-5)


def test_sharded__gradients_under_autocast_are_those_of_replicas(results: dict[str, Any]) -> None:
    """Autocast keeps the weights that it has cast for both sizes of views; their gradients come late."""
    (losses, (norms,)), (expected_losses, (expected,)) = results["sharded"]["bf16"], results["replicated"]["bf16"]
    assert losses == pytest.approx(expected_losses, abs=1e-5)
    torch.testing.assert_close(norms, expected, rtol=1e-3, atol=1e-5)


def test_sharded__goes_on_from_a_checkpoint_of_replicas(results: dict[str, Any]) -> None:
    assert_alike(results["resumed"]["start"], results["replicated"]["middle"], 0)
    assert results["resumed"]["losses"] == pytest.approx(results["replicated"]["losses"][3:], abs=1e-5)


def test_single_process__goes_on_from_a_checkpoint_of_shards(results: dict[str, Any]) -> None:
    pair = sharded.build_pair(sharded=False)
    pair.load(sharded.copied(results["sharded"]["middle"]))
    assert_alike(sharded.copied(pair.state()), results["sharded"]["middle"], 0)
    losses, _ = sharded.train(pair, range(3, 6), [0, 1], "global", bad=4)
    assert losses == pytest.approx(results["replicated"]["losses"][3:], abs=1e-5)
