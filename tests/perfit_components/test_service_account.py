"""Prepare asks Kubernetes what its service account may do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from perfit.errors import PerfitError
from perfit_components.steps.prepare import prepare
from perfit_components.steps.service_account import check_account

from ..pod_api import pod_api

ANN = {"verb": "get", "name": "perfit-tiny-ann"}
JOBS = {"verb": "create"}


@dataclass
class Api:
    """An API server's access reviews.

    Attributes:
        mount: What a pod of the account has mounted.
        environment: What its pods have.
        allowed: What the account may do with Secrets: verbs, and names; no name means all.
        status: Of every answer.
        asked: The questions.
    """

    mount: Path
    environment: dict[str, str]
    allowed: list[dict[str, str]] = field(default_factory=list)
    status: int = 201
    asked: list[dict[str, str]] = field(default_factory=list)

    def review(self, attributes: dict[str, str]) -> bool:
        """As RBAC: a rule without names is about all, one with names only about these."""
        self.asked.append(attributes)
        rules = [rule for rule in self.allowed if rule["verb"] == attributes["verb"]]
        return any(rule.get("name") in (None, attributes.get("name", "")) for rule in rules)


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    def answer(method: str, path: str, review: dict) -> tuple[int, dict]:
        assert (method, path) == ("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews")
        assert (review["apiVersion"], review["kind"]) == ("authorization.k8s.io/v1", "SelfSubjectAccessReview")
        review["status"] = {"allowed": served.review(review["spec"]["resourceAttributes"])}
        return served.status, review

    with pod_api(tmp_path, answer) as (environment, mount):
        served = Api(mount, environment)
        yield served


def check(api: Api, site) -> None:
    check_account(site.spec, api.environment, api.mount)


@pytest.mark.parametrize(
    ("allowed", "problem"),
    [
        ([{"verb": "get"}, {"verb": "list"}], "may read every Secret"),
        ([{"verb": "list"}], "may list all Secrets"),
        ([ANN], "may read clients' Secrets"),
        ([JOBS], "may create TrainJobs, to whose pods it may give every Secret"),
    ],
)
def test_an_account_that_may_read_the_keys_is_refused(api, make_site, allowed, problem):
    api.allowed = allowed
    with pytest.raises(PerfitError, match=problem) as refused:
        check(api, make_site())
    assert "fill the field Service Account" in refused.value.fix
    assert "cluster.allow_secret_readers: true" in refused.value.fix


def test_an_account_that_may_not_is_taken(api, make_site, capsys):
    api.allowed = [{"verb": "get", "name": "mlpipeline-minio-artifact"}, {"verb": "watch"}]
    check(api, make_site())
    assert [(asked["verb"], asked.get("name")) for asked in api.asked] == [
        ("get", None),
        ("list", None),
        ("get", "perfit-tiny-ann"),
        ("create", None),
    ]
    assert [(asked.get("group"), asked["resource"]) for asked in api.asked] == [
        *[(None, "secrets")] * 3,
        ("trainer.kubeflow.org", "trainjobs"),
    ]
    assert {asked["namespace"] for asked in api.asked} == {"kubeflow"}
    assert capsys.readouterr().out == ""


def test_the_file_may_allow_it(api, make_site):
    api.allowed = [{"verb": "get"}]
    check(api, make_site(cluster={"allow_secret_readers": True}))
    assert api.asked == []


def test_a_server_that_does_not_answer_stops_nothing(api, make_site, capsys):
    for spoil in (
        lambda: setattr(api, "status", 403),
        lambda: (api.mount / "token").write_text("another"),
        lambda: api.environment.update(KUBERNETES_SERVICE_PORT="1"),
    ):
        spoil()
        check(api, make_site())
        assert "Kubernetes did not say whether" in capsys.readouterr().out
    (api.mount / "token").unlink()
    check(api, make_site())
    check_account(make_site().spec, {}, api.mount)
    assert capsys.readouterr().out == ""


def test_prepare_asks_before_it_writes(api, make_site, monkeypatch):
    """With the default place of the mount, which this machine must not have."""
    api.allowed = [{"verb": "get"}]
    monkeypatch.setattr(
        "perfit_components.steps.service_account.check_account.__defaults__", (api.environment, api.mount)
    )
    site = make_site()
    with pytest.raises(PerfitError, match="may read every Secret"):
        prepare(site.spec.to_yaml(), site.store_uri)
    assert not site.root.exists() or not any(site.root.iterdir())
