"""A package as one .tar.gz: the same files give the same bytes, and what is read may be hostile.

Nothing is written before all members are known to be plain files with safe names that the manifest lists with their
sizes and digests. Nothing here imports torch.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from compressor.errors import ArtifactError, IntegrityError
from compressor.files import require_none
from compressor.packaging.contents import MANIFEST, File, differences, files_in, read_manifest, shown

ENDINGS = (".tar.gz", ".tgz")
MOST_BYTES = 32 * 2**30  # of an unpacked archive: more is taken for a bomb
MOST_FILES = 10_000
CHUNK = 2**20  # bytes read at a time, and the most that a header may have
LARGEST_MANIFEST = 64 * CHUNK
LONGEST_NAME = 1024
LEVEL = 6
DAMAGE = (  # what libraries raise about it; recursion: of endless headers
    tarfile.TarError,
    gzip.BadGzipFile,
    EOFError,
    zlib.error,
    ValueError,
    OverflowError,
    IndexError,
    RecursionError,
)


def write(folder: Path, path: Path) -> None:
    """A folder's files as a new archive: sorted, owned by nobody, of no time, readable by all.

    The compressed bytes depend on the files and on zlib's version alone.
    """
    with (
        path.open("wb") as file,
        gzip.GzipFile("", "wb", LEVEL, file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for source in sorted(path for path in folder.rglob("*") if path.is_file()):
            with source.open("rb") as content:
                archive.addfile(_member(folder.name, source.relative_to(folder), source.stat().st_size), content)


def _member(top: str, name: Path, size: int) -> tarfile.TarInfo:
    """All but name and size is the default: no time, user and group 0 without names."""
    member = tarfile.TarInfo(f"{top}/{name.as_posix()}")
    member.size, member.mode = size, 0o644
    return member


@dataclass
class Contents:
    """What an archive holds below its one folder."""

    top: str = ""
    files: dict[str, File] = field(default_factory=dict)
    manifest: bytes | None = None


def check(path: Path, *, limit: int = MOST_BYTES) -> Contents:
    """Read an archive through without writing anything.

    Args:
        path: the archive.
        limit: most bytes that it may unpack to.

    Raises:
        ArtifactError: it is no package, or there is no such file.
        IntegrityError: it is damaged, a member is unsafe, or files are missing, changed or were added: they are named.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}: name a package's archive.")
    found = _survey(path, limit)
    if found.manifest is None:
        raise ArtifactError(f"{path} has no {MANIFEST}: it is no package of rankfold, or the manifest was taken out.")
    require_none(path, differences(read_manifest(found.manifest, path), found.files))
    return found


def unpack(path: Path | str, folder: Path | str, *, limit: int = MOST_BYTES) -> Path:
    """Check an archive and unpack it below `folder`; returns the package's own folder there.

    Raises:
        ArtifactError: it is no package, or the package's folder is there already.
        IntegrityError: whatever `check` finds, or the archive was replaced meanwhile; nothing is written then.
    """
    found = check(Path(path), limit=limit)
    target = Path(folder) / found.top
    _require_free(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=target.parent) as scratch:
        with _opened(Path(path), limit) as (archive, _):
            for member in filter(tarfile.TarInfo.isreg, archive):
                archive.extract(member, scratch, filter="data")
        unpacked = Path(scratch, found.top)
        require_none(Path(path), differences(found.files, files_in(unpacked)))  # another archive may lie there by now
        try:
            unpacked.rename(target)
        except OSError:
            _require_free(target)  # another process may have been faster
            raise
    return target


def _require_free(target: Path) -> None:
    if target.exists():
        raise ArtifactError(f"{target} exists already, and nothing is overwritten: remove it or name another folder.")


# ---- reading ----


@dataclass
class _Bounded:
    """A decompressed stream that ends neither in endless bytes nor in endless headers; what tarfile needs of a file."""

    stream: gzip.GzipFile
    limit: int

    def read(self, size: int = -1) -> bytes:
        self._require(0 <= size <= CHUNK, "a header of more than a megabyte")
        self._require(self.stream.tell() + size <= self.limit + CHUNK, f"more than {self.limit:,} bytes")
        return self.stream.read(size)

    def seek(self, place: int, whence: int = 0) -> int:
        self._require(place <= self.limit + CHUNK, f"more than {self.limit:,} bytes")
        return self.stream.seek(place, whence)

    def tell(self) -> int:
        return self.stream.tell()

    def _require(self, allowed: bool, what: str) -> None:
        if not allowed:
            raise IntegrityError(f"{self.stream.name} unpacks to {what}, which is refused.")


@contextmanager
def _opened(path: Path, limit: int) -> Iterator[tuple[tarfile.TarFile, gzip.GzipFile]]:
    """The archive and the stream below it; whatever libraries raise about damage becomes a sentence."""
    with path.open("rb") as file:
        if file.read(2) != b"\x1f\x8b":
            raise ArtifactError(f"{path} is no .tar.gz, so it is no package.")
    try:
        with gzip.open(path) as stream:
            bounded: Any = _Bounded(stream, limit)
            with tarfile.open(fileobj=bounded, mode="r:") as archive:
                yield archive, stream
    except tarfile.ReadError as error:
        raise ArtifactError(f"{path} holds no tar archive, so it is no package: {error}.") from error
    except DAMAGE as error:
        raise IntegrityError(f"{path} is cut off or damaged: {error}.") from error


def _survey(path: Path, limit: int) -> Contents:
    found, seen, faults, total = Contents(), set[str](), [], 0
    with _opened(path, limit) as (archive, stream):
        for count, member in enumerate(archive, 1):
            if member.size < 0:  # tarfile would go back, to the same member again
                raise IntegrityError(f"{path} has a member of {member.size:,} bytes, which is refused.")
            total += member.size
            if total > limit or count > MOST_FILES:
                raise IntegrityError(f"{path} unpacks to more than {limit:,} bytes or {MOST_FILES:,} files: refused.")
            fault = _fault(member, found.top) or ("appears twice" if member.name.casefold() in seen else "")
            seen.add(member.name.casefold())
            if fault:
                faults.append(f"{shown(member.name)} {fault}")
            elif member.isreg():
                found.top, _, name = member.name.partition("/")
                found.files[name] = _read(archive, member, found)
        require_none(path, faults or _within_files(found))
        rest = stream.read(CHUNK + 1)  # a record of zeros at most, of some KB
        if rest.strip(b"\0") or len(rest) > CHUNK:
            raise IntegrityError(f"{path} goes on after the archive's end, which is refused.")
    return found


def _fault(member: tarfile.TarInfo, top: str) -> str:
    """What is unsafe about a member, or an empty string."""
    name = member.name
    parts = PurePosixPath(name).parts
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
        return "is an absolute name"
    if len(name) > LONGEST_NAME:
        return "has too long a name"
    if ".." in parts or "\\" in name or not name.isprintable() or "/".join(parts) != name:
        return "is no plain relative name"
    if not (member.isreg() or member.isdir()) or member.issparse():
        return "is a link, a device or no plain file"
    if (len(parts) < 2 and member.isreg()) or (top and parts[0] != top):
        return "lies outside the package's one folder"
    return ""


def _within_files(found: Contents) -> Iterator[str]:
    """What is unsafe about members that have another one, a file, for a folder."""
    for name in found.files:
        above = (parent.as_posix() for parent in PurePosixPath(name).parents)
        yield from (
            f"{shown(name)} lies in {shown(parent)}, which is a file" for parent in above if parent in found.files
        )


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo, found: Contents) -> File:
    """Size and digest of a member; the manifest's text is kept."""
    content, hasher, kept = archive.extractfile(member), hashlib.sha256(), bytearray()
    assert content is not None
    is_manifest = member.name == f"{found.top}/{MANIFEST}"
    if is_manifest and member.size > LARGEST_MANIFEST:
        raise IntegrityError(f"{member.name} has {member.size:,} bytes, more than a manifest can have: refused.")
    while chunk := content.read(CHUNK):
        hasher.update(chunk)
        kept += chunk if is_manifest else b""
    if is_manifest:
        found.manifest = bytes(kept)
    return File(member.size, hasher.hexdigest())
