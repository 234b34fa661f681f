"""Why a run failed: what the log, the pod, the workflow and the deadline say, and nothing that is only likely."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from perfit_pipelines.cluster.logs import other_error, own_error
from perfit_pipelines.cluster.pods import OUT_OF_MEMORY, workflow_messages

from ..kubernetes_api import KubernetesApi, kubernetes_api
from .conftest import QUICK, Perfit, write_federation
from .recorded import PREPARE_FAILED_LOG, TWO_TIERS, Recording, client_died, node_id

DENIED = (
    "cannot read s3://perfit/federations/e2e-8d2ed89d/spec.yaml at http://10.88.0.1:9000: "
    "Access Denied. (AccessDenied)\n"
    "  fix: let this access key do so in the store's policy, and check the AWS_* credentials"
)
IMPL = "-metadata-0-1-system-container-impl-"


@pytest.fixture
def kubernetes(tmp_path, monkeypatch):
    """A cluster that this machine's kubeconfig names."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    with kubernetes_api(tmp_path / "kubeconfig") as cluster:
        yield cluster


@pytest.fixture
def probe(tmp_path):
    """The federation file of the probe's shape."""
    return write_federation(tmp_path / "probe.yaml", **TWO_TIERS)


def pod_of(recording: Recording, ending: str, template: str = IMPL) -> str:
    """Return the name of the pod of the one node whose name ends so."""
    (name,) = [name for name, node in recording.nodes.items() if node["type"] == "Pod" and name.endswith(ending)]
    workflow, _, number = node_id(name).rpartition("-")
    return f"{workflow}{template}{number}"


def failed(perfit: Perfit, *arguments) -> list[str]:
    """Run a command that follows a run that fails; return what it says of it."""
    result = perfit(*arguments, *QUICK)
    assert result.exit_code == 3, (result.output, result.exception)
    said = [line.removeprefix("  ") for line in result.stderr.splitlines()]
    return said[said.index("the run failed") + 1 :]


def prepare_failed() -> Recording:
    return Recording.of("prepare-failed").renamed({r"\bprepare-federation": "prepare"})


@pytest.mark.parametrize("is_ui", [False, True])
def test_a_task_that_failed_says_why_in_its_own_words(serve, file, is_ui):
    """The API and the UI each hand out the recorded log of Prepare in a way of their own."""
    api, recording = serve(is_ui=is_ui), prepare_failed()
    api.play(("FAILED", recording.as_listed()))
    api.logs[pod_of(recording, ".prepare(0).executor(0)")] = PREPARE_FAILED_LOG
    problem, fix = DENIED.split("\n")
    said = failed(Perfit(api), "submit", file)
    assert said[:2] == [f"failed: Prepare: {problem}", fix]
    (run_id,) = api.runs
    assert said[-1] == f"logs: kubectl logs -n kubeflow -l pipeline/runid={run_id} -c main --tail=40 --prefix"
    assert not [line for line in said if "Traceback" in line or "deadline" in line or "architecture" in line]


def test_a_log_without_the_label_of_our_tasks(api, perfit, file):
    recording = prepare_failed()
    api.play(("FAILED", recording.as_listed()))
    api.logs[pod_of(recording, ".prepare(0).executor(0)", "-system-container-impl-")] = PREPARE_FAILED_LOG
    assert failed(perfit, "submit", file)[0] == f"failed: Prepare: {DENIED.splitlines()[0]}"


def test_a_task_whose_log_is_gone_gets_no_cause(api, perfit, file):
    api.play(("FAILED", prepare_failed().as_listed()))
    assert failed(perfit, "submit", file)[0] == (
        "failed: Prepare: neither its log nor what Kubeflow has of its pod says why"
    )


def test_a_driver_that_failed_says_why(api, perfit, file):
    recording = prepare_failed()
    name = next(name for name in recording.nodes if name.endswith(".prepare-driver"))
    nodes = {**recording.nodes, name: {**recording.nodes[name], "phase": "Failed"}}
    nodes = {name: node for name, node in nodes.items() if not node["name"].endswith("executor")}
    api.play(("FAILED", replace(recording, nodes=nodes).as_listed()))
    log = [
        "I1124 09:31:36.070147 15 main.go:67] Setting log level",
        "F1124 09:31:37.1 1 main.go:79] KFP driver: no parent",
    ]
    api.logs[pod_of(recording, ".prepare-driver(0)", "-system-container-driver-")] = "\n".join(log)
    assert "failed: preparation of prepare: KFP driver: no parent" in failed(perfit, "submit", file)


def test_a_client_that_ran_out_of_memory(serve, probe):
    """The probe's failed pod, with the end that Kubernetes gives a container that its cgroup kills; not recorded."""
    api, died = serve(is_ui=True), client_died()
    api.play(("FAILED", died.as_listed()))
    name = pod_of(died, "(1:1)(0).iteration-item(0).client-strong(0).executor(0)")
    (pod,) = [pod for pod in died.pods["items"] if pod["status"]["phase"] == "Failed"]
    pod["status"]["containerStatuses"][0]["state"] = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    api.logs[name], api.pods[name] = "[perfit] round=1 client=dock step=3/9 loss=2.5\n", pod
    first, fix = OUT_OF_MEMORY.splitlines()
    assert failed(Perfit(api), "submit", probe)[:2] == [f"failed: Round 1 of 1: dock: {first}", fix]


def test_kubernetes_tells_waiting_from_running_and_for_what(api, perfit, file, kubernetes: KubernetesApi):
    """The list says only that one of two pods waits; the pods say which, and what for."""
    names = {r"\bprepare-federation": "prepare", r"\.search\b(?!-)": ".round", r"\.clients-default\b": ".clients"}
    names |= {r"\.client-default(?!\(0\)\.search)": ".inner"}
    names |= {r"(\.client-default\(0\)|^)\.search-client": ".client-default"}
    recording = Recording.of("search-pod-waits").renamed(names)
    perfit.succeed("submit", file, "--no-follow")
    (run_id,) = api.runs
    for pod in recording.pods["items"]:
        place = pod["metadata"]["annotations"]["workflows.argoproj.io/node-name"]
        pod["metadata"]["annotations"]["workflows.argoproj.io/node-name"] = renamed(place, names)
        pod["metadata"]["labels"]["pipeline/runid"] = run_id
        kubernetes.objects["v1", "pods", "kubeflow", pod["metadata"]["name"]] = pod
    api.play(*[("RUNNING", recording.as_listed())] * 3, ("SUCCEEDED", recording.as_listed()))
    lines = [line.strip().partition("  ")[2] for line in perfit.succeed("follow", run_id, *QUICK).splitlines()]
    clients = [line for line in lines if line.startswith("Round 1 of 2: ")]
    assert clients[0] == "Round 1 of 2: bank: running"
    assert clients[1].startswith("Round 1 of 2: kitchen: waiting: 0/1 nodes are available: 1 Insufficient cpu.")


def renamed(name: str, names: dict[str, str]) -> str:
    recording = Recording({}, {}, {}, {name: {"name": name, "displayName": "", "children": []}})
    return next(iter(recording.renamed(names).nodes))


def test_a_run_without_a_task_says_what_argo_says(api, perfit, file, kubernetes: KubernetesApi):
    """Two seconds after its start: not the deadline, but a file of 600 clients."""
    recording = Recording.of("file-too-long")
    perfit.succeed("submit", file, "--no-follow")
    (run_id,) = api.runs
    workflow = json.loads(json.dumps(recording.workflow))
    workflow["metadata"]["labels"]["pipeline/runid"] = run_id
    workflow["status"]["nodes"] = {node["id"]: node for node in workflow["status"]["nodes"]}
    kubernetes.objects["argoproj.io/v1alpha1", "workflows", "kubeflow", "w"] = workflow
    api.play(("FAILED", []))
    said = failed(perfit, "follow", run_id)
    assert said[0].startswith("Kubeflow says: configmaps is forbidden: User")
    assert "the federation file is too long" in said[1]
    assert not [line for line in said if "deadline" in line]


def test_a_run_without_a_task_or_kubernetes_is_not_guessed_about(api, perfit, file):
    api.play(("FAILED", []))
    said = failed(perfit, "submit", file)
    (run_id,) = api.runs
    assert said[0] == (
        "Kubeflow does not say why; Argo may: "
        f"kubectl get workflows -n kubeflow -l pipeline/runid={run_id} -o yaml | grep message:"
    )
    assert len(said) == 2


def test_a_deadline_that_passed_names_who_was_late(api, perfit, tmp_path):
    file = write_federation(tmp_path / "f.yaml", **TWO_TIERS, cluster={"deadline_seconds": 100})
    died = client_died()  # of a run that took 113 s
    perfit.succeed("submit", file, "--no-follow")
    (run,) = api.runs.values()
    run.created_at, run.finished_at = died.answer.created_at, died.answer.finished_at
    api.play(("FAILED", died.at("09:47:46").as_listed()))
    said = failed(perfit, "follow", run.run_id)
    assert said[0] == (
        "it was ended after cluster.deadline_seconds (100); not done by then: "
        "Round 1 of 1: bank, Round 1 of 1: dock, Round 1 of 1: cafe, Round 1 of 1: farm"
    )


def test_messages_of_a_workflow_each_once():
    recording = Recording.of("client-died-hook-aggregated").workflow
    recording["status"]["nodes"] = {node["id"]: node for node in recording["status"]["nodes"]}
    assert workflow_messages(recording) == ["main: Error (exit code 1)"]
    assert workflow_messages({"status": {"message": "too long"}}) == ["too long"]


def test_the_recorded_log():
    assert own_error(PREPARE_FAILED_LOG) == DENIED
    assert other_error(PREPARE_FAILED_LOG).startswith("perfit_storage.errors.AccessDenied; its text")


def test_text_of_errors_that_are_not_ours_stays_in_the_log():
    log = "Traceback (most recent call last):\n  File 'x', line 1\nKeyError: 'the patient has'\n"
    assert own_error(log) == ""
    assert other_error(log) == "KeyError; its text, which may quote records, is in the task's log alone"


def test_a_log_cannot_move_the_terminals_cursor():
    assert own_error("perfit.errors.PerfitError: a\x1b[2Jb\x07\n  fix: c") == "a [2Jb \n  fix: c"


def test_the_launchers_words_for_a_killed_process():
    log = "E1124 09:31:36.7 15 launcher_v2.go:449] Component failed to execute successfully: signal: killed\n"
    assert other_error(log).startswith("its process was killed (signal 9)")
