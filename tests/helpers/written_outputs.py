"""Outputs with a true manifest, without the work of a command."""

from __future__ import annotations

import hashlib

import pytest

from vacc_deploy.checkpoint.manifest import MANIFEST_NAME
from vacc_deploy.errors import OutputError
from vacc_deploy.outputs.manifests import LinkedFile, write_manifest
from vacc_deploy.outputs.writer import WrittenFile


def names(directory):
    """Return what lies in a directory, sorted."""
    return sorted(path.name for path in directory.iterdir())


def refused(function, *args, **options):
    """Return the message of the ``OutputError`` with which ``function`` refuses."""
    with pytest.raises(OutputError) as caught:
        function(*args, **options)
    return str(caught.value)


def list_files(directory, *, command="prepare", linked=(), source=None):
    """Write the manifest of every file in a directory, and of the manifests in those below it."""
    (directory / MANIFEST_NAME).unlink(missing_ok=True)
    files = []
    for path in sorted(directory.iterdir()):
        name = f"{path.name}/{MANIFEST_NAME}" if path.is_dir() else path.name
        data = (directory / name).read_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        if name in linked:
            files.append(LinkedFile(name, len(data), sha256))
        elif not name.startswith(".vacc-deploy-"):
            files.append(WrittenFile(name, len(data), sha256))
    return write_manifest(
        directory, command=command, model="m", source=source or {}, options={}, files=files
    )
