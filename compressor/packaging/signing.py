"""Signatures over a package's files by the OpenSSF's model-signing, with an elliptic-curve key and no network."""

from __future__ import annotations

from contextlib import redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

from compressor.errors import ArtifactError, DependencyError, InputError, IntegrityError, first_line
from compressor.packaging.contents import SIGNATURE

KINDS = "an unencrypted elliptic-curve key (P-256, P-384 or P-521) in PEM"
MAKE = "`openssl ecparam -name prime256v1 -genkey -noout -out key.pem`"


def sign(folder: Path, key: Path) -> None:
    """Write model.sig: a Sigstore bundle with the digest of every file of the folder, signed with a private key.

    Raises:
        DependencyError: model-signing is not installed.
        InputError: the key cannot be read or used.
    """
    config = _library("signing").Config()
    try:
        config.use_elliptic_key_signer(private_key=key)
    except Exception as error:  # the library and cryptography raise many kinds; each becomes a sentence
        raise InputError(f"{key} cannot sign: {first_line(error)}. It must be {KINDS}; {MAKE} makes one.") from error
    config.set_hashing_config(_hashing()).sign(folder, folder / SIGNATURE)


def verify(folder: Path, key: Path) -> None:
    """Hold a folder against its model.sig and a public key.

    Raises:
        ArtifactError: the key cannot be read or used.
        DependencyError: model-signing is not installed.
        IntegrityError: there is no signature, it was made with another key, or files differ from what was signed.
    """
    if not (folder / SIGNATURE).is_file():
        raise IntegrityError(f"{folder.name} is not signed: it has no {SIGNATURE}.")
    config = _library("verifying").Config()
    try:
        config.use_elliptic_key_verifier(public_key=key)
    except Exception as error:  # as above
        raise ArtifactError(
            f"{key} cannot verify: {first_line(error)}. It must be the public half of {KINDS}."
        ) from error
    try:
        with redirect_stdout(StringIO()):  # the library prints warnings there
            config.set_hashing_config(_hashing()).verify(folder, folder / SIGNATURE)
    except Exception as error:  # as above
        reason = first_line(error) if str(error).strip() else "it was not made with this key, or has been changed"
        raise IntegrityError(f"{folder.name}: the signature does not hold: {reason}.") from error


def _hashing() -> Any:
    """Every file but the signature counts."""
    return _library("hashing").Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)


def _library(part: str) -> Any:
    try:
        return import_module(f"model_signing.{part}")
    except ImportError as error:
        raise DependencyError(
            f"Signatures need model-signing and pyopenssl ({error}): pip install 'rankfold[sign]'."
        ) from error
