"""Archives: the same files give the same bytes, and nothing hostile is written anywhere."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from compressor.errors import ArtifactError, IntegrityError
from compressor.packaging import archive
from compressor.packaging.contents import write_manifest
from compressor.packaging.verification import verify

FILES = {"a.txt": b"one", "model/b.bin": bytes(range(256)) * 40}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A package's folder with two files and their manifest."""
    for name, content in FILES.items():
        path = tmp_path / "half" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    write_manifest(tmp_path / "half")
    return tmp_path / "half"


@pytest.fixture
def packed(folder: Path, tmp_path: Path) -> Path:
    archive.write(folder, tmp_path / "half.tar.gz")
    return tmp_path / "half.tar.gz"


Change = Callable[[tarfile.TarFile], None]


def rewritten(packed: Path, *, drop: str = "", add: Change | None = None) -> Path:
    """The archive without a file, or with members of one's own at its end."""
    other = packed.with_name("hostile.tar.gz")
    with tarfile.open(packed) as old, tarfile.open(other, "w:gz") as new:
        for member in old:
            if member.name != drop:
                new.addfile(member, old.extractfile(member))
        if add:
            add(new)
    return other


def member(name: str, content: bytes = b"x", **changes: object) -> Change:
    """A member with a name and whatever else is odd about it."""

    def add(new: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        for key, value in changes.items():
            setattr(info, key, value)
        new.addfile(info, io.BytesIO(content))

    return add


def outside(tmp_path: Path) -> set[str]:
    return {path.name for path in tmp_path.iterdir()} - {"there"}


# ---- what is written ----


def test_the_same_files_give_the_same_bytes_wherever_and_whenever_they_lie(folder: Path, tmp_path: Path) -> None:
    archive.write(folder, tmp_path / "one.tar.gz")
    other = tmp_path / "elsewhere" / "half"
    for name in reversed([path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]):
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (other / name).write_bytes((folder / name).read_bytes())
        (other / name).chmod(0o600)
        os.utime(other / name, (1, 1))
    archive.write(other, tmp_path / "two.tgz")
    assert (tmp_path / "one.tar.gz").read_bytes() == (tmp_path / "two.tgz").read_bytes()


def test_members_are_sorted_and_say_nothing_of_who_made_them(packed: Path) -> None:
    with tarfile.open(packed) as opened:
        members = opened.getmembers()
    assert [one.name for one in members] == ["half/a.txt", "half/manifest.json", "half/model/b.bin"]
    assert {(one.mtime, one.uid, one.gid, one.uname, one.gname, one.mode) for one in members} == {
        (0, 0, 0, "", "", 0o644)
    }
    assert packed.read_bytes()[4:8] == bytes(4)  # gzip's time


def test_what_was_written_unpacks_to_the_same_files(packed: Path, tmp_path: Path) -> None:
    found = archive.unpack(packed, tmp_path / "there")
    assert found == tmp_path / "there" / "half"
    assert {name: (found / name).read_bytes() for name in FILES} == FILES
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["half"]
    with pytest.raises(ArtifactError, match="exists already, and nothing is overwritten"):
        archive.unpack(packed, tmp_path / "there")


def test_what_tar_itself_packs_again_is_still_the_package(packed: Path, tmp_path: Path) -> None:
    found = archive.unpack(packed, tmp_path / "there")
    again = tmp_path / "again.tar.gz"
    subprocess.run(["tar", "czf", again, "-C", found.parent, found.name], check=True)
    assert verify(again).files == 2


# ---- what is refused ----


@pytest.mark.parametrize(
    ("add", "said"),
    [
        (member("/etc/passwd"), "'/etc/passwd' is an absolute name"),
        (member("C:/boot.ini"), "'C:/boot.ini' is an absolute name"),
        (member("\\\\server\\file"), "is an absolute name"),
        (member("half/../../escaped"), "'half/../../escaped' is no plain relative name"),
        (member("../escaped"), "'../escaped' is no plain relative name"),
        (member("half\\..\\escaped"), "is no plain relative name"),
        (member("half/./a"), "'half/./a' is no plain relative name"),
        (member("half/a\x1b[2J"), r"'half/a\x1b[2J' is no plain relative name"),
        (member("half/link", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "'half/link' is a link"),
        (member("half/hard", type=tarfile.LNKTYPE, linkname="half/a.txt"), "'half/hard' is a link"),
        (member("half/pipe", type=tarfile.FIFOTYPE), "'half/pipe' is a link, a device or no plain file"),
        (member("half/disk", type=tarfile.BLKTYPE), "'half/disk' is a link, a device or no plain file"),
        (member("half/a.txt"), "'half/a.txt' appears twice"),
        (member("half/A.TXT"), "'half/A.TXT' appears twice"),
        (member("other/a.txt"), "'other/a.txt' lies outside the package's one folder"),
        (member("a.txt"), "'a.txt' lies outside the package's one folder"),
        (member("half/extra.py"), "'extra.py' is not in the manifest"),
    ],
)
def test_a_hostile_member_is_named_and_nothing_is_written(packed: Path, tmp_path: Path, add: Change, said: str) -> None:
    hostile = rewritten(packed, add=add)
    before = outside(tmp_path)
    with pytest.raises(IntegrityError) as caught:
        archive.unpack(hostile, tmp_path / "there")
    assert said in str(caught.value)
    assert caught.value.exit_code == 1
    assert outside(tmp_path) == before
    assert not (tmp_path / "there").exists()


def test_all_hostile_members_are_named_at_once(packed: Path, tmp_path: Path) -> None:
    def add(new: tarfile.TarFile) -> None:
        member("/etc/passwd")(new)
        member("half/../x")(new)

    with pytest.raises(IntegrityError, match=r"(?s)'/etc/passwd' is an absolute.*'half/\.\./x' is no plain"):
        archive.unpack(rewritten(packed, add=add), tmp_path / "there")


def test_a_member_larger_than_the_manifest_says_is_refused(packed: Path, tmp_path: Path) -> None:
    hostile = rewritten(packed, drop="half/a.txt", add=member("half/a.txt", b"one and more"))
    with pytest.raises(IntegrityError, match=r"'a\.txt' has been changed: it has 12 bytes, not 3"):
        archive.unpack(hostile, tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_more_bytes_than_the_limit_are_not_even_read(packed: Path, tmp_path: Path) -> None:
    bomb = rewritten(packed, add=member("half/zeros", bytes(50_000_000)))
    assert bomb.stat().st_size < 100_000
    with pytest.raises(IntegrityError, match="unpacks to more than 1,000,000 bytes"):
        archive.unpack(bomb, tmp_path / "there", limit=1_000_000)
    assert not (tmp_path / "there").exists()


def test_a_size_that_no_archive_has_is_refused(packed: Path, tmp_path: Path) -> None:
    def add(new: tarfile.TarFile) -> None:
        info = tarfile.TarInfo("half/huge")
        info.size = 2**50
        assert new.fileobj is not None
        new.fileobj.write(info.tobuf(tarfile.GNU_FORMAT))

    with pytest.raises(IntegrityError, match="unpacks to more than"):
        archive.unpack(rewritten(packed, add=add), tmp_path / "there")


def test_a_header_of_megabytes_is_not_taken_into_memory(packed: Path, tmp_path: Path) -> None:
    hostile = rewritten(packed, add=member("half/" + "n" * 3_000_000))
    with pytest.raises(IntegrityError, match="a header of more than a megabyte"):
        archive.unpack(hostile, tmp_path / "there")


def test_a_negative_size_that_leads_back_to_the_same_header_is_refused(packed: Path) -> None:
    """In a process of its own: a reader that goes back reads for ever."""
    hostile = rewritten(packed, add=member("half/back", b"", pax_headers={"size": "-1536"}))
    code = f"from compressor.packaging.verification import verify\nverify({str(hostile)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert re.search(r"IntegrityError: .*(a member of -1,536 bytes, which is refused|cut off or damaged)", done.stderr)


def test_members_of_one_name_are_counted_and_told_in_few_lines(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def add(new: tarfile.TarFile) -> None:
        for _ in range(300):
            member("half/a.txt")(new)

    hostile = rewritten(packed, add=add)
    with pytest.raises(IntegrityError) as caught:
        archive.check(hostile)
    lines = str(caught.value).splitlines()
    assert (len(lines), lines[-1]) == (102, "  and 200 more")
    monkeypatch.setattr(archive, "MOST_FILES", 200)
    with pytest.raises(IntegrityError, match="or 200 files"):
        archive.check(hostile)


def test_a_process_that_unpacks_the_same_at_the_same_time_is_not_disturbed(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, extract = tmp_path / "there", tarfile.TarFile.extract
    (there / ".half.partial").mkdir(parents=True)  # somebody's own

    def overtaken(*values: Any, **options: Any) -> None:
        monkeypatch.setattr(tarfile.TarFile, "extract", extract)
        archive.unpack(packed, there)
        extract(*values, **options)

    monkeypatch.setattr(tarfile.TarFile, "extract", overtaken)
    with pytest.raises(ArtifactError, match="exists already, and nothing is overwritten"):
        archive.unpack(packed, there)
    assert verify(there / "half").files == 2
    assert sorted(path.name for path in there.iterdir()) == [".half.partial", "half"]


@pytest.mark.parametrize("top", ["half", "other"])
def test_an_archive_that_is_replaced_while_it_is_unpacked_is_not_taken_for_the_one_that_was_checked(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, top: str
) -> None:
    (tmp_path / "new" / top).mkdir(parents=True)
    (tmp_path / "new" / top / "a.txt").write_bytes(b"two")
    check = archive.check

    def overtaken(path: Path, **limit: int) -> archive.Contents:
        found = check(path, **limit)
        archive.write(tmp_path / "new" / top, path)
        return found

    monkeypatch.setattr(archive, "check", overtaken)
    with pytest.raises(IntegrityError, match=r"'model/b\.bin' is missing"):
        archive.unpack(packed, tmp_path / "there")
    assert [*(tmp_path / "there").iterdir()] == []


@pytest.mark.parametrize(("name", "said"), [("none.tar.gz", "does not exist"), ("half", "is a folder")])
def test_what_is_no_file_is_not_unpacked(packed: Path, tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(ArtifactError, match=f"{said}: name a package's archive"):
        archive.unpack(tmp_path / name, tmp_path / "there")


@pytest.mark.parametrize("name", ["::add-mask::secret", "\x1b[2Jcleared", "n" * 200_000])
def test_a_hostile_name_is_quoted_and_cut(packed: Path, name: str) -> None:
    listed = {name: {"size": 3, "sha256": ""}}
    text = json.dumps({"schema_version": 1, "files": listed}).encode()
    hostile = rewritten(packed, drop="half/manifest.json", add=member("half/manifest.json", text))
    with pytest.raises(IntegrityError) as caught:
        verify(hostile)
    assert f"  {name[:100]!r} is missing" in str(caught.value).splitlines()
    assert str(caught.value).replace("\n", "").isprintable()


def test_too_many_files_are_refused(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MOST_FILES", 2)
    with pytest.raises(IntegrityError, match="or 2 files"):
        archive.unpack(packed, tmp_path / "there")


def test_a_sparse_file_is_refused(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "half" / "sparse").touch()
    os.truncate(tmp_path / "half" / "sparse", 10_000_000)
    sparse = tmp_path / "sparse.tar.gz"
    subprocess.run(["tar", "czSf", sparse, "-C", tmp_path, "half"], check=True)
    with pytest.raises(IntegrityError, match="'half/sparse' is a link, a device or no plain file"):
        archive.check(sparse)


@pytest.mark.parametrize("key", ["GNU.sparse.size", "GNU.sparse.realsize", "GNU.sparse.map"])
def test_a_sparse_header_of_nonsense_is_damage(packed: Path, key: str) -> None:
    hostile = rewritten(packed, add=member("half/x", pax_headers={key: "a,b"}))
    with pytest.raises(IntegrityError):
        archive.check(hostile)


def test_what_follows_the_archives_end_is_refused(packed: Path, tmp_path: Path) -> None:
    with packed.open("ab") as file:
        file.write(gzip.compress(b"hidden"))
    with pytest.raises(IntegrityError, match="goes on after the archive's end"):
        archive.check(packed)


@pytest.mark.parametrize("kept", [0.5, 0.99])
def test_an_archive_that_is_cut_off_is_told(packed: Path, kept: float) -> None:
    packed.write_bytes(packed.read_bytes()[: int(kept * packed.stat().st_size)])
    with pytest.raises(IntegrityError, match=r"half\.tar\.gz is cut off or damaged"):
        archive.check(packed)


def test_a_flipped_bit_of_the_archive_is_told(packed: Path) -> None:
    content = bytearray(packed.read_bytes())
    content[len(content) // 2] ^= 4
    packed.write_bytes(content)
    with pytest.raises(ArtifactError):
        archive.check(packed)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"some text", r"is no \.tar\.gz, so it is no package"),
        (b"", r"is no \.tar\.gz, so it is no package"),
        (gzip.compress(b"some text" * 200, mtime=0), "holds no tar archive, so it is no package"),
    ],
)
def test_another_file_is_no_package(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "other.tar.gz").write_bytes(content)
    with pytest.raises(ArtifactError, match=said) as caught:
        archive.check(tmp_path / "other.tar.gz")
    assert caught.value.exit_code == 2


def test_an_archive_without_a_manifest_is_no_package(packed: Path) -> None:
    with pytest.raises(ArtifactError, match=r"has no manifest\.json: it is no package") as caught:
        archive.check(rewritten(packed, drop="half/manifest.json"))
    assert caught.value.exit_code == 2


INFINITE = b'{"schema_version": 1, "files": {"a.txt": {"size": Infinity, "sha256": ""}}}'


@pytest.mark.parametrize(
    "text", [b"{", b"[]", b"{}", b'{"schema_version": 1, "files": {"a.txt": 3}}', b"[" * 100_000, b"\xff", INFINITE]
)
def test_a_manifest_that_is_none_is_one_sentence(packed: Path, text: bytes) -> None:
    hostile = rewritten(packed, drop="half/manifest.json", add=member("half/manifest.json", text))
    with pytest.raises(IntegrityError, match=r"manifest\.json cannot be read"):
        archive.check(hostile)


@pytest.mark.parametrize("listed", [{"a.txt": {"size": 3, "sha256": sha256(b"one").hexdigest()}}, ["a.txt"]])
def test_a_manifest_of_another_schema_is_refused(packed: Path, listed: Any) -> None:
    text = json.dumps({"schema_version": 9, "files": listed}).encode()
    with pytest.raises(ArtifactError, match="schema version 9; this version reads 1"):
        archive.check(rewritten(packed, drop="half/manifest.json", add=member("half/manifest.json", text)))


# ---- verify ----


def test_every_changed_missing_and_new_file_is_named_in_an_archive(packed: Path) -> None:
    hostile = rewritten(packed, drop="half/a.txt", add=member("half/new"))
    changed = rewritten(hostile, drop="half/model/b.bin", add=member("half/model/b.bin", bytes(256 * 40)))
    with pytest.raises(IntegrityError) as caught:
        verify(changed)
    assert str(caught.value).splitlines()[1:] == [
        "  'a.txt' is missing",
        "  'model/b.bin' has been changed",
        "  'new' is not in the manifest",
    ]


def test_every_changed_missing_and_new_file_is_named_in_a_folder(folder: Path) -> None:
    assert verify(folder).files == 2
    (folder / "a.txt").write_bytes(b"two")
    (folder / "model" / "b.bin").unlink()
    (folder / "model" / "new").write_bytes(b"")
    with pytest.raises(IntegrityError) as caught:
        verify(folder)
    assert str(caught.value).splitlines()[1:] == [
        "  'a.txt' has been changed",
        "  'model/b.bin' is missing",
        "  'model/new' is not in the manifest",
    ]


def test_a_link_in_a_folder_is_named(folder: Path) -> None:
    (folder / "a.txt").rename(folder.parent / "a.txt")
    (folder / "a.txt").symlink_to(folder.parent / "a.txt")
    with pytest.raises(IntegrityError, match=r"'a\.txt' is a link or a device"):
        verify(folder)


def test_a_package_whose_manifest_is_gone_cannot_hold(folder: Path) -> None:
    (folder / "package.json").write_text("{}")
    (folder / "manifest.json").unlink()
    with pytest.raises(IntegrityError, match=r"manifest\.json is missing"):
        verify(folder)


def test_a_folder_that_is_neither_package_nor_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is no run or artifact folder") as caught:
        verify(tmp_path)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("spoiled", "code"), [(False, 0), (True, 1)])
def test_verify_needs_no_torch_and_its_exit_code_tells(packed: Path, spoiled: bool, code: int) -> None:
    if spoiled:
        packed = rewritten(packed, add=member("half/new"))
    heavy = {"torch", "transformers", "datasets", "onnxruntime", "tokenizers"}
    program = f"""
import sys
from compressor.cli import main
try:
    main()
finally:
    assert not {heavy!r} & set(sys.modules)
"""
    command = [sys.executable, "-c", program, "verify", str(packed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert ("'new' is not in the manifest" in done.stderr) == spoiled
    assert done.stdout == ("" if spoiled else f"{packed}: 2 files, none changed; not signed\n")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_endless_headers_are_no_bug(packed: Path, kind: bytes) -> None:
    def chained(new: tarfile.TarFile) -> None:
        for _ in range(2000):
            header = tarfile.TarInfo("x")
            header.type, header.size = kind, 0
            new.fileobj.write(header.tobuf())  # type: ignore[union-attr]

    with pytest.raises((ArtifactError, IntegrityError)):
        archive.check(rewritten(packed, add=chained))


def test_zeros_without_end_are_not_read(packed: Path) -> None:
    longer = packed.with_name("longer.tar.gz")
    longer.write_bytes(packed.read_bytes() + gzip.compress(bytes(8 * archive.CHUNK)))
    with pytest.raises(IntegrityError, match="goes on after the archive's end"):
        archive.check(longer, limit=archive.CHUNK)


def test_a_member_below_a_file_is_refused_before_anything_is_there(folder: Path, packed: Path, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"'a.txt/b' lies in 'a.txt', which is a file"):
        archive.unpack(rewritten(packed, add=member("half/a.txt/b")), tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_what_is_not_there_is_no_run_folder(tmp_path: Path) -> None:
    for key in (None, tmp_path / "key"):
        with pytest.raises(ArtifactError, match=r"z.tar.gz does not exist: name a package"):
            verify(tmp_path / "z.tar.gz", key)


def test_a_name_without_end_is_refused_at_once(packed: Path) -> None:
    with pytest.raises(IntegrityError, match="has too long a name"):
        archive.check(rewritten(packed, add=member("half/" + "a/" * 50_000 + "a")))
