"""Component: a client's part of a round as a TrainJob of Kubeflow Trainer, which this task creates and follows."""

from kfp import dsl

from perfit_components.images import SERVER_IMAGE

_PASSED_ON = (
    dsl.TaskConfigField.RESOURCES,
    dsl.TaskConfigField.KUBERNETES_TOLERATIONS,
    dsl.TaskConfigField.KUBERNETES_NODE_SELECTOR,
    dsl.TaskConfigField.KUBERNETES_VOLUMES,
    # The task itself needs the client's key too, for the record.
    dsl.TaskConfigPassthrough(field=dsl.TaskConfigField.ENV, apply_to_task=True),
)
"""What KFP takes from the task's own pod and hands to the job's."""


@dsl.component(base_image=SERVER_IMAGE, install_kfp_package=False, task_config_passthroughs=list(_PASSED_ON))
def train_job(
    federation: str,
    round: int,
    name: str,
    threads: int,
    image: str,
    metrics: dsl.Output[dsl.Metrics],
    task_config: dsl.TaskConfig = None,
) -> dict[str, str]:
    """Do a client's part of a round in a TrainJob: create it, follow it, record how it ended, delete it.

    Args:
        federation: URI of the federation.
        round: From 1.
        name: The client's name in the cluster, that of its Secret.
        threads: CPU threads of the training.
        image: Where the job runs.
        metrics: As of the component ``client``.
        task_config: Resources, nodes, environment and volumes of the job. KFP fills it in.

    Returns:
        client, status (trained, failed or out_of_memory) and reason.
    """
    from dataclasses import asdict

    from perfit_components.steps.train_job import train_in_job

    config = asdict(task_config) if task_config else {}
    return train_in_job(federation, round, name, threads, image, config).show(metrics)
