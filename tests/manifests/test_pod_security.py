"""Every pod keeps to the level "restricted", which its namespace enforces."""

from __future__ import annotations

import copy
import json

import pytest
import yaml

from .pod_security import CONTROLS, violations
from .rendering import MANIFESTS, OVERLAYS, WITH_STORE, containers, only, pod_templates, store_of
from .test_rendering import KUBERNETES, schema_errors


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_restricted(overlay):
    for where, template in pod_templates(overlay):
        assert violations(template) == [], where


def test_the_job_that_opens_volumes_is_restricted_and_gives_them_to_the_tasks_group():
    job = yaml.safe_load((MANIFESTS / "volumes/open.yaml").read_text())
    assert all(schema_errors(json.dumps(job), version) is None for version in KUBERNETES)
    assert violations(job["spec"]["template"]) == []
    assert job["spec"]["template"]["spec"]["securityContext"]["fsGroup"] == 10001


@pytest.mark.parametrize("overlay", WITH_STORE)
def test_the_namespace_refuses_any_other(overlay):
    labels = only(overlay, "Namespace", "perfit")["metadata"]["labels"]
    assert {labels[f"pod-security.kubernetes.io/{mode}"] for mode in ("enforce", "audit", "warn")} == {"restricted"}


@pytest.mark.parametrize("overlay", WITH_STORE)
def test_pods_write_to_volumes_alone_as_the_projects_user_and_without_a_token(overlay):
    names = []
    for where, template in pod_templates(overlay):
        spec = template["spec"]
        names.append(where)
        context = spec["securityContext"]
        assert (context["runAsUser"], context["runAsGroup"], context["fsGroup"]) == (10001, 10001, 10001), where
        assert all(container["securityContext"]["readOnlyRootFilesystem"] for container in containers(spec)), where
        assert spec["automountServiceAccountToken"] is False, where
        assert all({"requests", "limits"} <= set(container["resources"]) for container in containers(spec)), where
    store = store_of(overlay)
    assert names == [
        f"StatefulSet perfit/{store.name}",
        *([f"Job perfit/{store.setup_job}"] if store.setup_job else []),
    ]


GOOD = {
    "metadata": {},
    "spec": {
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [
            {
                "name": "main",
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                "ports": [{"containerPort": 80}],
                "livenessProbe": {"httpGet": {"path": "/", "port": 80}},
            }
        ],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    },
}

BAD = [
    ("HostProcess", "securityContext.windowsOptions", {"hostProcess": True}),
    ("Host Namespaces", "hostPID", True),
    ("Host Namespaces", "hostNetwork", True),
    ("Privileged Containers", "containers.0.securityContext.privileged", True),
    ("Host Ports", "containers.0.ports.0.hostPort", 80),
    ("Host Probes / Lifecycle Hooks", "containers.0.livenessProbe.httpGet.host", "10.0.0.1"),
    ("Host Probes / Lifecycle Hooks", "containers.0.lifecycle", {"preStop": {"tcpSocket": {"host": "x", "port": 1}}}),
    ("AppArmor", "containers.0.securityContext.appArmorProfile", {"type": "Unconfined"}),
    ("SELinux", "securityContext.seLinuxOptions", {"type": "spc_t"}),
    ("SELinux", "containers.0.securityContext.seLinuxOptions", {"user": "system_u"}),
    ("/proc Mount Type", "containers.0.securityContext.procMount", "Unmasked"),
    ("Sysctls", "securityContext.sysctls", [{"name": "kernel.msgmax", "value": "1"}]),
    ("Volume Types", "volumes.0", {"name": "host", "hostPath": {"path": "/"}}),
    ("Volume Types", "volumes.0", {"name": "share", "nfs": {"server": "x", "path": "/"}}),
    ("Privilege Escalation", "containers.0.securityContext.allowPrivilegeEscalation", True),
    ("Privilege Escalation", "containers.0.securityContext", {"capabilities": {"drop": ["ALL"]}}),
    ("Running as Non-root", "securityContext.runAsNonRoot", None),
    ("Running as Non-root", "containers.0.securityContext.runAsNonRoot", False),
    ("Running as Non-root user", "securityContext.runAsUser", 0),
    ("Seccomp", "securityContext.seccompProfile", {"type": "Unconfined"}),
    ("Seccomp", "containers.0.securityContext.seccompProfile", {"type": "Unconfined"}),
    ("Seccomp", "securityContext", {"runAsNonRoot": True}),
    ("Capabilities", "containers.0.securityContext.capabilities", {"drop": ["NET_RAW"]}),
    ("Capabilities", "containers.0.securityContext.capabilities", {"drop": ["ALL"], "add": ["SYS_ADMIN"]}),
]


@pytest.mark.parametrize(("control", "path", "value"), BAD)
def test_a_bad_pod_breaks_the_control_that_forbids_it(control, path, value):
    bad = copy.deepcopy(GOOD)
    *parents, key = path.split(".")
    place = bad["spec"]
    for name in parents:
        place = place[int(name)] if name.isdigit() else place[name]
    place[int(key) if key.isdigit() else key] = value
    assert violations(bad) == [control]


@pytest.mark.parametrize("kind", ["initContainers", "ephemeralContainers"])
def test_no_container_is_overlooked(kind):
    bad = copy.deepcopy(GOOD)
    bad["spec"][kind] = [{"name": "other"}]
    assert violations(bad) == ["Capabilities", "Privilege Escalation"]


def test_a_good_pod_breaks_nothing_and_containers_may_say_it_each_for_itself():
    assert violations(GOOD) == []
    own = copy.deepcopy(GOOD)
    own["spec"]["containers"][0]["securityContext"] |= own["spec"].pop("securityContext")
    own["spec"]["containers"][0]["securityContext"]["capabilities"]["add"] = ["NET_BIND_SERVICE"]
    assert violations(own) == []


def test_annotations_of_old_clusters_count():
    bad = {
        "spec": GOOD["spec"],
        "metadata": {"annotations": {"container.apparmor.security.beta.kubernetes.io/main": "unconfined"}},
    }
    assert violations(bad) == ["AppArmor"]


def test_every_control_is_exercised():
    assert {control for control, _, _ in BAD} == set(CONTROLS)
