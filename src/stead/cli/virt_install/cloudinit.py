"""cloud-init: user data from virt-install's sub-options, in the manifest or in a Secret. Pure.

Text goes into the manifest up to KubeVirt's 2048 bytes; longer text, and whatever holds a password, into a Secret that
belongs to the machine.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from stead.cli.virt_install.plan import Line, Object, Plan
from stead.cli.virt_install.suboptions import Given, Refusal

#: KubeVirt's limit of inline user and network data, bytes
INLINE = 2048
#: what a Secret may hold, bytes
MOST = 1024 * 1024
_KEY = re.compile(r"(ssh-[a-z0-9-]+|ecdsa-sha2-[a-z0-9-]+|sk-[a-z0-9@.-]+) [A-Za-z0-9+/=]+( .*)?")
_DISABLE = ["sh", "-c", "echo 'Disabled after the first boot' > /etc/cloud/cloud-init.disabled"]
_GENERATED = ("root-password-generate", "root-password-file", "root-ssh-key", "clouduser-ssh-key", "disable")


def add_cloud_init(line: Line, plan: Plan) -> None:
    """The cloud-init disk, if one is asked for. Raises Refusal."""
    given = line.last("--cloud-init")
    keys = [key for text in line.texts.get("--ssh-key", ()) for key in _keys("--ssh-key", text, plan)]
    if given is None and not keys:
        return
    if given is not None and not given.values:
        given = Given("--cloud-init", {"root-password-generate": "on", "disable": "on"})
    given = given or Given("--cloud-init", {})
    user, has_password = _user_data(given, keys, plan)
    network = plan.facts.read_text(given.get("network-config")) if given.get("network-config") else ""
    _apply_meta_data(given, plan)
    source: Object = {}
    secret: dict[str, str] = {}
    for text, inline, reference, key in (
        (user, "userData", "secretRef", "userdata"),
        (network, "networkData", "networkDataSecretRef", "networkdata"),
    ):
        if not text:
            continue
        if len(text.encode()) > INLINE or (has_password and key == "userdata"):
            secret[key] = text
            source[reference] = {"name": f"{plan.name}-cloudinit"}
        else:
            source[inline] = text
    if sum(len(text.encode()) for text in secret.values()) > MOST:
        raise Refusal(f"--cloud-init: more than {MOST // 1024} KiB of user and network data")
    if secret:
        meta = plan.meta(f"{plan.name}-cloudinit")
        made = {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "type": "Opaque", "stringData": secret}
        plan.secrets.append(made)
    plan.disks.append({"name": "cloudinit", "disk": {}})
    plan.volumes.append({"name": "cloudinit", "cloudInitNoCloud": source or {"userData": "#cloud-config\n"}})


def _user_data(given: Given, keys: list[str], plan: Plan) -> tuple[str, bool]:
    """(user data, whether it holds a password)."""
    if given.get("user-data"):
        for name in _GENERATED:
            if name in given.values:
                raise Refusal(f"--cloud-init user-data= is taken as it is; put {name} into that file")
        if keys:
            raise Refusal("--cloud-init user-data= is taken as it is; put --ssh-key into that file")
        text = plan.facts.read_text(given.get("user-data"))
        if not text.strip():
            raise Refusal(f"--cloud-init user-data={given.get('user-data')[:120]}: the file is empty")
        return text, False
    config: dict[str, Any] = {}
    password = _password(given, config, plan)
    if given.get("clouduser-ssh-key"):
        keys = [*keys, *_keys("--cloud-init clouduser-ssh-key", given.get("clouduser-ssh-key"), plan)]
    if keys:
        config["ssh_authorized_keys"] = keys
    if given.get("root-ssh-key"):
        found = _keys("--cloud-init root-ssh-key", given.get("root-ssh-key"), plan)
        config["disable_root"] = False
        config["users"] = ["default", {"name": "root", "ssh_authorized_keys": found}]
    if given.switch("disable"):
        config["runcmd"] = [_DISABLE]
    if not config:
        return "", False
    return "#cloud-config\n" + yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=4096), password


def _password(given: Given, config: dict[str, Any], plan: Plan) -> bool:
    generated = given.switch("root-password-generate")
    file = given.get("root-password-file")
    if generated and file:
        raise Refusal("--cloud-init root-password-generate and root-password-file exclude each other")
    if file:
        lines = plan.facts.read_text(file).splitlines()
        password = lines[0].strip() if lines else ""
        if not password:
            raise Refusal(f"--cloud-init root-password-file={file[:120]}: the file's first line is empty")
    elif generated:
        password = plan.facts.password()
        plan.notes.append(f"Password for first root login is: {password}")
    else:
        return False
    config["chpasswd"] = {
        "expire": bool(generated),
        "users": [{"name": "root", "password": password, "type": "text"}],
    }
    return True


def _keys(what: str, text: str, plan: Plan) -> list[str]:
    """Public keys: a key itself, or a file with one on each line. Raises Refusal."""
    given = text if _KEY.fullmatch(text.strip()) else plan.facts.read_text(text)
    found = [line.strip() for line in given.splitlines() if line.strip() and not line.startswith("#")]
    if "PRIVATE KEY" in given:
        raise Refusal(f"{what} {text[:120]} is a private key; give the public one (usually {text[:100]}.pub)")
    for key in found:
        if not _KEY.fullmatch(key):
            raise Refusal(f"{what} {text[:120]}: this is neither a public key nor a file with public keys")
    if not found:
        raise Refusal(f"{what} {text[:120]}: there is no key in it")
    return found


def _apply_meta_data(given: Given, plan: Plan) -> None:
    """meta-data=: the host name goes into the manifest, the instance's id is Stead's own, the rest is refused."""
    if not given.get("meta-data"):
        return
    path = given.get("meta-data")
    try:
        data = yaml.safe_load(plan.facts.read_text(path))
    except (yaml.YAMLError, ValueError, RecursionError):
        raise Refusal(f"--cloud-init meta-data={path[:120]}: this is no YAML") from None
    if not isinstance(data, dict):
        raise Refusal(f"--cloud-init meta-data={path[:120]}: names and values are meant")
    for name, value in data.items():
        if name in ("local-hostname", "hostname"):
            if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", str(value)):
                raise Refusal(f"--cloud-init meta-data: {str(name)[:40]} {str(value)[:60]!r} is no host name")
            plan.spec["hostname"] = str(value)
        elif name == "instance-id":
            plan.warn("--cloud-init meta-data: Stead gives instance-id itself, from the machine's UUID")
        else:
            raise Refusal(f"--cloud-init meta-data: {str(name)[:60]} is refused; local-hostname is taken")
