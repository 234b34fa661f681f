import pytest
from croniter import croniter

from perfit.errors import PerfitError
from perfit_pipelines.cluster.options import check_cron, parse_duration, parse_interval


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("24h", 86400), ("1h30m", 5400), ("1h 30m", 5400), ("1.5h", 5400), ("1d", 86400), ("2w", 1209600)],
)
def test_durations(text, seconds):
    assert parse_duration(text, "--every") == seconds


@pytest.mark.parametrize("text", ["", "24", "h", "0h", "-1h", "1ms", "24H", "1hx", "9" * 20 + "w"])
def test_what_is_no_duration(text):
    with pytest.raises(PerfitError, match="is not a duration"):
        parse_duration(text, "--every")


def test_an_interval_under_a_minute():
    with pytest.raises(PerfitError, match="shorter than any round"):
        parse_interval("59s")


@pytest.mark.parametrize(
    "expression",
    [
        "0 0 2 * * *",
        "0 */15 * * * *",
        "0 0 9-17/2 ? * MON-FRI",
        "0,30 59 23 31 12 6",
        "0 0 0 1 jan,JUL sun",
        "0 5/10 * * * ?",
    ],
)
def test_cron_of_six_fields(expression):
    assert check_cron(f"  {expression} ") == expression


def test_five_fields_would_be_read_shifted_by_one():
    with pytest.raises(PerfitError, match="five fields") as error:
        check_cron("0 2 * * *")
    assert error.value.fix == "put a 0 before it: --cron '0 0 2 * * *'"


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("", "0 fields"),
        ("* * *", "3 fields"),
        ("0 0 2 * * * 2030", "7 fields"),
        ("@daily", "short name"),
        ("60 0 2 * * *", "second '60' is not within 0-59"),
        ("0 60 2 * * *", "minute '60' is not within 0-59"),
        ("0 0 24 * * *", "hour '24' is not within 0-23"),
        ("0 0 2 0 * *", "day of the month '0' is not within 1-31"),
        ("0 0 2 32 * *", "day of the month '32' is not within 1-31"),
        ("0 0 2 * 13 *", "month '13' is not within 1-12"),
        ("0 0 2 * * 7", "day of the week '7' is not within 0-6"),
        ("0 0 2 * * FOO", "day of the week 'FOO' is not a value or a range"),
        ("0 0 17-9 * * *", "hour '17-9' ends before it begins"),
        ("0 0 1-2-3 * * *", "hour '1-2-3' is not a value or a range"),
        ("0 */0 * * * *", "minute '\\*/0' has a step that is not a positive number"),
        ("0 */x * * * *", "has a step"),
        ("0 1,,2 * * * *", "minute '' is not a value"),
    ],
)
def test_cron_that_kubeflow_would_not_read_as_meant(expression, problem):
    with pytest.raises(PerfitError, match=problem):
        check_cron(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "0 2 * * *",
        "0 0 2 * * * 2030",
        "@daily",
        "0 0 2 * * 7",
        "0 0 17-9 * * *",
        "0 0 2 l * *",
        "0 0 2 * * 1#2",
        "R 0 2 * * *",
    ],
)
def test_what_croniter_would_let_through(expression):
    """Which is why our own check is kept: Kubeflow's parser refuses these, or reads them shifted by one field."""
    assert croniter.is_valid(expression, second_at_beginning=True)
    with pytest.raises(PerfitError):
        check_cron(expression)
