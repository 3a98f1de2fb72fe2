"""What a host may do: read what its own machines refer to, write its own objects, and nothing else.

`NodeGuard.decide` is asked by `authz` for identities `system:node:HOST` in `system:nodes`; `check_write` by `verbs`
with the old and the new object, so that a host which may write an object cannot reach beyond its part of it. Both
read memory only. A broken or stolen host can thus read the Secrets of the machines that run on it, not those of
others (DESIGN §2).
"""

from __future__ import annotations

import json
from typing import Any

from stead.kinds import register
from stead.kinds.resource import Resource
from stead.kube import selectors
from stead.kube.errors import ApiError
from stead.server.authn import User
from stead.server.authz import Attributes, Decision
from stead.server.registry import Registry

Object = dict[str, Any]

PREFIX = "system:node:"
GROUP = "system:nodes"
NODE_LABEL = "kubevirt.io/nodeName"
TARGET_LABEL = "kubevirt.io/migrationTargetNodeName"
SELECTED_NODE = "volume.kubernetes.io/selected-node"
SOURCE = "stead.io/source"
SNAPSHOT_HOST = "stead.io/host"
#: on a Backup: the host that it was given to
BACKUP_LABEL = "stead.io/host"

#: finalizers that a host takes away when its work on an object is done
OWN_FINALIZERS = frozenset({"kubevirt.io/foregroundDeleteVirtualMachine", "stead.io/volume", "stead.io/snapshot"})
#: annotations of a claim that a host writes
_CLAIM_ANNOTATIONS = frozenset({"stead.io/volume-handle", "stead.io/transfer", "stead.io/image-digest"})
#: labels that an image suggests and a host may add to the claim
_LABEL_PREFIX = "instancetype.kubevirt.io/"

#: fields of `migrationState` that the target of a migration writes; it fails one only before it began
_ARRIVAL_FIELDS = frozenset({
    "targetNodeAddress", "targetNodeDomainDetected", "targetNodeDomainReadyTimestamp", "failed", "failureReason",
    "endTimestamp",
})  # fmt: skip

#: kinds without secrets that every host may read: (group, plural)
_OPEN_READS = frozenset({
    ("", "nodes"), ("", "persistentvolumes"), ("", "persistentvolumeclaims"), ("", "namespaces"),
    ("storage.k8s.io", "storageclasses"), ("kubevirt.io", "kubevirts"), ("cdi.kubevirt.io", "cdis"),
    ("snapshot.storage.k8s.io", "volumesnapshots"),
    ("cdi.kubevirt.io", "cdiconfigs"), ("k8s.cni.cncf.io", "network-attachment-definitions"),
})  # fmt: skip
_READ = frozenset({"get", "list", "watch"})
_ALLOWED = Decision(True, "")


def _no(text: str) -> Decision:
    return Decision(False, text)


class NodeGuard:
    """See the module's prose."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def decide(self, user: User, asked: Attributes) -> Decision | None:
        """Decide for a host; None for everybody else and for what RBAC grants to all (discovery, own reviews)."""
        if GROUP not in user.groups or not user.name.startswith(PREFIX):
            return None
        if not asked.resource:
            return None
        host = user.name.removeprefix(PREFIX)
        plural, _, subresource = asked.resource.partition("/")
        if asked.group in ("authentication.k8s.io", "authorization.k8s.io"):
            return None
        if asked.verb in _READ and (asked.group, plural) in _OPEN_READS:
            return _ALLOWED
        if asked.group == "kubevirt.io" and plural == "virtualmachineinstances":
            return self._instances(host, asked)
        if asked.group == "kubevirt.io" and plural == "virtualmachines" and asked.verb == "get":
            # A host must learn that a machine has gone whose state it keeps; there is nothing to see.
            gone = self._registry.peek(register.VIRTUAL_MACHINE, asked.namespace, asked.name) is None
            return _ALLOWED if gone and not subresource else _no("a host does not read machines, only instances")
        if asked.group == "coordination.k8s.io" and plural == "leases":
            return self._lease(host, asked)
        if asked.group == "snapshot.storage.k8s.io" and plural == "volumesnapshots":
            found = self._registry.peek(register.VOLUME_SNAPSHOT, asked.namespace, asked.name)
            annotations = ((found or {}).get("metadata") or {}).get("annotations") or {}
            fits = asked.verb == "patch" and annotations.get(SNAPSHOT_HOST) == host
            return _ALLOWED if fits else _no("only snapshots that were given to this host")
        if asked.group == "stead.io" and plural in ("backups", "backuprepositories"):
            return self._backups(host, asked, plural, subresource)
        if (asked.group, plural) == ("stead.io", "joins"):
            return _ALLOWED if asked.verb == "create" else _no("a host renews its certificate only")
        if asked.group == "":
            return self._core(host, asked, plural, subresource)
        return _no(f"a host may not {asked.verb} {plural}")

    def _core(self, host: str, asked: Attributes, plural: str, subresource: str) -> Decision:
        if plural == "nodes":
            own = asked.name == host or (asked.verb == "create" and not asked.name)
            return _ALLOWED if own and asked.verb in ("create", "update", "patch") else _no("only its own Node")
        if plural == "events":
            return _ALLOWED if asked.verb in ("create", "patch", "update") else _no("events are written only")
        if plural == "persistentvolumeclaims":
            fits = asked.verb in ("patch", "update") and self._claim_is_mine(host, asked.namespace, asked.name)
            return _ALLOWED if fits else _no("only claims that are placed on this host")
        if plural == "persistentvolumes":
            fits = asked.verb in ("patch", "update") and self._volume_is_mine(host, asked.name)
            return _ALLOWED if fits else _no("only volumes that lie on this host")
        if plural in ("secrets", "configmaps"):
            fits = asked.verb == "get" and bool(asked.name) and self._is_referred_to(host, asked, plural)
            return _ALLOWED if fits else _no(f"no object bound to host {host} refers to it")
        if plural == "serviceaccounts":
            fits = asked.verb in ("get", "create") and self._is_referred_to(host, asked, plural)
            allowed = fits and (asked.verb == "get" or subresource == "token")
            return _ALLOWED if allowed else _no(f"no object bound to host {host} refers to it")
        return _no(f"a host may not {asked.verb} {plural}")

    def _lease(self, host: str, asked: Attributes) -> Decision:
        own = asked.namespace == "kube-node-lease" and (asked.name == host or asked.verb == "create")
        return _ALLOWED if own and asked.verb in ("get", "create", "update", "patch") else _no("only its own Lease")

    def _instances(self, host: str, asked: Attributes) -> Decision:
        if asked.verb in ("list", "watch"):
            label = f"{NODE_LABEL}={host}"
            try:
                terms = [str(term) for term in selectors.parse_labels(asked.labels).requirements]
            except ApiError:
                terms = []
            labels = (label, f"{NODE_LABEL}=={host}", f"{TARGET_LABEL}={host}", f"{TARGET_LABEL}=={host}")
            fits = any(allowed in terms for allowed in labels)
            return _ALLOWED if fits else _no(f"a host lists instances by the label {label} only")
        found = self._registry.peek(register.VIRTUAL_MACHINE_INSTANCE, asked.namespace, asked.name)
        if found is None:
            # A host must learn that an instance has gone; there is nothing to see.
            return _ALLOWED if asked.verb == "get" else _no("there is no such instance")
        if asked.verb in ("get", "update", "patch") and host in (host_of(found), target_of(found)):
            return _ALLOWED
        return _no(f"the instance is not bound to host {host}")

    def _backups(self, host: str, asked: Attributes, plural: str, subresource: str) -> Decision:
        """Backups that were given to the host, the status of those, and the repositories that they name."""
        if plural == "backuprepositories":
            used = any(b["spec"]["repository"] == asked.name for b in self._own_backups(host, asked.namespace))
            return _ALLOWED if asked.verb == "get" and used else _no("no backup of this host names the repository")
        if asked.verb in ("list", "watch"):
            label = f"{BACKUP_LABEL}={host}"
            return _ALLOWED if asked.labels in (label, f"{BACKUP_LABEL}=={host}") else _no(f"only by the label {label}")
        named = any(b["metadata"]["name"] == asked.name for b in self._own_backups(host, asked.namespace))
        fits = asked.verb == "get" or (asked.verb in ("patch", "update") and subresource == "status")
        return _ALLOWED if named and fits else _no(f"the backup is not given to host {host}")

    def _own_backups(self, host: str, namespace: str) -> list[Object]:
        found = self._registry.peek_all(register.BACKUP, namespace)
        return [b for b in found if (b["metadata"].get("labels") or {}).get(BACKUP_LABEL) == host and not is_over(b)]

    def _secrets_of_backups(self, host: str, namespace: str) -> set[str]:
        """Keys and credentials of the repositories that unfinished backups of the host go to."""
        names: set[str] = set()
        for backup in self._own_backups(host, namespace):
            repository = self._registry.peek(register.BACKUP_REPOSITORY, namespace, backup["spec"]["repository"])
            spec = (repository or {}).get("spec") or {}
            names |= {str(spec.get("keySecretName")), str((spec.get("s3") or {}).get("credentialsSecretName"))}
        return names

    def _mine(self, host: str, namespace: str) -> list[Object]:
        """Instances in a namespace that are bound to the host."""
        found = self._registry.peek_all(register.VIRTUAL_MACHINE_INSTANCE, namespace)
        return [vmi for vmi in found if host in (host_of(vmi), target_of(vmi))]

    def _claim_is_mine(self, host: str, namespace: str, name: str) -> bool:
        claim = self._registry.peek(register.PERSISTENT_VOLUME_CLAIM, namespace, name)
        if claim is not None and (claim["metadata"].get("annotations") or {}).get(SELECTED_NODE) == host:
            return True
        return any(name in names_in(vmi, "persistentvolumeclaims") for vmi in self._mine(host, namespace))

    def _volume_is_mine(self, host: str, name: str) -> bool:
        volume = self._registry.peek(register.PERSISTENT_VOLUME, "", name)
        if volume is None:
            return False
        required = ((volume.get("spec") or {}).get("nodeAffinity") or {}).get("required") or {}
        hosts: set[str] = set()
        for term in required.get("nodeSelectorTerms") or []:
            for expression in term.get("matchExpressions") or []:
                if expression.get("key") == "kubernetes.io/hostname":
                    hosts.update(expression.get("values") or [])
        if hosts:
            return host in hosts
        claim = (volume.get("spec") or {}).get("claimRef") or {}
        return self._claim_is_mine(host, claim.get("namespace", ""), claim.get("name", ""))

    def _is_referred_to(self, host: str, asked: Attributes, plural: str) -> bool:
        if any(asked.name in names_in(vmi, plural) for vmi in self._mine(host, asked.namespace)):
            return True
        if plural == "secrets" and asked.name in self._secrets_of_backups(host, asked.namespace):
            return True
        for claim in self._registry.peek_all(register.PERSISTENT_VOLUME_CLAIM, asked.namespace):
            annotations = claim["metadata"].get("annotations") or {}
            if annotations.get(SELECTED_NODE) == host and asked.name in _names_in_source(annotations, plural):
                return True
        return False

    # --- writes -------------------------------------------------------------------------------------------------

    def check_write(self, user: User, resource: Resource, old: Object | None, new: Object | None) -> None:
        """Hold a host to its part of an object that it may write. Raises 403."""
        if GROUP not in user.groups or not user.name.startswith(PREFIX):
            return
        host = user.name.removeprefix(PREFIX)
        trouble = self._trouble(host, resource, old, new)
        if trouble:
            name = ((new or old or {}).get("metadata") or {}).get("name", "")
            qualified = f"{resource.plural}.{resource.group}" if resource.group else resource.plural
            details = {"name": name, "group": resource.group, "kind": resource.plural}
            text = f'{qualified} "{name}" is forbidden: host "{host}" {trouble}'
            raise ApiError("Forbidden", text, {key: value for key, value in details.items() if value})

    def _trouble(self, host: str, resource: Resource, old: Object | None, new: Object | None) -> str:
        if new is None:
            return "may not delete"
        if resource.kind == "Node":
            return "" if new["metadata"].get("name") == host else "may write its own Node only"
        if resource.kind == "Lease":
            return "" if new["metadata"].get("name") == host else "may write its own Lease only"
        if old is None or resource.kind == "Event":
            return ""
        gone = set(old["metadata"].get("finalizers") or []) - set(new["metadata"].get("finalizers") or [])
        added = set(new["metadata"].get("finalizers") or []) - set(old["metadata"].get("finalizers") or [])
        if gone - OWN_FINALIZERS or added - OWN_FINALIZERS:
            return f"may not touch the finalizers {sorted((gone | added) - OWN_FINALIZERS)}"
        if resource.kind == "VirtualMachineInstance":
            return _arrival_trouble(old, new) if host_of(old) != host else _instance_trouble(old, new)
        if resource.kind == register.BACKUP.kind:
            return "may not change what was given to it" if _given(old) != _given(new) else ""
        if resource.kind in ("PersistentVolumeClaim", "PersistentVolume"):
            return _volume_trouble(old, new)
        if resource.kind == "VolumeSnapshot":
            return _snapshot_trouble(old, new)
        return ""


def _given(backup: Object) -> Object:
    """What the controller has written of a Backup."""
    status = backup.get("status") or {}
    return {"spec": backup.get("spec"), "labels": backup["metadata"].get("labels"), "host": status.get("host"),
            "manifests": status.get("manifests")}  # fmt: skip


def is_over(backup: Object) -> bool:
    """Whether a Backup has come to its end."""
    return (backup.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def _instance_trouble(old: Object, new: Object) -> str:
    if old.get("spec") != new.get("spec"):
        return "may not change spec"
    if host_of(old) != host_of(new):
        return "may not move an instance"
    if old["metadata"].get("ownerReferences") != new["metadata"].get("ownerReferences"):
        return "may not change owners"
    return ""


def _arrival_trouble(old: Object, new: Object) -> str:
    """A host that a machine is on its way to writes its part of the migration's state, nothing else."""

    def rest(vmi: Object) -> Object:
        status = dict(vmi.get("status") or {})
        state = status.pop("migrationState", None) or {}
        kept = {key: value for key, value in state.items() if key not in _ARRIVAL_FIELDS}
        metadata = {key: vmi["metadata"].get(key) for key in ("labels", "annotations", "finalizers", "ownerReferences")}
        return {"spec": vmi.get("spec"), "status": status, "state": kept, "metadata": metadata}

    return "" if rest(old) == rest(new) else "may change only how far the machine's arrival is"


def _volume_trouble(old: Object, new: Object) -> str:
    if old.get("spec") != new.get("spec") or old.get("status") != new.get("status"):
        return "may not change spec or status"
    before, after = old["metadata"].get("annotations") or {}, new["metadata"].get("annotations") or {}
    changed = {key for key in {*before, *after} if before.get(key) != after.get(key)}
    if changed - _CLAIM_ANNOTATIONS:
        return f"may not change the annotations {sorted(changed - _CLAIM_ANNOTATIONS)}"
    before, after = old["metadata"].get("labels") or {}, new["metadata"].get("labels") or {}
    changed = {key for key in {*before, *after} if before.get(key) != after.get(key)}
    if any(key in before or not key.startswith(_LABEL_PREFIX) for key in changed):
        return f"may not change the labels {sorted(changed)}"
    return ""


def target_of(vmi: Object) -> str:
    """The host that an instance is on its way to, or ""."""
    state = (vmi.get("status") or {}).get("migrationState") or {}
    target = str(state.get("targetNode") or "")
    labelled = (vmi["metadata"].get("labels") or {}).get(TARGET_LABEL)
    return target if target == labelled and not state.get("failed") else ""


def _snapshot_trouble(old: Object, new: Object) -> str:
    if old.get("spec") != new.get("spec"):
        return "may not change spec"
    before, after = (dict(each["metadata"].get("annotations") or {}) for each in (old, new))
    for each in (before, after):
        each.pop("stead.io/indications", None)
    same = before == after and old["metadata"].get("labels") == new["metadata"].get("labels")
    return "" if same else "may not change annotations or labels of a snapshot"


def host_of(vmi: Object) -> str:
    """The host that an instance is bound to, or ""."""
    return str((vmi.get("status") or {}).get("nodeName") or "")


def _names_in_source(annotations: dict[str, str], plural: str) -> set[str]:
    try:
        source = json.loads(annotations.get(SOURCE) or "{}")
    except ValueError:
        return set()
    if not isinstance(source, dict):
        return set()
    keys = ("secretRef", "secretExtraHeaders") if plural == "secrets" else ("certConfigMap",)
    found: set[str] = set()
    for key in keys:
        value = source.get(key)
        found.update(value if isinstance(value, list) else [value] if isinstance(value, str) else [])
    return found


def names_in(vmi: Object, plural: str) -> set[str]:
    """Names that an instance refers to, of `secrets`, `configmaps`, `persistentvolumeclaims` or `serviceaccounts`."""
    spec = vmi.get("spec") or {}
    found: set[str] = set()
    for volume in spec.get("volumes") or []:
        found |= _names_in_volume(volume, plural)
    if plural == "configmaps" and any("serviceAccount" in volume for volume in spec.get("volumes") or []):
        found.add("kube-root-ca.crt")  # what a pod finds beside its token
    if plural == "secrets":
        boot = ((spec.get("domain") or {}).get("firmware") or {}).get("kernelBoot") or {}
        pull = (boot.get("container") or {}).get("imagePullSecret")
        found.update([pull] if pull else [])
        for credential in spec.get("accessCredentials") or []:
            for method in credential.values():
                name = (((method or {}).get("source") or {}).get("secret") or {}).get("secretName")
                found.update([name] if name else [])
    return found


def _names_in_volume(volume: Object, plural: str) -> set[str]:
    def at(*path: str) -> list[str]:
        value: Any = volume
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return [value] if isinstance(value, str) and value else []

    if plural == "secrets":
        names = at("secret", "secretName") + at("containerDisk", "imagePullSecret") + at("sysprep", "secret", "name")
        for cloud in ("cloudInitNoCloud", "cloudInitConfigDrive"):
            names += at(cloud, "secretRef", "name") + at(cloud, "networkDataSecretRef", "name")
        return set(names)
    if plural == "configmaps":
        return set(at("configMap", "name") + at("sysprep", "configMap", "name"))
    if plural == "serviceaccounts":
        return set(at("serviceAccount", "serviceAccountName"))
    names = at("persistentVolumeClaim", "claimName") + at("dataVolume", "name")
    return set(names + at("ephemeral", "persistentVolumeClaim", "claimName") + at("memoryDump", "claimName"))
