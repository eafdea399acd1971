"""Lists of shapes and durations, as a user types them."""

from __future__ import annotations

import pytest

from ssdgen.plan.problem import Problem
from ssdgen.tune import budget, shapes
from ssdgen.tune.budget import Budget, BudgetError
from ssdgen.tune.shapes import ShapeNameError


def test_names_numbers_and_all() -> None:
    assert shapes.parse("2.7b") == {"2.7b": Problem(8, 2048, 80, 64, 128, 1)}
    mixed = shapes.parse(" Nemotron-H, 1,4096,32,64,128,1 ,130m,1,7,3,16,16,3")
    assert list(mixed) == ["nemotron-h", "1,4096,32,64,128,1", "130m", "1,7,3,16,16,3"]
    assert mixed["1,7,3,16,16,3"] == Problem(1, 7, 3, 16, 16, 3)
    assert list(shapes.parse("all")) == list(shapes.NAMED) and len(shapes.NAMED) == 8
    assert list(shapes.parse("zamba2,all,zamba2"))[0] == "zamba2" and len(shapes.parse("zamba2,all")) == 8
    assert shapes.parse("zamba2", "float16")["zamba2"].dtype == "float16"


@pytest.mark.parametrize("name", shapes.NAMED)
def test_a_problem_knows_its_name(name: str) -> None:
    assert shapes.name_of(shapes.parse(name)[name]) == name


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("2.8b", "unknown shape '2.8b'"),
        ("", "unknown shape ''"),
        ("2.7b,,", "unknown shape ''"),
        ("1,2,3", "has 3 numbers where a shape has 6"),
        ("1,2,3,2.7b", "has 3 numbers"),
        ("0,2048,80,64,128,1", "batch is 0"),
        ("1,2048,-80,64,128,1", "nheads is -80"),
        ("1,2048,80,64,128,3", "nheads 80 is not divisible by ngroups 3"),
    ],
)
def test_impossible_shapes(text: str, says: str) -> None:
    with pytest.raises(ShapeNameError) as caught:
        shapes.parse(text)
    assert says in str(caught.value)
    if "unknown" in says:
        assert "nemotron-h" in str(caught.value)


def test_impossible_dtype() -> None:
    with pytest.raises(ShapeNameError, match="bfloat16, float16, float32"):
        shapes.parse("2.7b", "int8")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("8m", 480), ("1.5h", 5400), ("1h30m", 5400), ("45", 45), (" 2M ", 120)]
)
def test_durations(text: str, seconds: float) -> None:
    assert budget.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "8 minutes", "-5m", "0s", "m", "1d", "nan", "5m x"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(BudgetError, match="budget is"):
        budget.seconds(text)


def test_a_budget_is_shared_out_among_what_is_left() -> None:
    now = [100.0]
    shared = Budget(60.0, clock=lambda: now[0])
    assert shared.deadline(3) == 120.0
    now[0] = 105.0  # the first was quicker: the others have more
    assert shared.deadline(2) == 105.0 + 55.0 / 2
    now[0] = 1000.0
    assert shared.deadline(1) == 1000.0
    assert Budget(None).deadline(1) is None


def test_what_searches_take_beyond_their_deadlines_is_not_taken_from_the_last_ones() -> None:
    """Ten searches that each end 3 s late, the first one much later: all but that one have about the same."""
    now = [0.0]
    shared, shares = Budget(60.0, clock=lambda: now[0]), list[float]()
    for left in range(10, 0, -1):
        end = shared.deadline(left)
        assert end is not None and end >= now[0]
        shares.append(end - now[0])
        now[0] = end + (9.0 if left == 10 else 3.0)
    assert min(shares[1:]) > 1.2 and max(shares[1:]) < 3.0
    assert now[0] == pytest.approx(60.0, abs=4.0)
    # one that ends early leaves the rest to the others
    now[0] = 0.0
    shared = Budget(60.0, clock=lambda: now[0])
    assert shared.deadline(3) == 20
    now[0] = 10.0
    assert shared.deadline(2) == 35
