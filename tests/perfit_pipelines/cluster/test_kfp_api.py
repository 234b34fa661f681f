"""The tests' own server is strict: what the published models do not allow, it refuses."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest

from .kfp_models import Invalid, parse, serialise


def post(api, path: str, body: dict) -> tuple[int, dict]:
    request = urllib.request.Request(f"{api.url}/apis/v2beta1{path}", json.dumps(body).encode(), method="POST")
    request.add_header("content-type", "application/json")
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"display_name": "x", "colour": "red"}, "V2beta1RecurringRun has no field colour"),
        ({"display_name": 3}, "display_name must be str"),
        ({"mode": "ON"}, "'ON' is not a value of RecurringRunMode"),
        ({"trigger": {"cron_schedule": {"expression": "*"}}}, "V2beta1CronSchedule has no field expression"),
        ({"trigger": []}, "V2beta1Trigger must be an object"),
        ({"no_catchup": "yes"}, "no_catchup must be bool"),
        ({"max_concurrency": "many"}, "invalid literal"),
        ({"runtime_config": {"parameters": []}}, "parameters must be dict"),
    ],
)
def test_bodies_that_a_model_does_not_allow(body, said):
    with pytest.raises((Invalid, ValueError), match=said):
        parse(body, "V2beta1RecurringRun")


def test_a_model_comes_back_as_it_was():
    body = {"display_name": "x", "mode": "ENABLE", "trigger": {"periodic_schedule": {"interval_second": 60}}}
    body["created_at"] = "2025-11-22T02:00:00+00:00"
    expected = {**body, "trigger": {"periodic_schedule": {"interval_second": "60"}}}
    assert serialise(parse(body, "V2beta1RecurringRun")) == expected


def test_requests_are_checked(api):
    assert post(api, "/experiments", {"display_name": "x", "name": "x"})[0] == 400
    assert post(api, "/experiments", {"display_name": "x"})[0] == 200
    status, answer = post(api, "/experiments", {"display_name": "x"})
    assert (status, answer["code"]) == (409, 6)
    assert post(api, "/runs", {"display_name": "r", "experiment_id": "none"})[0] == 404
    assert post(api, "/nonsense", {})[0] == 404
