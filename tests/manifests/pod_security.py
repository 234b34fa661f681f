"""The level "restricted" of the Pod Security Standards, as published at
https://kubernetes.io/docs/concepts/security/pod-security-standards/ (with the rules of "baseline", which it includes).

One function a control, named as there. Stricter than the text in one place: of sysctls it lets none pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

Spec = dict[str, Any]
"""The spec of a pod."""

VOLUME_TYPES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip
SELINUX_TYPES = {None, "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
APPARMOR_TYPES = {None, "RuntimeDefault", "Localhost"}
SECCOMP_TYPES = {"RuntimeDefault", "Localhost"}
APPARMOR_ANNOTATION = "container.apparmor.security.beta.kubernetes.io/"


def violations(template: Spec) -> list[str]:
    """Return the names of the controls that a pod template breaks, sorted."""
    spec, annotations = template["spec"], template.get("metadata", {}).get("annotations", {})
    broken = {name for name, holds in CONTROLS.items() if not holds(spec)}
    profiles = [value for key, value in annotations.items() if key.startswith(APPARMOR_ANNOTATION)]
    if not all(value == "runtime/default" or value.startswith("localhost/") for value in profiles):
        broken.add("AppArmor")
    return sorted(broken)


def _containers(spec: Spec) -> list[Spec]:
    return [item for kind in ("initContainers", "containers", "ephemeralContainers") for item in spec.get(kind, [])]


def _contexts(spec: Spec) -> list[Spec]:
    """The security contexts of the containers, an absent one as an empty one."""
    return [container.get("securityContext", {}) for container in _containers(spec)]


def _every(spec: Spec) -> list[Spec]:
    return [spec.get("securityContext", {}), *_contexts(spec)]


def _on_all(spec: Spec, holds: Callable[[Spec], bool | None]) -> bool:
    """Whether each container says so, or says nothing (None) where the pod does."""
    pod = holds(spec.get("securityContext", {}))
    return all(pod if own is None else own for own in map(holds, _contexts(spec)))


def _seccomp(context: Spec) -> bool | None:
    kind = context.get("seccompProfile", {}).get("type")
    return None if kind is None else kind in SECCOMP_TYPES


def _handlers(spec: Spec) -> Iterator[Spec]:
    for container in _containers(spec):
        probes = [container.get(name, {}) for name in ("livenessProbe", "readinessProbe", "startupProbe")]
        for handler in [*probes, *container.get("lifecycle", {}).values()]:
            yield from (handler.get(kind, {}) for kind in ("httpGet", "tcpSocket"))


def _volume_types(spec: Spec) -> bool:
    return all(set(volume) - {"name"} <= VOLUME_TYPES for volume in spec.get("volumes", []))


CONTROLS: dict[str, Callable[[Spec], bool]] = {
    # Of "baseline".
    "HostProcess": lambda spec: not any(c.get("windowsOptions", {}).get("hostProcess") for c in _every(spec)),
    "Host Namespaces": lambda spec: not any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")),
    "Privileged Containers": lambda spec: not any(context.get("privileged") for context in _contexts(spec)),
    "Host Ports": lambda spec: not any(p.get("hostPort") for c in _containers(spec) for p in c.get("ports", [])),
    "Host Probes / Lifecycle Hooks": lambda spec: not any(handler.get("host") for handler in _handlers(spec)),
    "AppArmor": lambda spec: all(c.get("appArmorProfile", {}).get("type") in APPARMOR_TYPES for c in _every(spec)),
    "SELinux": lambda spec: all(
        options.get("type") in SELINUX_TYPES and not options.get("user") and not options.get("role")
        for options in (context.get("seLinuxOptions", {}) for context in _every(spec))
    ),
    "/proc Mount Type": lambda spec: all(c.get("procMount") in (None, "Default") for c in _contexts(spec)),
    "Sysctls": lambda spec: not spec.get("securityContext", {}).get("sysctls"),
    # Of "restricted" itself.
    "Volume Types": _volume_types,
    "Privilege Escalation": lambda spec: all(c.get("allowPrivilegeEscalation") is False for c in _contexts(spec)),
    "Running as Non-root": lambda spec: _on_all(spec, lambda context: context.get("runAsNonRoot")),
    "Running as Non-root user": lambda spec: all(context.get("runAsUser") != 0 for context in _every(spec)),
    "Seccomp": lambda spec: _on_all(spec, _seccomp),
    "Capabilities": lambda spec: all(
        "ALL" in rights.get("drop", []) and set(rights.get("add", [])) <= {"NET_BIND_SERVICE"}
        for rights in (context.get("capabilities", {}) for context in _contexts(spec))
    ),
}
"""By name, whether a pod's spec keeps it."""
