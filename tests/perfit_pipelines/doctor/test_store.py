"""The store's check, against a real SeaweedFS with right and wrong policies."""

from __future__ import annotations

import copy
import re
import socket

import pytest

from perfit.errors import PerfitError
from perfit_pipelines.deploy.policies import client_policy, server_policy
from perfit_pipelines.doctor.secrets_check import RoleKeys
from perfit_pipelines.doctor.store_owner_check import _is_kubeflows
from perfit_storage import open_store

from ...authority import make_authority
from ...faults.s3_proxy import Behaviour, faulty
from ..store_roles import SERVER, role_policies
from .conftest import secret_object

BUCKET = "arn:aws:s3:::perfit"
ROOT = f"{BUCKET}/federations/tiny"


def allow(action: str, resource: str, **more) -> dict:
    return {"Effect": "Allow", "Action": [action], "Resource": [resource], **more}


def key_for(site, name: str, role: str, policy: dict) -> None:
    """Give a role another key, with another policy, in its Secret."""
    site.store.server.add_users({name: (f"secret-of-{name}", policy)})
    secret = "perfitserver-tiny" if role == SERVER else f"perfit-tiny-{role}"
    site.add_keys(secret, role, AWS_ACCESS_KEY_ID=name, AWS_SECRET_ACCESS_KEY=f"secret-of-{name}")


@pytest.mark.parametrize(
    ("name", "statement", "finding"),
    [
        ("reads", allow("s3:GetObject", f"{ROOT}/clients/*"), "may read clients/bob/perfit-doctor"),
        ("updates", allow("s3:GetObject", f"{ROOT}/rounds/*"), "may read rounds/1/updates/bob.json"),
        ("states", allow("s3:GetObject", f"{ROOT}/rounds/*/state.safetensors"), "may read rounds/0/state.safetensors"),
        ("masks", allow("s3:GetObject", f"{ROOT}/masks/*"), "may read masks/bob/0"),
        ("lists", allow("s3:ListBucket", BUCKET), "may list everything"),
        (
            "names",
            allow("s3:ListBucket", BUCKET, Condition={"StringEquals": {"s3:prefix": "federations/tiny/clients/"}}),
            "may list clients/",
        ),
        ("writes", allow("s3:PutObject", f"{ROOT}/clients/*"), "may write clients/bob/perfit-doctor"),
        ("heads", allow("s3:PutObject", f"{ROOT}/head.json"), "may write head.json"),
        ("plans", allow("s3:PutObject", f"{ROOT}/rounds/1/plan.json"), "may write rounds/1/plan.json"),
        ("moments", allow("s3:PutObject", f"{ROOT}/rounds/0/state.*"), "may write rounds/0/state.safetensors"),
    ],
)
def test_a_client_that_may_too_much(site, name, statement, finding):
    policy = copy.deepcopy(role_policies(site.store.spec, "s3://perfit")["ann"])
    policy["Statement"].append(statement)
    key_for(site, f"much-{name}", "ann", policy)
    found = site.only("fail", "store")["finding"]
    assert found.startswith("the key of ann (Secret perfit-tiny-ann)")
    assert finding in found
    assert "not its own" in found


@pytest.mark.parametrize(
    ("statement", "finding"),
    [
        (0, "may not read clients/ann/perfit-doctor"),
        (1, r"cannot read s3://perfit/federations/tiny/spec.yaml"),
        (2, "may not list what begins with masks/ann/"),
    ],
)
def test_a_client_that_may_too_little(site, statement, finding):
    policy = copy.deepcopy(role_policies(site.store.spec, "s3://perfit")["ann"])
    del policy["Statement"][statement]
    key_for(site, f"little-{statement}", "ann", policy)
    assert finding in site.only("fail", "store")["finding"]


def test_a_client_that_may_not_write(site):
    policy = copy.deepcopy(role_policies(site.store.spec, "s3://perfit")["ann"])
    policy["Statement"][0]["Action"] = ["s3:GetObject"]
    key_for(site, "mute", "ann", policy)
    assert "may not write clients/ann/perfit-doctor" in site.only("fail", "store")["finding"]


def test_a_server_that_reads_clients_files(site):
    policy = server_policy(site.store.spec, "s3://perfit")
    denied = policy["Statement"].pop()
    assert (denied["Effect"], denied["Resource"][0]) == ("Deny", f"{ROOT}/clients/*")
    policy["Statement"].append(allow("s3:GetObject", f"{ROOT}/*"))
    key_for(site, "curious", SERVER, policy)
    found = site.only("fail", "store")["finding"]
    assert "the key of the server (Secret perfitserver-tiny) may read clients/ann/perfit-doctor" in found


@pytest.mark.parametrize(
    ("lacks", "path"),
    [
        ("/state.", "rounds/0/state.safetensors"),
        ("/served.json", "rounds/0/served.json"),
        ("/files/", f"files/{'0' * 64}.yaml"),
    ],
)
def test_a_server_whose_policy_is_older_than_what_it_writes(site, lacks, path):
    policy = server_policy(site.store.spec, "s3://perfit")
    written = policy["Statement"][1]
    written["Resource"] = [resource for resource in written["Resource"] if lacks not in resource]
    key_for(site, f"old-{lacks.strip('/.')}", SERVER, policy)
    assert f"may not write {path}" in site.only("fail", "store")["finding"]


def test_a_server_whose_policy_is_older_than_the_list_of_a_round_s_records(site):
    policy = server_policy(site.store.spec, "s3://perfit")
    prefixes = policy["Statement"][2]["Condition"]["StringLike"]
    prefixes["s3:prefix"] = [prefix for prefix in prefixes["s3:prefix"] if "updates" not in prefix]
    key_for(site, "blind", SERVER, policy)
    assert "may not list what begins with rounds/1/updates/" in site.only("fail", "store")["finding"]


def test_a_server_that_reads_other_federations(site):
    policy = server_policy(site.store.spec, "s3://perfit")
    policy["Statement"].append(allow("s3:GetObject", f"{BUCKET}/federations/*/head.json"))
    key_for(site, "shared", SERVER, policy)
    assert "may read other federations" in site.only("fail", "store")["finding"]


def test_a_client_that_lists_anothers_masks(site):
    policy = copy.deepcopy(role_policies(site.store.spec, "s3://perfit")["ann"])
    condition = {"StringLike": {"s3:prefix": ["federations/tiny/masks/*"]}}
    policy["Statement"].append(allow("s3:ListBucket", BUCKET, Condition=condition))
    key_for(site, "prefix", "ann", policy)
    assert "may list masks/, which is not its own" in site.only("fail", "store")["finding"]


def test_policies_of_another_store(site):
    policy = client_policy(site.store.spec, site.store.spec.clients[0], "s3://other")
    key_for(site, "elsewhere", "ann", policy)
    assert "cannot read s3://perfit/federations/tiny/spec.yaml" in site.only("fail", "store")["finding"]


@pytest.mark.parametrize(
    ("changes", "finding", "fix"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "SignatureDoesNotMatch", "correct AWS_SECRET_ACCESS_KEY"),
        ({"AWS_ACCESS_KEY_ID": "NOBODY"}, "InvalidAccessKeyId", "correct AWS_ACCESS_KEY_ID"),
    ],
)
def test_a_key_that_the_store_does_not_know(site, changes, finding, fix):
    site.add_keys("perfit-tiny-ann", "ann", **changes)
    found = site.only("fail", "store")
    assert finding in found["finding"]
    assert fix in found["fix"]
    assert "wrong" not in found["finding"]


def test_a_bucket_that_is_not_there(site):
    findings = site.findings("--store", "s3://missing")
    assert {(check["status"], check["name"]) for check in findings} == {("fail", "store")}


def test_a_store_that_pods_cannot_share(site):
    assert "pods cannot share file:///store" in site.only("fail", "store", "--store", "file:///store")["finding"]


def test_a_uri_of_no_store(site):
    error = site.examine("--store", "gs://bucket").exception
    assert isinstance(error, PerfitError)
    assert error.problem == "'gs://bucket' is not the URI of a store"


def test_a_store_that_is_not_named(site):
    site.write(store=None)
    assert "pods cannot share" in site.only("fail", "store")["finding"]


def test_a_store_by_its_name_in_the_cluster(site):
    """On a laptop its address does not resolve, which says nothing about the pods."""
    for secret, role in [("perfitserver-tiny", SERVER), ("perfit-tiny-ann", "ann"), ("perfit-tiny-bob", "bob")]:
        site.add_keys(secret, role, AWS_ENDPOINT_URL="http://minio.perfit.svc:9000")
    found = site.only("unknown", "store")
    assert "minio.perfit.svc has a name of the cluster" in found["finding"]
    assert "--store-endpoint http://localhost:9000" in found["fix"]
    endpoint = site.store.environment("ann")["AWS_ENDPOINT_URL"]
    assert site.findings("--store-endpoint", endpoint) == []


def test_a_store_that_does_not_answer(site):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{probe.getsockname()[1]}"
    assert "cannot look up" in site.only("fail", "store", "--store-endpoint", endpoint)["finding"]


@pytest.mark.parametrize(
    ("behaviour", "finding"),
    [
        (Behaviour(conditions="dropped"), "it ignores the condition If-None-Match|several writers"),
        (Behaviour(conditions="unlocked"), "several writers|writers replaced one version"),
        (Behaviour(etag=lambda etag: f"W/{etag}"), "the weak ETag"),
    ],
    ids=["dropped", "unlocked", "weak"],
)
def test_a_store_that_lets_two_writers_win(site, behaviour, finding):
    with faulty(site.store.server.server, behaviour) as (_, environment):
        found = site.only("fail", "store", "--store-endpoint", environment["AWS_ENDPOINT_URL"])
    assert re.search(finding, found["finding"])
    assert "4.18" in found["fix"] or "ETag" in found["fix"]


def test_kubeflows_own_store(site):
    """By the key that every task's pod mounts: an administrator's opens it, one of a profile does not."""
    administrator = site.store.server.administrator
    key = {"accesskey": administrator["AWS_ACCESS_KEY_ID"], "secretkey": administrator["AWS_SECRET_ACCESS_KEY"]}
    site.cluster.add(secret_object("mlpipeline-minio-artifact", key))
    found = site.only("warn", "store")
    assert "it is Kubeflow's own: the key in the Secret mlpipeline-minio-artifact" in found["finding"]
    assert "seaweedfs" in found["fix"]
    site.cluster.add(secret_object("mlpipeline-minio-artifact", key | {"secretkey": "of another store"}))
    assert site.findings() == []


def test_kubeflows_own_store_by_its_name(site):
    """For a user who may not read Secrets but has the roles' keys from elsewhere."""
    for host, own in {
        "minio-service.kubeflow": True,
        "seaweedfs.kubeflow.svc.cluster.local": True,
        "minio-service": True,
        "seaweedfs.perfit.svc": False,
        "minio.example.com": False,
    }.items():
        role = RoleKeys(None, "perfitserver-tiny", {"AWS_ENDPOINT_URL": f"http://{host}:9000"})
        assert _is_kubeflows(role) == own, host


def test_the_authority_of_the_store(site, tmp_path):
    site.write(cluster={"store_ca": "our-ca"})
    found = site.only("fail", "store")
    assert "no ConfigMap our-ca in namespace kubeflow whose key ca.crt" in found["finding"]
    assert "create configmap our-ca --from-file=ca.crt=AUTHORITY.pem" in found["fix"]
    authority, _ = make_authority(tmp_path)
    metadata = {"name": "our-ca", "namespace": "kubeflow"}
    texts = {"ca.crt": authority.read_text()}
    site.cluster.add({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": texts})
    assert site.findings() == []


def test_a_name_that_another_federation_has(site):
    administrator = open_store("s3://perfit", site.store.server.administrator)
    other = site.store.spec.model_copy(update={"lora": site.store.spec.lora.model_copy(update={"rank": 4})})
    administrator.put("federations/tiny/spec.yaml", other.to_yaml().encode())
    mask = f"federations/tiny/masks/ann/{'ab' * 32}"
    try:
        assert site.findings() == [], "no client has begun"
        administrator.put(mask, b"mask")
        found = site.only("fail", "store")
        assert "the store has another federation 'tiny': lora.rank is 8 here and 4 there" in found["finding"]
        administrator.put("federations/tiny/spec.yaml", replace_rounds(site.store.spec).to_yaml().encode())
        assert site.findings() == [], "rounds may change"
    finally:
        for key in ("federations/tiny/spec.yaml", mask):
            administrator.delete(key)


def replace_rounds(spec):
    return spec.model_copy(update={"rounds": spec.rounds + 1})
