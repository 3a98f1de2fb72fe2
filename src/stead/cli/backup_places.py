"""Which repository a `stead backup` command means, and opening it with its key."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from stead.cli.session import Session
from stead.kinds import register
from stead.storage.backup.keys import BackupError, secret_from_text
from stead.storage.backup.repository import Repository
from stead.storage.backup.s3 import Bucket, BucketPlace
from stead.storage.backup.store import Directory, Store

F = TypeVar("F", bound=Callable[..., Any])


def where(function: F) -> F:
    """The options that name a repository."""
    for option in (
        click.option("--key-file", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Its key."),
        click.option(
            "--directory", type=click.Path(path_type=Path, file_okay=False), help="A folder, without the API."
        ),
        click.option("--repository", "-r", default="", help="BackupRepository of the namespace."),
    ):
        function = option(function)
    return function


async def opened(session: Session, place: dict[str, Any]) -> Repository:
    """Open what the options name. ClickException says what is wrong."""
    try:
        store, text = await _place(session, place)
        return await asyncio.to_thread(Repository.open, store, secret_from_text(text))
    except BackupError as error:
        raise click.ClickException(str(error)) from error


async def _place(session: Session, place: dict[str, Any]) -> tuple[Store, str]:
    if place.get("directory"):
        if not place.get("key_file"):
            raise click.UsageError("--directory needs --key-file")
        return Directory(place["directory"].absolute()), place["key_file"].read_text(encoding="utf-8")
    if not place.get("repository"):
        raise click.UsageError("say which repository: --repository, or --directory and --key-file")
    found = await session.client.get(register.BACKUP_REPOSITORY, session.namespace, place["repository"])
    spec = found["spec"]
    text = place["key_file"].read_text(encoding="utf-8") if place.get("key_file") else ""
    text = text or (await _secret(session, spec["keySecretName"])).get("key", "")
    if spec.get("directory"):
        return Directory(Path(spec["directory"]["path"])), text
    bucket = spec["s3"]
    keys = await _secret(session, bucket["credentialsSecretName"])
    return Bucket(
        BucketPlace(
            endpoint=bucket["endpoint"], bucket=bucket["bucket"], prefix=bucket.get("prefix") or "",
            region=bucket.get("region") or "us-east-1", access_key=keys.get("accessKeyId", ""),
            secret_key=keys.get("secretKey", ""),
        )
    ), text  # fmt: skip


async def _secret(session: Session, name: str) -> dict[str, str]:
    data = (await session.client.get(register.SECRET, session.namespace, name)).get("data") or {}
    return {key: base64.b64decode(value).decode() for key, value in data.items()}
