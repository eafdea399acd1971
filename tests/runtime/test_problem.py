"""Buckets: few, near, and the same for the record and the call."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ssdgen.runtime.problem import Problem

PROBLEM = Problem(8, 2048, 80, 64, 128, 1, "bfloat16")


@pytest.mark.parametrize("value", [0, 1, 2, 3, 4, 6, 8, 12, 48, 2048, 3072, 131072])
def test_a_bucket_stands_for_itself(value: int) -> None:
    problem = replace(PROBLEM, batch=value, seqlen=max(1, value), sequences=value)
    assert problem.bucketed() == problem


def test_there_are_few_buckets_and_each_is_near() -> None:
    found = {seqlen: replace(PROBLEM, seqlen=seqlen).bucketed().seqlen for seqlen in range(1, 70000)}
    assert len(set(found.values())) < 36
    assert all(0.79 < bucket / seqlen < 1.26 for seqlen, bucket in found.items())
    assert list(found.values()) == sorted(found.values())


def test_only_lengths_are_rounded() -> None:
    odd = Problem(5, 2049, 81, 65, 96, 3, "float16")
    assert odd.bucketed() == Problem(6, 2048, 81, 65, 96, 3, "float16")


def test_packed_sequences_count_as_rows() -> None:
    packed = Problem(1, 8192, 24, 64, 128, 1, "bfloat16", sequences=4)
    assert (packed.rows, packed.row_length) == (4, 2048)
    assert (PROBLEM.rows, PROBLEM.row_length) == (8, 2048)
    assert "4 sequences" in str(packed)
