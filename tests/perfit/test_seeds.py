"""Seeds derived from one."""

from __future__ import annotations

from perfit.seeds import derive_seed


def test_a_seed_is_31_bits_of_a_sha256():
    # `printf 0 | sha256sum` and `printf 7/tune/2/ann | sha256sum` begin with 5feceb66 and with 0347c4e6.
    assert derive_seed(0) == 0x5FECEB66 >> 1
    assert derive_seed(7, "tune", 2, "ann") == 0x0347C4E6 >> 1


def test_every_purpose_has_a_seed_of_its_own():
    paths = [(seed, use, round, client) for seed in (0, 1) for use in "ab" for round in (1, 11) for client in "ab"]
    seeds = {derive_seed(*path) for path in paths}
    assert len(seeds) == len(paths)
    assert all(0 <= seed < 2**31 for seed in seeds)
