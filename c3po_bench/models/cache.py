"""What the cache folder holds of models: checkpoints that the program builds itself, and hashes of files.

A checkpoint is made once, whole or not at all, with its hashes beside it.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from c3po_bench.models import cache_dir
from c3po_bench.runtime.locks import exclusive_lock
from c3po_bench.store import identity
from c3po_bench.store.files import write_text, writing

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
READ = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".py", ".safetensors", ".bin")
"""Files of a model's folder that loading may read: config, tokenizer, code and weights."""


def build_once(name: str, recipe: dict[str, str], build: Callable[[Path], None]) -> Path:
    """The folder `<cache>/<name>-<hash of the recipe>`, built by `build(folder)` if it is missing or damaged.

    Any number of processes may ask at once: one builds, in a temporary folder that takes the final name only
    when complete, and the others wait. `recipe` holds whatever decides the content, so that a changed recipe
    never meets an old folder.
    """
    root = cache_dir()
    folder = root / folder_name(name, recipe)
    if is_intact(folder):
        return folder
    with writing(root, "C3PO_CACHE"), exclusive_lock(root, f".{folder.name}.lock"):
        if is_intact(folder):
            return folder
        for orphan in root.glob(f".{folder.name}-*"):  # of a build that was killed: nobody else has the lock
            shutil.rmtree(orphan, ignore_errors=True)
        log.info("building %s in %s (once)", name, root)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=root))
        try:
            build(scratch)
            _write_manifest(scratch, recipe)
            scratch.chmod(0o755)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(scratch, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder


def folder_name(name: str, recipe: dict[str, str]) -> str:
    """The name of the folder that `recipe` is built into: `<name>-<12 digits of the recipe's hash>`."""
    return f"{name}-{hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]}"


def is_intact(folder: Path, *, full: bool = False) -> bool:
    """Whether a built folder is what its manifest says: every file there with its size.

    `full` reads the hashes too.

    The quick check takes microseconds, the full one about a second per gigabyte.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
        if manifest["id"] != _identity(manifest["recipe"], files):
            return False
        if any((folder / name).stat().st_size != entry["size"] for name, entry in files.items()):
            return False
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return not full or all(file_hash(folder / name) == entry["sha256"] for name, entry in files.items())


def content_hash(folder: Path) -> str:
    """The hash over all files of a built folder, as recorded when it was built."""
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["id"]


def _write_manifest(folder: Path, recipe: dict[str, str]) -> None:
    files = {
        path.name: {"size": path.stat().st_size, "sha256": file_hash(path)}
        for path in sorted(folder.iterdir())
        if path.is_file()
    }
    manifest = {"schema_version": 1, "id": _identity(recipe, files), "recipe": recipe, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _identity(recipe: dict[str, str], files: dict[str, dict]) -> str:
    return hashlib.sha256(json.dumps([recipe, files], sort_keys=True).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_hash(folder: Path, nested: bool = False) -> str:
    """What identifies the model in a folder: the files that loading may read.

    With `nested` those of its folders, too.
    """
    files = sorted(
        file for file in (folder.rglob("*") if nested else folder.iterdir()) if file.suffix in READ
    )
    return identity.content_hash([[str(file.relative_to(folder)), _remembered_hash(file)] for file in files])


def _remembered_hash(path: Path) -> str:
    """SHA-256 of a file (a second or less a GB), kept in the cache until the file's size or time changes."""
    status = path.stat()
    key = identity.content_hash([str(path.resolve()), status.st_size, status.st_mtime_ns], 24)
    remembered = cache_dir() / "hashes" / key
    if remembered.exists():
        return remembered.read_text(encoding="utf-8")
    digest = file_hash(path)
    with suppress(OSError):  # without a cache it is read each time
        write_text(remembered, digest)
    return digest
