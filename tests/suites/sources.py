# SPDX-License-Identifier: Apache-2.0
"""Fetches source distributions, once: they are kept in ``OTEL_CRDB_TEST_SOURCES``."""

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path


def cache():
    """Give the folder where everything is kept."""
    home = Path(os.environ.get("OTEL_CRDB_TEST_SOURCES") or Path.home() / ".cache" / "otel_crdb")
    home.mkdir(parents=True, exist_ok=True)
    return home


def unpacked(archive):
    """Give the folder of a source distribution."""
    source = cache() / f"{archive.name}-{archive.version}"
    if source.is_dir():
        return source
    with tempfile.TemporaryDirectory(dir=cache()) as folder:
        # pip asks the distribution for its metadata, and only unpacks what it is told.
        _pip("download", "--dest", folder, "--no-binary", archive.name, f"{archive.name}=={archive.version}")
        (packed,) = Path(folder).glob("*.tar.gz")
        if archive.sha256 is not None:
            found = hashlib.sha256(packed.read_bytes()).hexdigest()
            if found != archive.sha256:
                raise SystemExit(f"{packed.name} is not the file it was: sha256 {found}")
        with tarfile.open(packed) as opened:
            opened.extractall(Path(folder, "out"), filter="data")
        (inside,) = Path(folder, "out").iterdir()
        inside.rename(source)
    return source


def installed(archives):
    """Give a folder with these wheels in it, for ``PYTHONPATH``."""
    lines = [f"{each.name}=={each.version} --hash=sha256:{each.sha256}\n" for each in archives]
    name = hashlib.sha256("".join(lines).encode()).hexdigest()[:16]
    target = cache() / f"wheels-{name}"
    if not target.is_dir():
        with tempfile.TemporaryDirectory(dir=cache()) as folder:
            wanted = Path(folder, "requirements.txt")
            wanted.write_text("".join(lines))
            inside = Path(folder, "inside")
            _pip("install", "--only-binary", ":all:", "--require-hashes", "-r", wanted, "--target", inside)
            inside.rename(target)
    return target


def _pip(command, *arguments):
    options = ["--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([sys.executable, "-m", "pip", command, *options, *arguments], check=True)
