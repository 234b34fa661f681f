"""How processes divide the examples of a training's steps."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from perfit.processes import ProcessLost, Shares, lost_are_named, share_of


@pytest.mark.parametrize("examples", [1, 7, 12, 13, 15])
@pytest.mark.parametrize(("batch_size", "accumulation", "processes"), [(3, 2, 1), (3, 2, 2), (6, 1, 3), (1, 6, 3)])
def test_processes_have_the_examples_of_each_step_of_one_process(examples, batch_size, accumulation, processes):
    order = [17 * i % examples for i in range(examples)]
    size, batches = share_of(batch_size, accumulation, processes)
    shares = [Shares(order, size, batches, process, processes) for process in range(processes)]
    assert len({len(share) for share in shares}) == 1, "or a process would wait for one that has no batch"
    held = [list(share) for share in shares]
    assert {len(share) for share in held} == {len(shares[0])}
    assert max(len(batch) for share in held for batch in share) <= size <= batch_size
    for step, start in enumerate(range(0, examples, batch_size * accumulation)):
        parts = [share[step * batches : (step + 1) * batches] for share in held]
        found = [index for part in parts for batch in part for index in batch]
        assert sorted(found) == sorted(order[start : start + batch_size * accumulation])


def test_one_process_has_the_batches_of_a_batch_sampler():
    assert list(Shares([4, 2, 0, 1, 3], *share_of(2, 1, 1), 0, 1)) == [[4, 2], [0, 1], [3]]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[gloo/gloo/transport/tcp/pair.cc:537] Read error [10.0.0.1]: Connection reset by peer"),
        dist.DistBackendError("NCCL communicator was aborted on rank 0."),
        dist.DistNetworkError("failed to recv, got 0 bytes"),
    ],
    ids=["gloo", "NCCL", "store"],
)
def test_a_lost_process_is_named(error):
    with pytest.raises(ProcessLost, match="another process of the client has gone"), lost_are_named():
        raise error


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("gloo")])
def test_other_errors_stay_as_they_are(error):
    with pytest.raises(type(error)) as caught, lost_are_named():
        raise error
    assert caught.value is error
