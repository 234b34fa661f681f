"""``perfit doctor`` as a user runs it."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from perfit_storage import open_store

from .conftest import amounts, node


def test_a_cluster_in_order(site):
    result = site.examine("--json")
    assert result.exit_code == 0, result.output
    checks = json.loads(result.output)["checks"]
    assert {(check["status"], check["fix"]) for check in checks} == {("ok", "")}
    assert [check["name"] for check in checks] == [
        *("Kubeflow Pipelines", "namespace", "service account", "Secrets", "store", "volumes"),
        *("tier gpu", "tier small", "server", "images", "images", "quota"),
    ]


def test_nothing_is_changed(site):
    before = copy.deepcopy(site.cluster.objects)
    administrator = open_store("s3://perfit", site.store.server.administrator)
    held = {key: administrator.get(key).data for key in administrator.list("")}
    site.examine()
    assert site.cluster.objects == before
    assert {request.split()[0] for request in site.cluster.requests} == {"GET"}
    assert {key: administrator.get(key).data for key in administrator.list("")} == held


def test_the_table_names_the_problem_and_its_fix_and_no_secret(site):
    site.remove("Secret", "perfit-tiny-bob", "kubeflow")
    result = site.examine()
    assert result.exit_code == 1
    assert "there is no Secret perfit-tiny-bob in namespace kubeflow" in result.output
    assert "fix: make it with: perfit deploy FILE --overlay NAME --apply --namespace kubeflow" in result.output
    assert result.output.splitlines()[-1] == "1 fail, 11 ok"
    assert "secret-ann" not in result.output


def test_all_is_found_in_one_run(site):
    site.remove("ServiceAccount", "perfit-runner", "kubeflow")
    site.remove("PersistentVolumeClaim", "ann-data", "kubeflow")
    site.cluster.add(node("big", labels={"pool": "gpus"}, allocatable=amounts("16", "64Gi", gpus="1")))
    site.pipelines.health = {"tag_name": "2.15.0"}
    findings = [(check["status"], check["name"]) for check in site.findings()]
    assert findings == [
        ("fail", "Kubeflow Pipelines"),
        ("fail", "service account"),
        ("fail", "volumes"),
        ("fail", "tier gpu"),
    ]


@pytest.mark.parametrize(
    ("health", "status", "finding"),
    [
        ({"tag_name": "2.16.0"}, "fail", "version 2.16.0 at http://.* is older than 2.16.1"),
        ({"tag_name": "2.16.1"}, "warn", "ends no run by itself"),
        ({"tag_name": "2.18.0"}, "warn", "newer than this release knows"),
        ({"tag_name": "1.8.22"}, "fail", "is older than 2.16.1"),
        ({"multi_user": False}, "unknown", "gives 'nothing' as its version"),
        ({"tag_name": "unknown"}, "unknown", "gives 'unknown' as its version"),
        ({"tag_name": "2.17.0", "multi_user": True}, "warn", "it serves several users"),
        (b"<html>log in</html>", "fail", "answered with a web page"),
    ],
)
def test_kubeflow_pipelines(site, health, status, finding):
    site.pipelines.health = health
    found = site.only(status, "Kubeflow Pipelines", "--namespace", "kubeflow")
    assert re.search(finding, found["finding"]), found


@pytest.mark.parametrize("tag", ["2.17.0", "2.17.0-rc.1", "v2.17.9"])
def test_kubeflow_new_enough_and_as_its_ui_says_it(site, tag):
    site.pipelines.health = {"apiServerTagName": tag, "apiServerReady": True}
    assert site.findings() == []


def test_the_service_account_of_runs(site):
    assert "no service account other" in site.only("fail", "service account", "--service-account", "other")["finding"]


def test_kubeflow_that_does_not_answer(site):
    site.pipelines.url = "http://127.0.0.1:1"
    assert "cannot be reached" in site.only("fail", "Kubeflow Pipelines")["finding"]


def test_no_cluster(site, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(site.directory / "none"))
    assert "no Kubernetes cluster is known" in site.only("fail", "Kubernetes")["finding"]


def test_a_cluster_that_does_not_answer(site):
    kubeconfig = Path(os.environ["KUBECONFIG"])
    kubeconfig.write_text(kubeconfig.read_text().replace(site.cluster.url, "http://127.0.0.1:1"))
    assert "http://127.0.0.1:1 cannot be reached" in site.only("fail", "Kubernetes")["finding"]


def test_a_context_that_is_not_in_the_kubeconfig(site):
    assert "other" in site.only("fail", "Kubernetes", "--context", "other")["finding"]
    assert site.findings("--context", "test") == []


def test_another_namespace(site):
    found = site.findings("--namespace", "alice")
    assert ("fail", "there is no namespace alice") in [(check["status"], check["finding"]) for check in found]


@pytest.mark.parametrize(
    ("plural", "names"),
    [
        ("namespaces", {"namespace"}),
        ("serviceaccounts", {"service account"}),
        ("secrets", {"Secrets", "store"}),
        ("nodes", {"nodes"}),
        ("persistentvolumeclaims", {"volumes"}),
        ("resourcequotas", {"quota"}),
    ],
)
def test_what_a_user_may_not_read_is_unknown(site, plural, names):
    site.cluster.forbidden.add(plural)
    found = site.findings()
    assert {check["name"] for check in found} == names
    assert {check["status"] for check in found} == {"unknown"}
    assert all(check["fix"] for check in found)


def test_its_help_comes_at_once():
    code = (
        "import sys, typer\nfrom perfit_pipelines import deploy, doctor\napp = typer.Typer()\n"
        "deploy.register(app)\ndoctor.register(app)\n"
        "print(*{'kfp', 'kubernetes', 'minio', 'numpy', 'torch'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "\n"


def test_a_cluster_without_nodes_fits_no_tier(site):
    site.cluster.objects = {key: item for key, item in site.cluster.objects.items() if item["kind"] != "Node"}
    failed = [check for check in site.findings() if check["status"] == "fail"]
    assert [check["name"] for check in failed] == ["tier gpu", "tier small", "server"]
    assert failed[0]["finding"] == "none of 0 nodes takes its pods: there are none"
