"""Positions of the expanded LoRA, by hand on two small modules."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from perfit.errors import PerfitError
from perfit.space import LoraSpace, Matrix

Q, V = "base_model.model.layers.0.q", "base_model.model.layers.0.v"


def make_space(rank: int) -> LoraSpace:
    """Two modules: q from 3 to 5 features, v from 4 to 2."""
    return LoraSpace.from_shapes(
        {
            f"{Q}.lora_A.weight": (rank, 3),
            f"{Q}.lora_B.weight": (5, rank),
            f"{V}.lora_A.weight": (rank, 4),
            f"{V}.lora_B.weight": (2, rank),
        }
    )


def test_positions():
    space = make_space(rank=2)
    assert (space.rank, space.size) == (2, 6 + 10 + 8 + 4)
    assert list(space.slices.values()) == [slice(0, 6), slice(6, 16), slice(16, 24), slice(24, 28)]
    assert space.layers() == {"layers.0.q": slice(0, 16), "layers.0.v": slice(16, 28)}
    assert [matrix.is_a for matrix in space.matrices] == [True, False, True, False]
    assert [matrix.features for matrix in space.matrices] == [3, 5, 4, 2]
    assert [space.budget(rank) for rank in (1, 2)] == [14, 28]


def test_a_plain_lora_is_the_first_rows_of_a_and_the_first_columns_of_b():
    blocks = make_space(rank=2).split(make_space(rank=2).plain_mask(1))
    assert_array_equal(blocks[f"{Q}.lora_A.weight"], [[1, 1, 1], [0, 0, 0]])
    assert_array_equal(blocks[f"{Q}.lora_B.weight"], [[1, 0]] * 5)
    assert_array_equal(blocks[f"{V}.lora_A.weight"], [[1, 1, 1, 1], [0, 0, 0, 0]])
    assert_array_equal(blocks[f"{V}.lora_B.weight"], [[1, 0]] * 2)


@pytest.mark.parametrize("rank", [1, 2, 3, 6])
def test_a_plain_mask_has_the_budget_of_its_rank(rank):
    space = make_space(rank=6)
    assert np.count_nonzero(space.plain_mask(rank)) == space.budget(rank) == 14 * rank


def test_initial_values_are_those_of_peft():
    space = LoraSpace.from_shapes({"m.lora_A.weight": (64, 256), "m.lora_B.weight": (128, 64)})
    blocks = space.split(space.initial_values(seed=0))
    a = blocks["m.lora_A.weight"]
    # Kaiming uniform with a = sqrt(5): bound 1/sqrt(256) = 1/16, standard deviation 1/16/sqrt(3).
    assert a.dtype == np.float32
    assert 0.99 / 16 < np.abs(a).max() <= 1 / 16
    assert abs(a.mean()) < 0.001
    assert a.std() == pytest.approx(1 / 16 / np.sqrt(3), rel=0.02)
    assert not blocks["m.lora_B.weight"].any()


def test_initial_values_follow_the_seed_and_the_matrix():
    space = make_space(rank=2)
    assert_array_equal(space.initial_values(5), space.initial_values(5))
    assert np.any(space.initial_values(5) != space.initial_values(6))
    twins = LoraSpace.from_shapes({f"{m}.lora_{ab}.weight": (2, 2) for m in ("a", "b") for ab in "AB"}).split(
        space.initial_values(5)[:16]
    )
    assert np.any(twins["a.lora_A.weight"] != twins["b.lora_A.weight"])


@pytest.mark.parametrize("expansion", [1, 2, 3])
def test_a_wider_space_starts_from_the_same_values(expansion):
    plain, wide = make_space(rank=2), make_space(rank=2 * expansion)
    assert_array_equal(wide.initial_values(3)[wide.plain_mask(2)], plain.initial_values(3))


def test_split_gives_views():
    space = make_space(rank=2)
    flat = np.arange(space.size)
    blocks = space.split(flat)
    assert_array_equal(blocks[f"{V}.lora_B.weight"], [[24, 25], [26, 27]])
    blocks[f"{V}.lora_B.weight"][1, 1] = -1
    assert flat[27] == -1


def test_a_space_from_its_list():
    space = make_space(rank=2)
    assert space.to_list()[0] == [f"{Q}.lora_A.weight", 2, 3]
    assert LoraSpace.from_shapes(space.to_list()) == space


def test_a_matrix_names_its_module():
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
    assert Matrix(name, 2, 3).layer == "model.layers.1.self_attn.q_proj"


@pytest.mark.parametrize(
    "shapes",
    [
        {},
        {"q.lora_A.weight": (2, 3)},
        {"q.lora_B.weight": (3, 2), "q.lora_A.weight": (2, 3)},
        {"q.lora_A.weight": (2, 3), "v.lora_B.weight": (3, 2)},
        {"q.lora_A.weight": (2, 3), "q.lora_B.weight": (3, 4)},
        {
            "q.lora_A.weight": (2, 3),
            "q.lora_B.weight": (3, 2),
            "v.lora_A.weight": (4, 3),
            "v.lora_B.weight": (3, 4),
        },
    ],
    ids=["none", "A alone", "B before A", "two modules", "two ranks in a module", "two ranks"],
)
def test_invalid_matrices(shapes):
    with pytest.raises(PerfitError, match=f"the {len(shapes)} LoRA matrices are not A, B pairs of one rank"):
        LoraSpace.from_shapes(shapes)
