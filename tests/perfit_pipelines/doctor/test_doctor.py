"""``perfit doctor`` as a user runs it: all in order, and what it prints."""

from __future__ import annotations

import json

from .conftest import node, amounts


def test_a_cluster_in_order(site):
    result = site.examine("--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.output)
    assert [(check["name"], check["status"], check["fix"]) for check in said["checks"]] == [
        (name, "ok", "")
        for name in (
            "Kubeflow Pipelines",
            "namespace",
            "service account",
            "Secrets",
            "store",
            "volumes",
            "tier gpu",
            "tier small",
            "images",
            "images",
            "quota",
        )
    ]
