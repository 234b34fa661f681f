"""What the Kubernetes API gives to whom: exactly this."""

from __future__ import annotations

import pytest

from .rendering import OVERLAYS, of_kind, only, run_namespace

RUNNER = [
    ("argoproj.io", "workflowtaskresults", None, "create patch"),
    ("", "configmaps", "kfp-launcher", "get"),
    ("", "secrets", "mlpipeline-minio-artifact", "get"),
    ("", "pods", None, "get list"),
]
DOCTOR = [
    ("", "persistentvolumeclaims", None, "get"),
    ("", "configmaps", None, "get"),
    ("", "resourcequotas", None, "list"),
    ("", "limitranges", None, "list"),
    ("", "serviceaccounts", "perfit-runner", "get"),
    ("", "pods", None, "list"),
    ("argoproj.io", "workflows", None, "list"),
    ("kueue.x-k8s.io", "localqueues", None, "get"),
    ("batch", "cronjobs", "perfit-queue-limit", "get"),
]
DOCTOR_CLUSTER = [
    ("", "nodes", None, "list"),
    ("", "namespaces", None, "get"),
    ("storage.k8s.io", "storageclasses", None, "get"),
    ("kueue.x-k8s.io", "workloadpriorityclasses", None, "get"),
    ("", "configmaps", "kueue-manager-config", "get"),
    ("trainer.kubeflow.org", "clustertrainingruntimes", None, "get"),
]
READING = {"get", "list", "watch"}
WRITING_ALLOWED = {("workflowtaskresults", "create"), ("workflowtaskresults", "patch")}


def rules(role: dict) -> list[tuple[str, str, str | None, str]]:
    """Group, resource, name and verbs of each rule; each of ours has one of each."""
    found = []
    for rule in role["rules"]:
        ((group,), (resource,), (name,)) = rule["apiGroups"], rule["resources"], rule.get("resourceNames", [None])
        found.append((group, resource, name, " ".join(rule["verbs"])))
    return found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_roles_grant_what_is_justified_and_no_more(overlay):
    granted = {
        (role["kind"], role["metadata"]["name"]): rules(role) for role in of_kind(overlay, "Role", "ClusterRole")
    }
    assert granted == {
        ("Role", "perfit-runner"): RUNNER,
        ("Role", "perfit-doctor"): DOCTOR,
        ("ClusterRole", "perfit-doctor"): DOCTOR_CLUSTER,
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nothing_is_granted_by_wildcard_and_nothing_written_but_tasks_results(overlay):
    for role in of_kind(overlay, "Role", "ClusterRole"):
        assert "aggregationRule" not in role
        for group, resource, name, verbs in rules(role):
            assert not any("*" in (text or "") for text in (group, resource, name, verbs))
            for verb in verbs.split():
                assert verb in READING or (resource, verb) in WRITING_ALLOWED
            # A list would show every Secret, whatever names the rule gives.
            if resource == "secrets":
                assert name
                assert verbs == "get"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_only_runs_are_bound_to_a_role(overlay):
    assert of_kind(overlay, "ClusterRoleBinding") == []
    (binding,) = of_kind(overlay, "RoleBinding")
    namespace = run_namespace(overlay)
    assert binding["metadata"]["namespace"] == namespace
    assert binding["roleRef"] == {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "perfit-runner"}
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "perfit-runner", "namespace": namespace}]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_account_but_that_of_runs_has_a_token(overlay):
    accounts = of_kind(overlay, "ServiceAccount")
    assert [a["metadata"]["name"] for a in accounts if a["automountServiceAccountToken"]] == ["perfit-runner"]
    assert only(overlay, "ServiceAccount", "perfit-runner")["metadata"]["namespace"] != "perfit"
