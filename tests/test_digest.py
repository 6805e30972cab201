import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from elm_nni.digest import derive_seed, digest, file_digest


@dataclass(frozen=True)
class _Settings:
    name: str
    sizes: tuple[int, ...]


def test_is_the_sha256_of_canonical_json():
    expected = hashlib.sha256(b'{"a":[1,2.5,null],"b":"\\u00e9"}').hexdigest()
    assert digest({"b": "é", "a": (1, 2.5, None)}, length=64) == expected
    assert digest({"a": [1, 2.5, None], "b": "é"}) == expected[:16]


def test_plain_forms_of_other_types():
    assert digest(_Settings("x", (1, 2))) == digest({"name": "x", "sizes": [1, 2]})
    assert digest([Path("a/b"), np.int64(3), {2, 1}]) == digest(["a/b", 3, [1, 2]])
    assert digest(_Settings("x", (1, 2))) != digest(_Settings("x", (2, 1)))


def test_refuses_what_has_no_canonical_form():
    with pytest.raises(TypeError, match="object"):
        digest(object())
    with pytest.raises(ValueError, match="JSON"):
        digest(math.nan)
    with pytest.raises(ValueError, match="length must be from 12 to 64, got 8"):
        digest(1, length=8)


def test_file_digest(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc" * 100_000)
    assert file_digest(path) == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_seeds_differ_by_each_part_and_are_the_same_everywhere():
    seeds = {derive_seed(seed, stage, number) for seed in (0, 1) for stage in ("a", "b") for number in (0, 1)}
    assert len(seeds) == 8
    assert max(seeds) < 1 << 63
    # pinned: resuming on another machine must replay the same order
    assert derive_seed(0, "supernet", 17) == int(hashlib.sha256(b'[0,"supernet",17]').hexdigest()[:16], 16) >> 1
