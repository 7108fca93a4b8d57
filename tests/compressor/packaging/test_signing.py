"""Signatures: made and checked with elliptic-curve keys, offline."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from compressor.errors import DependencyError, InputError, IntegrityError
from compressor.packaging import assemble, rehearsal, signing
from compressor.packaging.archive import unpack, write
from compressor.packaging.contents import write_manifest
from compressor.packaging.verification import verify

needs_library = pytest.mark.usefixtures("_library")


@pytest.fixture
def _library() -> None:
    for module in ("model_signing", "OpenSSL"):
        pytest.importorskip(module, reason="needs the `sign` extra: pip install 'rankfold[sign]'")


@pytest.fixture
def keys(tmp_path: Path) -> Any:
    """A name -> (private, public) key files in PEM, on P-256."""

    def make(name: str, **changes: Any) -> tuple[Path, Path]:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(changes.get("curve", ec.SECP256R1()))
        private, public = tmp_path / f"{name}.pem", tmp_path / f"{name}.pub"
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                changes.get("encryption", serialization.NoEncryption()),
            )
        )
        public.write_bytes(
            key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )
        return private, public

    return make


@pytest.fixture
def signed(run: Path, keys: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A signed package and the public key."""
    monkeypatch.setattr(rehearsal, "rehearse", lambda folder, **trust: None)
    private, public = keys("ours")
    made = assemble.package(run, sign_with=private)
    assert made.signed
    return made.path, public


@needs_library
def test_a_signature_holds_with_its_key(signed: tuple[Path, Path], tmp_path: Path) -> None:
    path, public = signed
    assert verify(path, public).signature == "verified"
    assert verify(path).signature == "unchecked"
    folder = unpack(path, tmp_path / "there").rename(tmp_path / "renamed")
    found = verify(folder, public)
    assert (found.signature, found.files) == ("verified", 11)


@needs_library
def test_another_key_is_told(signed: tuple[Path, Path], keys: Any) -> None:
    with pytest.raises(IntegrityError, match=r"the signature does not hold: .*[Kk]ey"):
        verify(signed[0], keys("theirs")[1])


@needs_library
def test_a_file_that_was_changed_together_with_its_manifest_is_named(signed: tuple[Path, Path], tmp_path: Path) -> None:
    path, public = signed
    folder = unpack(path, tmp_path / "there")
    with (folder / "predict.py").open("a") as file:
        file.write("# changed\n")
    (folder / "manifest.json").unlink()
    write_manifest(folder)
    assert verify(folder).signature == "unchecked"  # digests alone cannot tell
    write(folder, tmp_path / "changed.tar.gz")
    for place in (folder, tmp_path / "changed.tar.gz"):
        with pytest.raises(IntegrityError, match=r"does not hold: .*predict\.py"):
            verify(place, public)


@needs_library
def test_a_signature_that_was_taken_out_or_spoiled_is_told(signed: tuple[Path, Path], tmp_path: Path) -> None:
    path, public = signed
    folder = unpack(path, tmp_path / "there")
    (folder / "model.sig").write_text("{}")
    with pytest.raises(IntegrityError, match="the signature does not hold"):
        verify(folder, public)
    (folder / "model.sig").unlink()
    with pytest.raises(IntegrityError, match=r"is not signed: it has no model\.sig"):
        verify(folder, public)


@needs_library
def test_a_key_that_cannot_sign_or_verify_is_one_sentence(run: Path, keys: Any, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    (tmp_path / "text").write_text("no key")
    locked = keys("locked", encryption=serialization.BestAvailableEncryption(b"secret"))[0]
    rsa_key = rsa.generate_private_key(65537, 2048)
    (tmp_path / "rsa.pem").write_bytes(
        rsa_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    other = keys("other", curve=ec.SECP256K1())[0]
    for key in (tmp_path / "text", tmp_path / "nothing.pem", locked, tmp_path / "rsa.pem", other):
        with pytest.raises(InputError, match=r"cannot sign: .* It must be an unencrypted elliptic-curve key"):
            signing.sign(run, key)
        assert not (run / "model.sig").exists()
    (run / "model.sig").write_text("{}")
    with pytest.raises(InputError, match="cannot verify: "):
        signing.verify(run, tmp_path / "text")


def test_a_missing_library_is_named_with_the_command_that_installs_it(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("model_signing", "model_signing.signing"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DependencyError, match=r"pip install 'rankfold\[sign\]'") as caught:
        signing.sign(run, run / "key.pem")
    assert caught.value.exit_code == 3
