"""What `stead next` tells people to type, and what `stead image remove` does when it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from stead.cli.hosts import _login
from stead.cli.main import main
from stead.client.direct import DirectClient
from stead.kinds.resource import Resource
from stead.kube.errors import ApiError, not_found


def machine(image: str, preference: str = "") -> dict[str, Any]:
    return {
        "kind": "VirtualMachine",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "preference": {"name": preference},
            "dataVolumeTemplates": [{"spec": {"sourceRef": {"kind": "DataSource", "name": image}}}] if image else [],
        },
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a kubeconfig of a server that nobody asks, and settings that lie elsewhere than usual."""
    (tmp_path / "kubeconfig").write_text(
        "{apiVersion: v1, kind: Config, current-context: c, clusters: [{name: c, cluster: {server: 'http://x'}}],"
        " users: [{name: u, user: {}}], contexts: [{name: c, context: {cluster: c, user: u}}]}"
    )
    (tmp_path / "stead.toml").write_text(f'state_dir = "{tmp_path}/elsewhere"\n')
    return tmp_path


def run(folder: Path, *words: str) -> Result:
    arguments = ["--config", f"{folder}/stead.toml", "--kubeconfig", f"{folder}/kubeconfig", *words]
    return CliRunner().invoke(main, arguments)


@pytest.mark.parametrize(
    ("image", "preference", "user"),
    [
        ("golden", "debian", "debian"), ("debian12", "", "debian"), ("fedora", "", "fedora"),
        ("almalinux9", "", "almalinux"), ("mine", "debian", ""), ("", "debian", ""),
    ],
)  # fmt: skip
def test_the_account_is_that_of_the_image(image: str, preference: str, user: str) -> None:
    assert _login(machine(image, preference)) == user


@pytest.mark.parametrize(("image", "told"), [("debian12", True), ("mine", False)])
def test_next_names_this_installations_files_and_the_images_account(
    folder: Path, monkeypatch: pytest.MonkeyPatch, image: str, told: bool
) -> None:
    async def get(_self: object, resource: Resource, *_name: str) -> dict[str, Any]:
        return machine(image) if resource.kind == "VirtualMachine" else {}

    monkeypatch.setattr(DirectClient, "get", get)
    done = run(folder, "next", "web")
    assert done.exit_code == 0, done.output
    assert f"export KUBECONFIG={folder}/elsewhere/admin.kubeconfig" in done.output
    assert ("stead ssh debian@web" in done.output) is told
    assert ("ssh" in done.output) is told


def test_an_image_that_may_not_be_removed_is_not_called_absent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = ApiError("Forbidden", "datasources is forbidden: not yours")

    async def delete(_self: object, resource: Resource, _namespace: str, name: str) -> None:
        raise refused if resource.kind == "DataSource" else not_found(resource.plural, name, resource.group)

    monkeypatch.setattr(DirectClient, "delete", delete)
    done = run(folder, "image", "remove", "debian12")
    assert done.exit_code == 1
    assert "not yours" in done.output
