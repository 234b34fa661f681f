"""What ``perfit serving`` writes: a script that exports and starts vLLM, and objects for KServe.

vLLM itself is not run here. KServe's own models check the objects where ``KSERVE_PYTHON`` names an interpreter that has
the package: ``python -m venv DIR; DIR/bin/pip install kserve==0.21.0 'kubernetes<31'``.
"""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from dataclasses import replace

import pytest
import yaml
from safetensors.numpy import load

from perfit.errors import PerfitError
from perfit.model_files import ModelManifest
from perfit_pipelines.deploy.policies import serving_policy
from perfit_pipelines.serving import VLLM_RANKS, Adapters, kserve_base
from perfit_storage import AccessDenied, open_store

from ..perfit_components.running import make_spec, write_data
from .store_roles import role_server

VLLM = """#!{python}
import json, sys
json.dump(sys.argv[1:], open("vllm.json", "w"))
"""


@pytest.fixture(scope="module")
def adapters(trained) -> Adapters:
    return Adapters.find(trained.site.context)


def in_s3(adapters: Adapters) -> Adapters:
    """The same adapters, said to be in a store of S3."""

    class Renamed:
        uri, name = "s3://tuning/team/federations/tiny", "tiny"

    return replace(adapters, context=replace(adapters.context, store=Renamed()))


def test_vllms_script_exports_what_it_serves(trained, tiny_llama, tmp_path):
    """A program in place of vLLM notes what it is given; the rules checked are those of vLLM's own parser."""
    written = trained.stored("serving", "vllm", "-o", tmp_path / "serve.sh")
    assert written.code == 0, written.err
    programs = tmp_path / "bin"
    programs.mkdir()
    main = "from perfit_pipelines.cli import main; main()"
    for name, text in [("vllm", VLLM.format(python=sys.executable)), ("perfit", f"#!{sys.executable}\n{main}\n")]:
        (programs / name).write_text(text)
        (programs / name).chmod(stat.S_IRWXU)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "serve.sh"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    command, model, *options = json.loads((tmp_path / "vllm.json").read_text())
    assert (command, model) == ("serve", tiny_llama)
    modules = [json.loads(module) for module in options[options.index("--lora-modules") + 1 :]]
    assert [module["name"] for module in modules] == ["ann", "bob"]
    (rank,) = [int(option.removeprefix("--max-lora-rank=")) for option in options if "max-lora-rank" in option]
    assert rank in VLLM_RANKS
    for module in modules:
        directory = tmp_path / module["path"]
        config = json.loads((directory / "adapter_config.json").read_text())
        assert config["r"] <= rank
        weights = load((directory / "adapter_model.safetensors").read_bytes())
        assert all(min(matrix.shape) == config["r"] for matrix in weights.values())
    assert (tmp_path / options[options.index("--chat-template") + 1]).is_file()


def test_a_rank_that_vllm_does_not_take(adapters):
    def of_rank(rank: int) -> Adapters:
        lora = adapters.context.spec.lora.model_copy(update={"rank": rank // 2})
        spec = adapters.context.spec.model_copy(update={"lora": lora})
        return replace(adapters, context=replace(adapters.context, spec=spec))

    assert [of_rank(rank).rank for rank in (4, 8, 10, 258, 512)] == [8, 8, 16, 320, 512]
    with pytest.raises(PerfitError, match="rank 514, vLLM takes at most 512"):
        assert of_rank(514).rank


def test_kserves_objects(adapters):
    text = in_s3(adapters).kserve_objects("hf://owner/model:0123")
    account, service = yaml.safe_load_all(text)
    predictor = service["spec"]["predictor"]
    assert predictor["serviceAccountName"] == account["metadata"]["name"] == "perfit-serving-tiny"
    assert account["secrets"] == [{"name": "perfit-serving-tiny"}]
    places = {source["mountPath"]: source["uri"] for source in predictor["storageUris"]}
    assert places == {
        "/mnt/models/base": "hf://owner/model:0123",
        "/mnt/models/adapters/ann": "s3://tuning/team/federations/tiny/clients/ann/adapter",
        "/mnt/models/adapters/bob": "s3://tuning/team/federations/tiny/clients/bob/adapter",
    }
    arguments = predictor["model"]["args"]
    modules = [json.loads(module) for module in arguments[arguments.index("--lora-modules") + 1 :]]
    assert [module["path"] for module in modules] == list(places)[1:]
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", service["metadata"]["name"])  # KServe's webhook


KSERVE = """
import json, sys, yaml
import kserve.models, kubernetes.client.models
from kubernetes.client import ApiClient

class Response:
    def __init__(self, value):
        self.data = json.dumps(value)

for name in filter(str.isalnum, dir(kserve.models)):  # where Kubernetes' client looks for the types of fields
    setattr(kubernetes.client.models, name, getattr(kserve.models, name))
client = ApiClient()
kinds = {"InferenceService": "V1beta1InferenceService", "ServiceAccount": "V1ServiceAccount"}
for value in yaml.safe_load_all(sys.stdin):
    parsed = client.deserialize(Response(value), kinds[value["kind"]])
    again = client.sanitize_for_serialization(parsed)
    if value["kind"] == "InferenceService":
        assert again["spec"]["predictor"]["model"].pop("name") == ""  # a container's, which the model requires
    assert again == value, again
    print(type(parsed).__module__)
"""


@pytest.mark.skipif("KSERVE_PYTHON" not in os.environ, reason="no KServe")
def test_kserves_own_models_take_the_objects(adapters):
    text = in_s3(adapters).kserve_objects("hf://owner/model:0123")
    done = subprocess.run(
        [os.environ["KSERVE_PYTHON"], "-c", KSERVE], input=text, capture_output=True, text=True, env={"HOME": "/tmp"}
    )
    assert done.returncode == 0, done.stderr
    assert "kserve.models.v1beta1_inference_service" in done.stdout.split()


def test_a_store_that_pods_cannot_read(trained):
    result = trained.stored("serving", "kserve", "--base", "hf://owner/model")
    assert (result.code, result.err.splitlines()[-1]) == (1, "  fix: use a federation in a store of S3")
    result = trained.stored("serving", "kserve")
    assert result.err.startswith("error: pods cannot find the base model /")
    assert kserve_base(ModelManifest(model="owner/model@v1", commit="0123", files=())) == "hf://owner/model:0123"


def test_a_federation_without_adapters(home):
    home.site.prepare()
    result = home.stored("serving", "vllm")
    assert (result.code, result.err) == (
        1,
        "error: no client of federation 'tiny' has an adapter yet\n  fix: run a round first\n",
    )


def test_the_servers_key_reads_adapters_and_nothing_else_of_a_client(tiny_llama, tmp_path):
    """On a store that enforces it."""
    spec = make_spec(tiny_llama, write_data(tmp_path / "data"))
    own = ("state/1.safetensors", "checkpoint.safetensors", "baseline.json", "adapter/adapter_model.safetensors")
    with role_server(tmp_path / "s3") as server:
        uri = f"{server.server.store_uri}/team"
        server.add_users({"SERVING": ("secret", serving_policy(spec, uri))})
        everything = open_store(f"{uri}/federations/tiny", server.administrator)
        serving = open_store(f"{uri}/federations/tiny", server.environment("SERVING", "secret"))
        for name in own:
            everything.put(f"clients/ann/{name}", b"x")
        assert serving.get("clients/ann/adapter/adapter_model.safetensors").data == b"x"
        assert list(serving.list("clients/ann/adapter/")) == ["clients/ann/adapter/adapter_model.safetensors"]
        for name in own[:-1]:
            with pytest.raises(AccessDenied):
                serving.get(f"clients/ann/{name}")
        with pytest.raises(AccessDenied):
            serving.put("clients/ann/adapter/adapter_model.safetensors", b"y")
        with pytest.raises(AccessDenied):
            list(serving.list("clients/ann/"))
