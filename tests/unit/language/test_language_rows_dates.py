"""The numbered rows 205 to 228 of the request language: rules on dates."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from polytope_server.errors import ConfigurationError, InvalidRequest
from polytope_server.language import rules
from polytope_server.language.coercion import coerce
from polytope_server.language.options import CoercionOptions

NOW = datetime(2024, 6, 15, 14, 30, tzinfo=UTC)
MORNING = NOW.replace(hour=9)
MIDNIGHT = NOW.replace(hour=0, minute=0)


def day(back: int) -> str:
    """T minus so many days."""
    return f"{NOW - timedelta(days=back):%Y%m%d}"


def refusal(rule: Any, wanted: Any, now: datetime = NOW) -> str | None:
    read = rules.read("date", rule, CoercionOptions(), now=now, where="match.date")
    request = coerce({"date": wanted}, CoercionOptions(), now=now)
    return read.refusal(request, now)


MATCHING: list[tuple[int, Any, list[Any]]] = [
    (205, ">30d", [day(31), day(30)]),
    (206, "<40d", [day(39), day(-5)]),
    (207, [">30d", "<40d"], [day(35), day(30), day(39)]),
    (208, "> 30d", [day(31)]),
    (208, " >30d", [day(31)]),
    (210, ">1d12h", [day(1), day(2)]),
    (211, ">30d", [f"{day(60)}/to/{day(40)}", f"{day(60)}/to/{day(40)}/by/5"]),
    (211, ">30d", [[day(60), day(50)], f"{day(60)}/{day(31)}"]),
    (214, "-1/to/-20", [day(5), day(1), day(20)]),
    (214, "-20/to/-1", [day(5), day(1), day(20)]),
    (215, "-1/-5/-10", [day(5)]),
    (216, ["-1/-5", "-20/to/-30"], [day(25)]),
    (217, "2024-01-01/to/2024-12-31", ["20240601"]),
    (218, "-1/to/-20", [f"{day(5)}/{day(6)}", [day(5)]]),
    (219, "-1/to/-20", [f"{day(10)}/to/{day(5)}", f"{day(20)}/to/{day(4)}/by/4"]),
    (221, ["-1/to/-10", "-11/to/-20"], [f"{day(15)}/to/{day(5)}"]),
    (222, "-1/-2/-3", [f"{day(3)}/to/{day(1)}"]),
    (224, 20240105, ["20240105"]),
    (224, date(2024, 1, 5), ["20240105"]),
    (224, [-5, 0], [day(5), day(0)]),
]

NOT_MATCHING: list[tuple[int, Any, list[Any], str]] = [
    (205, ">30d", [day(29)], f"too recent; the latest is {day(30)}"),
    (206, "<40d", [day(40)], f"too old; the earliest is {day(39)}"),
    (207, [">30d", "<40d"], [day(50)], "too old"),
    (207, [">30d", "<40d"], [day(5)], "too recent"),
    (212, ">30d", [f"{day(60)}/to/{day(10)}", [day(60), day(5)]], "too recent"),
    (214, "-1/to/-20", [day(25)], f"{day(25)} is not offered; dates are {day(20)} to {day(1)}"),
    (215, "-1/-5/-10", [day(3)], "is not offered"),
    (218, "-1/to/-20", [f"{day(5)}/{day(21)}"], f"{day(21)} is not offered"),
    (220, "-1/to/-20", [f"{day(25)}/to/{day(5)}"], f"{day(25)} is not offered"),
    (222, "-1/-3", [f"{day(3)}/to/{day(1)}"], f"{day(2)} is not offered"),
    (226, [], [day(1)], "the key date is not allowed"),
]

WRONG: list[tuple[int, list[Any]]] = [
    (209, [">30", ">30w", ">1M", ">", "<", ">-1d", ">1h1d"]),
    (223, ["-1/to/-20/by/2", "notadate", "today", "=30d", [">30d", "-1/to/-20"]]),
    (225, ["", [""], "/", "-1//-3"]),
    (228, ["05", "5", "+5", "00"]),
    (223, ["2024-02-30", "202401", 1.5, True, {"a": 1}, ["-1", None]]),
]


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [pytest.param(r, w, id=f"row{n}-{r}-{w}") for n, r, each in MATCHING for w in each],
)
def test_dates_that_a_rule_offers_are_taken(rule: Any, wanted: Any) -> None:
    assert refusal(rule, wanted) is None


@pytest.mark.parametrize(
    ("rule", "wanted", "said"),
    [pytest.param(r, w, s, id=f"row{n}-{r}-{w}") for n, r, each, s in NOT_MATCHING for w in each],
)
def test_other_dates_are_refused_with_those_on_offer(rule: Any, wanted: Any, said: str) -> None:
    reason = refusal(rule, wanted)
    assert reason is not None
    assert said in reason


@pytest.mark.parametrize(
    "rule", [pytest.param(r, id=f"row{n}-{r}") for n, each in WRONG for r in each]
)
def test_what_is_no_rule_is_found_at_the_start(rule: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^match\.date: "):
        rules.read("date", rule, CoercionOptions(), now=NOW, where="match.date")


def test_row210_a_rule_in_hours_depends_on_the_hour() -> None:
    assert refusal(">1d12h", day(1), now=NOW) is None
    assert "too recent" in (refusal(">1d12h", day(1), now=MORNING) or "")


def test_a_day_is_as_old_as_its_start_at_midnight_too() -> None:
    assert refusal(">30d", day(30), now=MIDNIGHT) is None
    assert "too old" in (refusal("<40d", day(40), now=MIDNIGHT) or "")


def test_rows213_and_227_lists_of_ranges_and_empty_lists_never_reach_a_rule() -> None:
    for wanted in ([f"{day(60)}/to/{day(50)}"], []):
        with pytest.raises(InvalidRequest, match="date: a"):
            refusal(">30d", wanted)
    assert rules.read("date", "-1", CoercionOptions(), now=NOW, where="w").refusal({}, NOW)


def test_rules_from_before_the_calendar_are_no_trouble() -> None:
    assert "too recent" in (refusal(">999999d", "00010101") or "")
    assert refusal("<999999d", "00010101") is None
    assert refusal("0/to/-999999", "00010101") is None
    assert "is not offered" in (refusal("-999998/to/-999999", day(0)) or "")
