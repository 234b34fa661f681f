"""Who may talk to whom."""

from __future__ import annotations

import pytest

from .network import Peer, allows, matches
from .rendering import OVERLAYS, WITH_MINIO, WITH_STORE, of_kind, pod_templates, run_namespace, store_of

DNS = Peer("10.244.9.1", "kube-system", {"k8s-app": "kube-dns"})
API_SERVER = Peer("172.18.0.2")
HUB = Peer("18.164.174.23")
HUB_6 = Peer("2600:9000:2000::1")
CLOUD_METADATA = Peer("169.254.169.254")
KFP = {
    8887: Peer("10.244.9.2", "kubeflow", {"app": "ml-pipeline"}),
    8080: Peer("10.244.9.3", "kubeflow", {"component": "metadata-grpc-server"}),
    8333: Peer("10.244.9.4", "kubeflow", {"app": "seaweedfs"}),
}
MYSQL = Peer("10.244.9.5", "kubeflow", {"app": "mysql"})
MINIO = Peer("10.244.1.1", "perfit", {"app.kubernetes.io/name": "minio"})
SEAWEEDFS = Peer("10.244.1.4", "perfit", {"app.kubernetes.io/name": "seaweedfs"})
SETUP = Peer("10.244.1.2", "perfit", {"app.kubernetes.io/name": "minio-setup"})
ROLES = ("client", "prepare", "server")


def store(overlay: str) -> Peer:
    """The store of an overlay that brings one."""
    return {"minio": MINIO, "seaweedfs": SEAWEEDFS}[store_of(overlay).name]


def task(overlay: str, role: str = "client") -> Peer:
    labels = {"perfit/role": role, "pipelines.kubeflow.org/v2_component": "true"}
    return Peer("10.244.2.1", run_namespace(overlay), labels)


def stranger(namespace: str) -> Peer:
    """A pod that is not ours, in whatever namespace."""
    return Peer("10.244.3.1", namespace, {"app": "notebook", "pipelines.kubeflow.org/v2_component": "true"})


def may(overlay: str, source: Peer, target: Peer, port: int, protocol: str = "TCP") -> bool:
    return allows(of_kind(overlay, "NetworkPolicy"), source, target, port, protocol)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("overlay", WITH_STORE)
def test_tasks_reach_the_store_and_nothing_else_of_it(overlay, role):
    port = store_of(overlay).port
    assert may(overlay, task(overlay, role), store(overlay), port)
    for other in (port + 1, 8888, 9333, 18333):
        assert not may(overlay, task(overlay, role), store(overlay), other)
    assert not may(overlay, task(overlay, role), SETUP, 9000)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_tasks_reach_what_kubeflow_runs_them_by(overlay, role):
    for protocol in ("UDP", "TCP"):
        assert may(overlay, task(overlay, role), DNS, 53, protocol)
        assert may(overlay, task(overlay, role), Peer("169.254.20.10"), 53, protocol)
    assert may(overlay, task(overlay, role), API_SERVER, 6443)
    for port, server in KFP.items():
        assert may(overlay, task(overlay, role), server, port)
        assert not may(overlay, task(overlay, role), server, 22)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_tasks_reach_no_other_place(overlay, role):
    source = task(overlay, role)
    assert not may(overlay, source, MYSQL, 3306)
    assert not may(overlay, source, stranger(run_namespace(overlay)), 8888)
    assert not may(overlay, source, task(overlay, "client"), 8080)
    assert not may(overlay, source, HUB, 80)
    assert not may(overlay, source, HUB, 53, "UDP")
    assert not may(overlay, source, CLOUD_METADATA, 80)
    assert not may(overlay, source, CLOUD_METADATA, 443)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_model_hub_is_open_to_those_who_load_the_model_where_an_overlay_says_so(overlay):
    reached = {role for role in ROLES for hub in (HUB, HUB_6) if may(overlay, task(overlay, role), hub, 443)}
    assert reached == ({"client", "prepare"} if overlay == "overlays/kind" else set())


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nobody_opens_connections_to_tasks(overlay):
    for source in (stranger(run_namespace(overlay)), stranger("other"), task(overlay), MINIO, HUB):
        assert not may(overlay, source, task(overlay), 8080)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_other_pods_of_the_run_namespace_keep_their_freedom(overlay):
    other = stranger(run_namespace(overlay))
    assert may(overlay, other, MYSQL, 3306)
    assert may(overlay, other, HUB, 443)
    assert may(overlay, HUB, other, 8888)


@pytest.mark.parametrize("overlay", WITH_MINIO)
def test_minios_setup_reaches_minio(overlay):
    assert may(overlay, SETUP, MINIO, 9000)
    assert may(overlay, SETUP, DNS, 53, "UDP")


@pytest.mark.parametrize("overlay", WITH_STORE)
def test_the_store_answers_nobody_else(overlay):
    elsewhere = Peer("10.244.2.2", "other", {"perfit/role": "client"})
    within = Peer("10.244.1.3", "perfit", {})
    for source in (stranger(run_namespace(overlay)), stranger("kubeflow"), elsewhere, within, HUB):
        assert not may(overlay, source, store(overlay), store_of(overlay).port)


@pytest.mark.parametrize("overlay", WITH_STORE)
def test_the_store_asks_nobody(overlay):
    for target, port in ((HUB, 443), (API_SERVER, 6443), (DNS, 53), (task(overlay), 8080)):
        assert not may(overlay, store(overlay), target, port)
    for target, port in ((HUB, 443), (API_SERVER, 6443), (stranger("other"), 80)):
        assert not may(overlay, SETUP, target, port)


def test_an_existing_store_is_reached_at_its_address_alone():
    overlay = "overlays/existing-minio"
    for role in ROLES:
        assert may(overlay, task(overlay, role), Peer("192.0.2.10"), 443)
        assert not may(overlay, task(overlay, role), Peer("192.0.2.11"), 443)
        assert not may(overlay, task(overlay, role), MINIO, 9000)


@pytest.mark.parametrize("overlay", WITH_STORE)
def test_these_tests_know_the_pods_by_their_real_labels(overlay):
    labels = [template["metadata"]["labels"] for _, template in pod_templates(overlay)]
    for pod in (store(overlay), *([SETUP] if store_of(overlay).setup_job else [])):
        assert any(pod.labels.items() <= real.items() for real in labels)


# The evaluator itself, by hand-made cases.


def policy(namespace: str = "a", **spec) -> dict:
    return {"metadata": {"namespace": namespace}, "spec": {"podSelector": {}, **spec}}


A, B = Peer("10.0.0.1", "a", {"app": "x"}), Peer("10.0.0.2", "b", {"app": "y"})
FROM_B = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "b"}}}


@pytest.mark.parametrize(
    ("expected", "policies"),
    [
        pytest.param(True, [], id="no policy"),
        pytest.param(False, [policy()], id="a selected pod without rules"),
        pytest.param(True, [policy(podSelector={"matchLabels": {"app": "other"}})], id="another pod selected"),
        pytest.param(True, [policy("c")], id="another namespace's policy"),
        pytest.param(True, [policy(policyTypes=["Egress"])], id="the other direction"),
        pytest.param(True, [policy(ingress=[{}])], id="an empty rule allows all"),
        pytest.param(True, [policy(ingress=[{"from": [FROM_B]}])], id="by namespace"),
        pytest.param(False, [policy(ingress=[{"from": [{"podSelector": {}}]}])], id="of the same namespace only"),
        pytest.param(
            False, [policy(ingress=[{"from": [FROM_B | {"podSelector": {"matchLabels": {"app": "z"}}}]}])], id="and"
        ),
        pytest.param(
            True, [policy(ingress=[{"from": [FROM_B, {"podSelector": {"matchLabels": {"app": "z"}}}]}])], id="or"
        ),
        pytest.param(True, [policy(), policy(ingress=[{"from": [FROM_B]}])], id="policies add up"),
        pytest.param(False, [policy(ingress=[{"from": [FROM_B], "ports": [{"port": 81}]}])], id="another port"),
        pytest.param(True, [policy(ingress=[{"ports": [{"port": 79, "endPort": 81}]}])], id="a range of ports"),
        pytest.param(False, [policy(ingress=[{"ports": [{"port": 80, "protocol": "UDP"}]}])], id="another protocol"),
        pytest.param(True, [policy(ingress=[{"from": [{"ipBlock": {"cidr": "10.0.0.0/30"}}]}])], id="an address"),
        pytest.param(
            False,
            [policy(ingress=[{"from": [{"ipBlock": {"cidr": "10.0.0.0/30", "except": ["10.0.0.2/32"]}}]}])],
            id="an exception",
        ),
        pytest.param(False, [policy("b", policyTypes=["Egress"])], id="the source may not leave"),
        pytest.param(False, [policy("b", egress=[{"to": [FROM_B]}])], id="the source may leave elsewhere"),
    ],
)
def test_evaluation_of_b_to_a_on_port_80(expected, policies):
    assert allows(policies, B, A, 80) == expected


@pytest.mark.parametrize(
    ("operator", "values", "expected"),
    [
        ("In", ["x"], True),
        ("In", ["y"], False),
        ("NotIn", ["y"], True),
        ("Exists", [], True),
        ("DoesNotExist", [], False),
    ],
)
def test_selection_by_expression(operator, values, expected):
    assert matches({"matchExpressions": [{"key": "app", "operator": operator, "values": values}]}, A.labels) == expected
