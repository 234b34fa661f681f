"""What a real backend said of runs (``recorded/README.md``), and variations that follow from how Argo names nodes.

A :class:`Recording` can be renamed, as if the same had happened to a pipeline whose tasks are called otherwise; set
back to an earlier moment; and stripped of its retries, as by a controller without a default retry strategy.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from kfp_server_api import ApiClient, PipelineTaskDetailChildTask, V2beta1PipelineTaskDetail, V2beta1Run

PREPARE_FAILED_LOG = (Path(__file__).parent / "recorded" / "prepare-failed.txt").read_text()
_STATES = {
    "Pending": "PENDING",
    "Running": "RUNNING",
    "Succeeded": "SUCCEEDED",
    "Failed": "FAILED",
    "Error": "FAILED",
    "Skipped": None,
    "Omitted": None,
}


def node_id(name: str) -> str:
    """Return the id of a node, as Argo makes it: FNV-1a of its name, after the workflow's name."""
    workflow = re.split(r"[.(]", name)[0]
    if name == workflow:
        return name
    state = 2166136261
    for byte in name.encode():
        state = (state ^ byte) * 16777619 % 2**32
    return f"{workflow}-{state}"


@dataclass(frozen=True)
class Recording:
    """One moment of a run: the answer of KFP's API, the workflow's nodes by name, its pods."""

    run: dict[str, Any]
    workflow: dict[str, Any]
    pods: dict[str, Any]
    nodes: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, name: str) -> Recording:
        """Read a recording by the name of its file."""
        data = json.loads(gzip.decompress((Path(__file__).parent / "recorded" / f"{name}.json.gz").read_bytes()))
        by_id = {node["id"]: node["name"] for node in data["workflow"]["status"]["nodes"]}
        nodes = {
            node["name"]: {**node, "children": [by_id[child] for child in node.get("children", [])]}
            for node in data["workflow"]["status"]["nodes"]
        }
        return cls(data["run"], data["workflow"], data["pods"], nodes)

    @cached_property
    def answer(self) -> V2beta1Run:
        """What the API said, as KFP's client reads it."""

        class Response:
            data = json.dumps(self.run)

        return ApiClient().deserialize(Response, "V2beta1Run")

    @property
    def details(self) -> list[V2beta1PipelineTaskDetail]:
        """The tasks as the API listed them."""
        return self.answer.run_details.task_details if self.answer.run_details else []

    def as_listed(self) -> list[V2beta1PipelineTaskDetail]:
        """The nodes as KFP's server lists them: for the variations, of which there is no answer of the API."""
        return [
            V2beta1PipelineTaskDetail(
                display_name=node["displayName"],
                state=_STATES[node["phase"]],
                start_time=datetime.fromisoformat(node["startedAt"]),
                child_tasks=[PipelineTaskDetailChildTask(pod_name=node_id(child)) for child in node["children"]],
            )
            for node in self.nodes.values()
        ]

    def renamed(self, names: Mapping[str, str]) -> Recording:
        """The same, where parts of the nodes' names are replaced in order, each a regular expression."""

        def new(name: str) -> str:
            for pattern, replacement in names.items():
                name = re.sub(pattern, replacement, name)
            return name

        nodes = {}
        for name, node in self.nodes.items():
            display = new("." + node["displayName"]).removeprefix(".")
            children = [new(child) for child in node["children"]]
            nodes[new(name)] = {**node, "name": new(name), "displayName": display, "children": children}
        return replace(self, nodes=nodes)

    def at(self, moment: str) -> Recording:
        """The same at an earlier moment of its day, ``HH:MM:SS``: what had not begun is not there, or not over."""
        nodes = {}
        for name, node in self.nodes.items():
            if node["startedAt"][11:19] <= moment:
                over = node.get("finishedAt", "z")[11:19] <= moment
                nodes[name] = node if over else {**node, "phase": "Running"}
        for name, node in nodes.items():
            nodes[name] = {**node, "children": [child for child in node["children"] if child in nodes]}
        return replace(self, nodes=nodes)

    def without_retries(self) -> Recording:
        """The same without Retry nodes: of each node its last attempt, under the name that has no number."""
        plain = {name: re.sub(r"\(\d+\)", "", name) for name in self.nodes}
        hooks = {
            plain[name]: [plain[child] for child in node["children"] if plain[child] != plain[name]]
            for name, node in self.nodes.items()
            if node["type"] == "Retry"
        }
        nodes = {}
        for name, node in self.nodes.items():
            if node["type"] != "Retry":
                children = [plain[child] for child in node["children"]] + hooks.get(plain[name], [])
                display = re.sub(r"\(\d+\)", "", node["displayName"])
                nodes[plain[name]] = {**node, "name": plain[name], "displayName": display, "children": children}
        return replace(self, nodes=nodes)


TWO_TIERS = {
    "rounds": 1,
    "tiers": {"strong": {}, "weak": {}},
    "clients": [
        {"id": name, "data": f"s3://data/{name}.jsonl", "tier": tier}
        for name, tier in (("bank", "strong"), ("cafe", "weak"), ("dock", "strong"), ("farm", "weak"))
    ],
}
"""Sections of a federation of the probe's shape."""


def client_died() -> Recording:
    """The probe, as if it had been the federation of ``TWO_TIERS``: dock's pod fails, the others deliver."""
    names = {
        r"(\.one\(0\)|^)\.plan(?!-2)": ".prepare",
        r"\.one\b": ".round",
        r"\.client-2\b": ".client-weak",
        r"\.client(?!s|-weak)": ".client-strong",
    }
    return Recording.of("client-died-hook-aggregated").renamed(names)
