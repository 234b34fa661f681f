"""A training that is cut off and goes on from its checkpoint, against the same training without a break."""

from __future__ import annotations

import random
from contextlib import suppress

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from perfit.adapter_file import read_fields
from perfit.checkpoint import Checkpoint, CheckpointError, Checkpoints, training_hash
from perfit.client import ClientResult, find_architecture, run_client
from perfit.errors import PerfitError
from perfit.round import ClientRound, initial_state, split_state
from perfit.training import train

from .methods.helpers import everything
from .tiny import loaded

EVERY = 2


class CutOff(BaseException):
    """The process is gone."""


class Kept:
    """A checkpoint file in memory; remembers the content of every write."""

    def __init__(self, *data: bytes):
        self.written = list(data)

    def load(self, limit: int) -> bytes | None:
        if self.written and len(self.written[-1]) > limit:
            raise PerfitError("it is too large", "write less")
        return self.written[-1] if self.written else None

    def save(self, data: bytes) -> None:
        self.written.append(data)


class Steps:
    """The steps that a training reports; it is cut off right after one of them."""

    def __init__(self, last: int | None = None):
        self.seen: list[int] = []
        self.last = last

    def __call__(self, step: int, steps: int, loss: float) -> None:
        self.seen.append(step)
        if step == self.last:
            raise CutOff


def tune(spec, steps: Steps, file: Kept | None, round: int = 1, client: str = "ann") -> ClientResult:
    """A client's round in a process of its own, with a state of the server and of the client that is not zero."""
    model, data = loaded(spec)
    held = model.space.plain_mask(spec.rank_of(spec.client(client)))
    roles = ClientRound(spec, model.space, held, round).roles
    rng = np.random.default_rng(round)
    downloads = {
        name: vector + rng.normal(0, 0.01, vector.size).astype(np.float32)
        for name, vector in split_state(spec, initial_state(spec, model.space))[0].items()
    }
    kept = {"control": rng.normal(0, 0.01, roles.trained.sum()).astype(np.float32)} if spec.algorithm.after else {}
    received = everything(roles, downloads)
    return run_client(model, spec, spec.client(client), round, data[client], held, received, kept, steps, file)


def search(spec, steps: Steps, file: Kept | None) -> np.ndarray:
    """A client's search in a process of its own."""
    model, data = loaded(spec)
    return find_architecture(model, spec, spec.client("ann"), data["ann"], steps, file)


def cut_off(action, spec, last: int, file: Kept) -> None:
    """Let a training end right after a step."""
    with pytest.raises(CutOff):
        action(spec, Steps(last), file)


def assert_same(result: ClientResult, expected: ClientResult) -> None:
    """Compare everything that a round results in, to the bit."""
    assert result.losses == expected.losses
    assert (result.perplexity_before, result.perplexity_after) == (
        expected.perplexity_before,
        expected.perplexity_after,
    )
    assert_array_equal(result.adapter.values, expected.adapter.values)
    for ours, theirs in [(result.upload.unpack(), expected.upload.unpack()), (result.kept, expected.kept)]:
        assert ours.keys() == theirs.keys()
        for name, vector in ours.items():
            assert_array_equal(vector, theirs[name])


CASES = {
    "passes": {},  # ann's seven examples are four batches
    "a last batch that is smaller": {"training": {"batch_size": 4}},
    "accumulation": {"training": {"gradient_accumulation": 3}},  # the last step of a pass is one batch
    "warm-up": {"training": {"warmup_steps": 2}},
    "sgd": {"training": {"optimizer": "sgd"}},
    "weight decay": {"training": {"weight_decay": 0.1}},
    "bfloat16": {"training": {"precision": "bfloat16"}},
    "gradient checkpointing": {"training": {"gradient_checkpointing": True}},
    "scaffold": {"method": {"name": "scaffold"}},
    "fedprox": {"method": {"name": "fedprox"}},
    "fedsa-lora": {"method": {"name": "fedsa-lora"}},
    "dropout": {"lora": {"target_modules": ["c_attn"]}},
}


@pytest.fixture(params=CASES)
def spec(request, make_federation, tiny_gpt2):
    sections = {key: dict(value) for key, value in CASES[request.param].items()}
    sections["training"] = {"steps": 11, "checkpoint_steps": EVERY, **sections.get("training", {})}
    return make_federation(**({"model": tiny_gpt2} if request.param == "dropout" else {}), **sections)


def test_a_training_goes_on_to_the_same_bytes(spec):
    expected, file = tune(spec, Steps(), None), Kept()
    last = random.randrange(EVERY + 1, spec.training.steps)
    cut_off(tune, spec, last, file)
    again = Steps()
    assert_same(tune(spec, again, file), expected)
    done = (last - 1) // EVERY * EVERY
    assert again.seen == list(range(done + 1, spec.training.steps + 1)), f"cut off after step {last}"


def short(make_federation, **training):
    return make_federation(
        method={"search_steps": 9, "warmup_steps": 2, "pruning_iterations": 3},
        training={"steps": 7, "checkpoint_steps": EVERY, **training},
    )


def test_a_training_that_is_cut_off_again_and_again(make_federation):
    spec, file = short(make_federation), Kept()
    for last in (3, 4, 6, 7):
        cut_off(tune, spec, last, file)
    assert_same(tune(spec, Steps(), file), tune(spec, Steps(), None))
    assert [len(Checkpoint.parse(data, hash_in(data)).losses) for data in file.written] == [2, 4, 6]


@pytest.mark.parametrize("metric", ["taylor", "magnitude", "gradient"])
def test_a_search_goes_on_to_the_same_mask(make_federation, metric):
    spec = make_federation(
        method={"metric": metric, "search_steps": 9, "warmup_steps": 2, "pruning_iterations": 3},
        training={"checkpoint_steps": EVERY},
    )
    expected, file = search(spec, Steps(), None), Kept()
    for last in (3, 5, 9):
        cut_off(search, spec, last, file)
    again = Steps()
    assert_array_equal(search(spec, again, file), expected)
    assert again.seen == [9]


def test_steps_that_are_done_are_not_computed(make_federation):
    model, data = loaded(make_federation())
    settings, computed = make_federation(training={"gradient_accumulation": 2}).training, []
    model.peft.register_forward_hook(lambda module, *_: computed.append(module.training))
    file = Kept()
    # A pass over six examples is a step of two batches and a step of one.
    for last, batches in [(3, 2 + 1 + 2), (None, 2 + 1 + 2 + 1 + 2)]:  # steps 1 to 3, then 3 to 7
        computed.clear()
        with suppress(CutOff):
            train(
                model.peft,
                data["ann"].train.examples[:6],
                model.tokenizer,
                settings,
                steps=7,
                seed=0,
                on_step=Steps(last),
                checkpoints=Checkpoints(file, "", EVERY, 2**20),
            )
        assert computed == [True] * batches


def test_checkpoints_change_nothing(make_federation):
    file = Kept()
    expected = tune(short(make_federation, checkpoint_steps=None), Steps(), file)
    assert file.written == []
    assert_same(tune(short(make_federation), Steps(), file), expected)
    assert len(file.written) == 3  # after steps 2, 4 and 6 of 7


def test_their_distance_may_change(make_federation):
    file = Kept()
    cut_off(tune, short(make_federation), 3, file)
    again = Steps()
    tune(short(make_federation, checkpoint_steps=3), again, file)
    assert again.seen[0] == 3


def test_a_training_that_is_too_short_neither_reads_nor_writes_any(make_federation):
    class Unused:
        load = save = None

    tune(short(make_federation, steps=EVERY), Steps(), Unused())


def hash_in(data: bytes) -> str:
    """The hash of the training that a checkpoint belongs to."""
    return read_fields(data)["training"]


@pytest.fixture(scope="module")
def written(make_federation) -> bytes:
    """A checkpoint of ann's first round."""
    file = Kept()
    cut_off(tune, short(make_federation), 3, file)
    return file.written[0]


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def forged(data: bytes, **changes) -> bytes:
    """A checkpoint of the same training with another content, and the hash of that content."""
    checkpoint = Checkpoint.parse(data, hash_in(data))
    fields = {"losses": checkpoint.losses, "measured": checkpoint.measured, "tensors": checkpoint.tensors, **changes}
    return Checkpoint(**fields).dump(hash_in(data))


def with_tensor(data: bytes, name: str, tensor: torch.Tensor | None) -> bytes:
    tensors = dict(Checkpoint.parse(data, hash_in(data)).tensors) | {name: tensor}
    return forged(data, tensors={name: tensor for name, tensor in tensors.items() if tensor is not None})


@pytest.mark.parametrize(
    "spoil",
    {
        "empty": lambda data: b"",
        "text": lambda data: b"hello",
        "a header that promises more than there is": lambda data: (2**63).to_bytes(8, "little") + data[8:],
        "cut": lambda data: data[:-1],
        "longer": lambda data: data + b"\0",
        "huge": lambda data: data + bytes(2**25),
        "a bit of a value": lambda data: flipped(data, len(data) - 1),
        "a bit of a loss": lambda data: flipped(data, data.index(b"losses") + 15),
        "deep": lambda data: data[:8] + b"[" * (len(data) - 8),
        "no losses": lambda data: forged(data, losses=[]),
        "too many losses": lambda data: forged(data, losses=[1.0] * 7),
        "a loss that is not finite": lambda data: forged(data, losses=[1.0, float("nan")]),
        "losses that are text": lambda data: forged(data, losses="ab"),
        "a loss beyond a float": lambda data: forged(data, losses=[1.0, 10**400]),
        "measured nothing": lambda data: forged(data, measured=None),
        "a tensor too few": lambda data: with_tensor(data, "exp_avg/0", None),
        "a tensor too many": lambda data: with_tensor(data, "x", torch.zeros(1)),
        "another shape": lambda data: with_tensor(data, "values/0", torch.zeros(3)),
        "another type": lambda data: with_tensor(data, "step/0", torch.zeros((), dtype=torch.int64)),
        "not finite": lambda data: with_tensor(data, "step/0", torch.tensor(float("inf"))),
    }.items(),
    ids=lambda item: item[0],
)
def test_what_is_no_checkpoint_of_this_training_is_ignored(make_federation, written, spoil, caplog):
    steps = Steps(1)
    with pytest.raises(CutOff):
        tune(short(make_federation), steps, Kept(spoil[1](written)))
    assert steps.seen == [1]
    assert "the checkpoint is not used" in caplog.text


def test_a_checkpoint_that_is_one_is_used(make_federation, written, caplog):
    for data in (written, forged(written)):
        steps = Steps(3)
        with pytest.raises(CutOff):
            tune(short(make_federation), steps, Kept(data))
        assert steps.seen == [3]
    assert caplog.messages == ["going on after step 2 of 7, from a checkpoint"] * 2


def test_no_flipped_bit_is_taken_for_another_checkpoint(written):
    checkpoint, training = Checkpoint.parse(written, hash_in(written)), hash_in(written)
    rng = random.Random(0)
    for position in rng.sample(range(len(written)), 300):
        try:
            other = Checkpoint.parse(flipped(written, position), training)
        except CheckpointError:
            continue
        assert (other.losses, other.measured) == (checkpoint.losses, checkpoint.measured), position
        for name, tensor in checkpoint.tensors.items():
            assert torch.equal(other.tensors[name], tensor), position


def test_what_a_training_depends_on_is_in_its_hash(make_federation):
    def hash_of(client="ann", round=1, values=1.0, examples=None, **sections) -> str:
        spec = make_federation(**sections)
        vectors = {"values": np.full(3, values, np.float32)}
        return training_hash(spec, spec.client(client), round, examples or (data["ann"].train,), vectors)

    _, data = loaded(make_federation())
    others = [
        hash_of(client="bob"),
        hash_of(round=2),
        hash_of(values=2.0),
        hash_of(examples=(data["bob"].train,)),
        hash_of(examples=(data["ann"].train, data["ann"].held_out)),
        hash_of(name="other"),
        hash_of(method={"name": "fedit"}, lora={"expansion": None}),
        hash_of(method={"scope": "global"}),
        hash_of(training={"learning_rate": 0.02}),
        hash_of(training={"steps": 3}),
        hash_of(training={"seed": 1}),
    ]
    assert len({hash_of(), *others}) == 1 + len(others)
    assert hash_of(training={"checkpoint_steps": 7}, rounds=9) == hash_of()


def test_another_rounds_checkpoint_is_ignored(make_federation, written, caplog):
    spec, file = short(make_federation), Kept(written)
    assert_same(tune(spec, Steps(), file, round=2), tune(spec, Steps(), None, round=2))
    assert caplog.messages == ["the checkpoint is not used: it belongs to another training"]


def test_a_checkpoint_that_cannot_be_written_or_read_stops_nobody(make_federation, caplog):
    class Broken:
        def load(self, limit):
            raise PerfitError("the store is gone", "wait")

        def save(self, data):
            raise PerfitError("the store is full", "make room")

    spec = short(make_federation)
    assert_same(tune(spec, Steps(), Broken()), tune(spec, Steps(), None))
    assert caplog.messages == [
        "the checkpoint is not used: the store is gone",
        *(f"the checkpoint after step {step} is not written: the store is full" for step in (2, 4, 6)),
    ]


def test_what_is_measured_before_a_training_is_measured_once():
    file = Kept()
    first = Checkpoints(file, "a", 1, 10_000)
    assert first.measured("x", lambda: 2.5) == 2.5
    first.save([1.0], {"t": torch.ones(2)})
    assert Checkpoints(file, "a", 1, 10_000).measured("x", lambda: 9.0) == 2.5
    assert Checkpoints(file, "b", 1, 10_000).measured("x", lambda: 9.0) == 9.0
    assert Checkpoints().measured("x", lambda: 9.0) == 9.0
