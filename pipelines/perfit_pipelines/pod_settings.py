"""Settings of the pods of a pipeline's tasks: keys, scratch volumes, the model's cache, nodes; and a run's limits."""

from __future__ import annotations

from kfp import dsl, kubernetes

from perfit.cluster_spec import CA_FILE, HUB_SECRET, Machine, RunSettings
from perfit_components.queue_limit import ROLE_LABEL
from perfit_components.secret_names import STORE_KEYS

CACHE_MOUNT = "/cache"
CA_MOUNT = "/etc/perfit-ca"
_USER = 10001


def run_limits(settings: RunSettings) -> dsl.PipelineConfig | None:
    """Return how long a run and its workflow may live; None where neither is limited: KFP 2.16 knows no limits."""
    if settings.deadline_seconds is None and settings.keep_seconds is None:
        return None
    # Stock 2.17 gives workflows an hour after a success or failure, which wins over one after any end: name all three.
    return dsl.PipelineConfig(
        ttl_seconds_after_finished=settings.keep_seconds,
        ttl_seconds_after_success=settings.keep_seconds,
        ttl_seconds_after_failure=settings.keep_seconds,
        active_deadline_seconds=settings.deadline_seconds,
    )


def with_store(task: dsl.PipelineTask, secret, role: str, settings: RunSettings) -> dsl.PipelineTask:
    """Give a task its keys, a /tmp, and the label by which the network policies let its role reach the store."""
    if settings.store_ca:
        kubernetes.use_config_map_as_volume(task, config_map_name=settings.store_ca, mount_path=CA_MOUNT)
        task.set_env_variable("AWS_CA_BUNDLE", f"{CA_MOUNT}/{CA_FILE}")
    kubernetes.add_pod_label(task, ROLE_LABEL, role)
    kubernetes.use_secret_as_env(task, secret_name=secret, secret_key_to_env={key: key for key in STORE_KEYS})
    kubernetes.set_security_context(task, run_as_user=_USER, run_as_group=_USER, run_as_non_root=True)
    # KFP cannot make the root file system read-only, but a cluster's policy may.
    kubernetes.empty_dir_mount(task, volume_name="tmp", mount_path="/tmp")
    return uncached(task)


def uncached(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Let a task run again: the store is the state, and another run may have changed what KFP has in its cache."""
    return task.set_caching_options(False)


def with_model(task: dsl.PipelineTask, settings: RunSettings) -> None:
    """Give a task that loads the model its cache, a token for the hub where there is one, and shared memory."""
    if settings.model_cache:
        # Clients only read it, but KFP 2.17 cannot mount it so: they check what they load (perfit/model_files.py).
        kubernetes.mount_pvc(task, pvc_name=settings.model_cache, mount_path=CACHE_MOUNT)
    else:
        kubernetes.empty_dir_mount(task, volume_name="cache", mount_path=CACHE_MOUNT)
    kubernetes.use_secret_as_env(
        task, secret_name=HUB_SECRET, secret_key_to_env={"HF_TOKEN": "HF_TOKEN"}, optional=True
    )
    kubernetes.empty_dir_mount(
        task, volume_name="dshm", mount_path="/dev/shm", medium="Memory", size_limit=settings.shared_memory
    )


def on_machine(task: dsl.PipelineTask, machine: Machine) -> None:
    """Give a task processors, memory and accelerators, and the nodes that have them."""
    task.set_cpu_limit(machine.cpu).set_memory_limit(machine.memory)
    if machine.accelerator:
        task.set_accelerator_type(machine.accelerator.type).set_accelerator_limit(machine.accelerator.count)
    for key, value in machine.node_selector.items():
        kubernetes.add_node_selector(task, key, value)
    for toleration in machine.tolerations:
        kubernetes.add_toleration(task, **toleration.model_dump(exclude_none=True))
