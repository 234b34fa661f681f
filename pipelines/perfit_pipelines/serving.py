"""What serves the personal adapters of a federation: a script for vLLM, objects for KServe."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import Any

import yaml

from perfit.errors import PerfitError
from perfit.export import CONFIG_FILE
from perfit.model_files import ModelManifest
from perfit.models import is_hub_id, split_revision
from perfit_components.steps.client import ADAPTER_DIRECTORY
from perfit_components.steps.context import FederationContext
from perfit_storage import ObjectNotFound

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for --max-lora-rank (vllm/config/lora.py, MaxLoRARanks, as of version 0.26)."""
_MOUNT = "/mnt/models"
_KSERVE_HEAD = """\
# The personal adapters of federation {name} on KServe 0.16 or later: {clients}.
# Make the Secret first, with a key to the store that may do what `perfit serving policy` prints:
#   kubectl create secret generic {secret} --from-literal=AWS_ACCESS_KEY_ID=... --from-literal=AWS_SECRET_ACCESS_KEY=...
#   kubectl annotate secret {secret} serving.kserve.io/s3-endpoint=HOST:PORT serving.kserve.io/s3-usehttps=1
# A request names a client as its model. Adapters are read when a pod starts: restart it after a round.
"""
_VLLM_HEAD = """\
#!/bin/sh
# Serves the personal adapters of federation {name} with vLLM; a request names a client as its model.
set -eu
"""


@dataclass(frozen=True)
class Adapters:
    """The personal adapters that a federation has.

    Args:
        context: The federation.
        clients: The clients that have one.
        without: Those that have none yet.
    """

    context: FederationContext
    clients: tuple[str, ...]
    without: tuple[str, ...]

    @classmethod
    def find(cls, context: FederationContext) -> Adapters:
        """Look which clients have an adapter.

        Raises:
            PerfitError: None has one; the store does not let this key read clients' files.
        """
        ids = [client.id for client in context.spec.clients]
        found = tuple(client for client in ids if _has_adapter(context, client))
        if not found:
            raise PerfitError(f"no client of federation {context.spec.name!r} has an adapter yet", "run a round first")
        return cls(context, found, tuple(client for client in ids if client not in found))

    @property
    def rank(self) -> int:
        """The smallest rank that vLLM takes and that fits all adapters.

        Raises:
            PerfitError: There is none.
        """
        rank = self.context.spec.expanded_lora.rank
        if rank > VLLM_RANKS[-1]:
            raise PerfitError(
                f"the adapters have rank {rank}, vLLM takes at most {VLLM_RANKS[-1]}",
                "serve merged models: perfit export CLIENT DIRECTORY --merged",
            )
        return next(allowed for allowed in VLLM_RANKS if allowed >= rank)

    def vllm_script(self, base: str, revision: str | None, directory: str, store: str | None) -> str:
        """Return a shell script that exports the adapters and starts vLLM with them.

        Args:
            base: Hub id or directory of the base model.
            revision: The hub's commit.
            directory: Where the script exports the adapters to.
            store: URI of the store; None for this machine's own.
        """
        name = self.context.store.name
        options = ["--federation", name, *(["--store", store] if store else [])]
        exports = [["perfit", "export", client, f"{directory}/{client}", *options] for client in self.clients]
        pin = ["--revision", revision, "--tokenizer-revision", revision] if revision else []
        template = f"{directory}/{self.clients[0]}/chat_template.jinja"  # as all: that of the tuning
        paths = {client: f"{directory}/{client}" for client in self.clients}
        serve = ["exec", "vllm", "serve", base, *pin, "--chat-template", template, *self._lora_options(paths)]
        lines = [shlex.join(command) for command in (*exports, serve)]
        return _VLLM_HEAD.format(name=name) + "\n".join(lines) + "\n"

    def kserve_objects(self, base: str) -> str:
        """Return KServe's objects as YAML.

        Args:
            base: URI of the base model, as KServe takes them: hf://owner/name:commit, s3://..., pvc://...

        Raises:
            PerfitError: The store is not of S3.
        """
        spec, uri = self.context.spec, self.context.store.uri
        if not uri.startswith("s3://"):
            raise PerfitError(f"pods cannot read adapters from {uri}", "use a federation in a store of S3")
        name, secret = f"perfit-{spec.name}", f"perfit-serving-{spec.name}"
        places = {client: f"{_MOUNT}/adapters/{client}" for client in self.clients}
        sources = [{"uri": base, "mountPath": f"{_MOUNT}/base"}]
        sources += [
            {"uri": f"{uri}/clients/{client}/{ADAPTER_DIRECTORY}", "mountPath": path} for client, path in places.items()
        ]
        model = {
            "modelFormat": {"name": "huggingface"},
            "args": [f"--model_name={name}", f"--model_dir={_MOUNT}/base", *self._lora_options(places)],
            "resources": {"limits": {"nvidia.com/gpu": "1"}},
        }
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": secret}}
        service = {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": {"name": name, "labels": {"app.kubernetes.io/part-of": "perfit"}},
            "spec": {"predictor": {"serviceAccountName": secret, "model": model, "storageUris": sources}},
        }
        objects: list[dict[str, Any]] = [{**account, "secrets": [{"name": secret}]}, service]
        head = _KSERVE_HEAD.format(name=self.context.store.name, clients=", ".join(self.clients), secret=secret)
        return head + yaml.safe_dump_all(objects, sort_keys=False)

    def _lora_options(self, paths: dict[str, str]) -> list[str]:
        """vLLM's options. Its kernels for LoRA know no float32."""
        modules = [json.dumps({"name": client, "path": path}) for client, path in paths.items()]
        ranks = ["--enable-lora", f"--max-lora-rank={self.rank}", f"--max-loras={len(paths)}"]
        return ["--dtype=bfloat16", *ranks, "--lora-modules", *modules]


def kserve_base(manifest: ModelManifest) -> str:
    """Return the URI by which KServe finds a federation's base model.

    Raises:
        PerfitError: It is not from the hub.
    """
    if not is_hub_id(manifest.model):
        raise PerfitError(
            f"pods cannot find the base model {manifest.model}",
            "copy its directory (perfit export names it) to where they can, and give --base s3://... or pvc://...",
        )
    name, _ = split_revision(manifest.model)
    return f"hf://{name}:{manifest.commit}"


def _has_adapter(context: FederationContext, client: str) -> bool:
    try:
        context.store.get_client_file(client, f"{ADAPTER_DIRECTORY}/{CONFIG_FILE}")
    except ObjectNotFound:
        return False
    return True
