"""Whether Kueue is ready for tiers with a queue: LocalQueues, priorities, pod integration, and an end of waiting."""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import Any

import yaml

from perfit.cluster_spec import ClusterSpec, Tier
from perfit_pipelines.doctor.finding import Finding, allowed, fail, ok, unknown, warn
from perfit_pipelines.kube import Cluster, NotAllowed

_QUEUES = "queues"
_GROUP = "kueue.x-k8s.io"
_KUEUE_NAMESPACE, _CONFIG, _CONFIG_KEY = "kueue-system", "kueue-manager-config", "controller_manager_config.yaml"
_LIMIT = "perfit-queue-limit"
_INTEGRATIONS = {"pod": "pod", "trainjob": "trainer.kubeflow.org/trainjob"}
"""What Kueue calls that which a client runs as."""


def check_queues(cluster: Cluster, spec: ClusterSpec, namespace: str) -> list[Finding]:
    """Check what the tiers that have clients and a queue need of Kueue; nothing where none has a queue."""
    tiers = spec.tiers_where(lambda tier: tier.queue)
    if not tiers:
        return []
    version = cluster.version(_GROUP)
    if version is None:
        finding = f"tier {next(iter(tiers))} has a queue, and Kueue is not installed: its pods would not wait for any"
        return [fail(_QUEUES, finding, "install Kueue with its pod integration, or take `queue` out of the tiers")]
    problems = []
    for name, tier in tiers.items():
        problems += allowed(
            _QUEUES, lambda name=name, tier=tier: list(_check_tier(cluster, version, namespace, name, tier))
        )
    problems += _check_integrations(cluster, {tier.runner for tier in tiers.values()})
    if any(tier.queue_seconds and tier.runner == "pod" for tier in tiers.values()):
        problems += allowed(_QUEUES, lambda: _check_limit(cluster, namespace))
    queues = ", ".join(dict.fromkeys(tier.queue for tier in tiers.values()))
    return problems or [ok(_QUEUES, f"Kueue queues pods of clients in {queues}")]


def _check_tier(cluster: Cluster, version: str, namespace: str, name: str, tier: Tier) -> Iterator[Finding]:
    queue = cluster.custom(_GROUP, version, "localqueues", tier.queue, namespace)
    if queue is None:
        finding = (
            f"there is no LocalQueue {tier.queue} in namespace {namespace}: pods of tier {name} would wait for ever"
        )
        yield fail(_QUEUES, finding, f"make it, or correct tiers.{name}.queue")
    elif reason := _why_inactive(queue):
        finding = f"the LocalQueue {tier.queue} admits nothing: {reason}"
        yield fail(_QUEUES, finding, f"see why: kubectl -n {namespace} describe localqueue {tier.queue}")
    if tier.queue_priority and cluster.custom(_GROUP, version, "workloadpriorityclasses", tier.queue_priority) is None:
        finding = f"there is no WorkloadPriorityClass {tier.queue_priority}: Kueue would not queue pods of tier {name}"
        yield fail(_QUEUES, finding, f"make it, or correct tiers.{name}.queue_priority")
    if tier.queue_seconds is None:
        finding = f"pods of tier {name} may wait in {tier.queue} for as long as the run lasts"
        yield warn(_QUEUES, finding, f"set tiers.{name}.queue_seconds, so that a round goes on without them")


def _why_inactive(queue: dict[str, Any]) -> str:
    policy = queue.get("spec", {}).get("stopPolicy") or "None"
    if policy != "None":
        return f"its stopPolicy is {policy}"
    conditions = queue.get("status", {}).get("conditions", [])
    return next(
        (c.get("message", c["reason"]) for c in conditions if c["type"] == "Active" and c["status"] == "False"), ""
    )


def _check_integrations(cluster: Cluster, runners: Set[str]) -> list[Finding]:
    """Kueue queues what its settings name: not plain pods, which those of a pipeline are, unless they say so."""
    needed = sorted(_INTEGRATIONS[runner] for runner in runners)
    fix = f"let an administrator add {' and '.join(needed)} to integrations.frameworks in {_CONFIG}, and restart Kueue"
    unsaid = f"whether Kueue queues {' and '.join(needed)} is not known"
    try:
        settings = cluster.config_map(_KUEUE_NAMESPACE, _CONFIG)
        frameworks = yaml.safe_load((settings or {})[_CONFIG_KEY])["integrations"]["frameworks"] or []
    except NotAllowed as error:
        return [unknown(_QUEUES, f"{unsaid}: you may not {error}", fix)]
    except (KeyError, TypeError, yaml.YAMLError):
        return [unknown(_QUEUES, f"{unsaid}: {_CONFIG} in {_KUEUE_NAMESPACE} does not say", fix)]
    missing = [name for name in needed if name not in frameworks]
    if not missing:
        return []
    return [fail(_QUEUES, f"Kueue does not queue {' and '.join(missing)}: clients would not wait", fix)]


def _check_limit(cluster: Cluster, namespace: str) -> list[Finding]:
    if cluster.has_cron_job(namespace, _LIMIT):
        return []
    finding = (
        f"there is no CronJob {_LIMIT} in namespace {namespace}: nothing ends pods that wait longer than queue_seconds"
    )
    return [
        warn(_QUEUES, finding, "add manifests/components/kueue to your overlay's run/kustomization.yaml, and apply it")
    ]
