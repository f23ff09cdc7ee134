"""Addresses behind the methods of a path: names, secrets, and what a service that fails says."""

import os
import pickle
from pathlib import Path

import pytest

from object_storage import require_packages
from sonde.core.errors import StoreError
from sonde.files.durable import atomic_write, make_directory, require_local
from sonde.files.places import Place, to_path
from sonde.files.services import _failure, service_of


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("s3://bucket/a/b.sonde", ("s3:", "bucket", "a", "b.sonde")),
        ("GS://bucket/a", ("gs:", "bucket", "a")),
        (Path("az://box/a"), ("az:", "box", "a")),  # pathlib leaves one slash
        ("hf://datasets/org/name/x.parquet", ("hf:", "datasets", "org", "name", "x.parquet")),
    ],
)
def test_an_address_is_a_place_with_the_names_of_a_path(address, parts):
    place = to_path(address)
    assert isinstance(place, Place)
    assert place.parts == parts
    assert (
        to_path(str(place))
        == place
        == to_path(Path(str(place)))
        == pickle.loads(pickle.dumps(place))
    )
    assert isinstance(place.parent / "c", Place)
    assert str(place.with_suffix(".run")).startswith(f"{parts[0]}//{parts[1]}/")
    assert place.absolute() is place.resolve() is place


@pytest.mark.parametrize("path", ["acts", "C:/acts", "sonde:digits/test", "ftp://host/a", "-"])
def test_everything_else_stays_a_path(path):
    assert not isinstance(to_path(path), Place)


def test_secrets_of_an_address_are_not_shown(monkeypatch):
    address = "https://ada:secret@host/a/x.jsonl?X-Amz-Signature=0123456789"
    place = to_path(address)
    assert str(place) == "https://host/a/x.jsonl"
    assert place.suffix == ".jsonl"
    assert place._asked_key() == address
    assert pickle.loads(pickle.dumps(place))._asked_key() == address
    monkeypatch.setattr("sonde.files.services.urlopen", _refused)
    with pytest.raises(StoreError, match="answered 403") as caught:
        place.read_bytes()
    assert "secret" not in str(caught.value) + repr(caught.value.__cause__)


def _refused(request, timeout):
    from email.message import Message
    from urllib.error import HTTPError

    raise HTTPError(request.full_url, 403, "secret", Message(), None)


@pytest.mark.parametrize("scheme", ["https", "hf"])
def test_places_that_are_only_read_refuse_to_be_written(scheme):
    for write in (lambda p: atomic_write(p, b""), make_directory):
        with pytest.raises(StoreError, match="can be written, got one that is only read"):
            write(f"{scheme}://host/org/x.sonde")


@pytest.mark.parametrize("address", ["s3://", "S3:", Path("gs://"), "az://", Path("hf:/")])
def test_an_address_without_a_bucket_is_no_folder(address):
    for write in (lambda p: atomic_write(p, b""), make_directory):
        with pytest.raises(
            StoreError, match=r"expected \w+://BUCKET/NAME, got no bucket|only read"
        ):
            write(address)
    assert not Path(str(address)).exists()


def test_settings_that_open_no_service_are_one_sentence(monkeypatch):
    require_packages()
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", os.devnull + "/none.json")
    for scheme, said in (("az", "MissingAccount"), ("gs", "OpenCredentials")):
        with pytest.raises(StoreError, match=rf"^{scheme}://none-{scheme}: the settings .*{said}"):
            to_path(f"{scheme}://none-{scheme}/x").exists()


def test_an_address_of_this_machine_is_told_its_path():
    with pytest.raises(StoreError, match=r"file:///tmp/x\.sonde: .* Name it /tmp/x\.sonde\."):
        atomic_write("file:///tmp/x.sonde", b"")


def test_an_unknown_scheme_is_refused():
    with pytest.raises(StoreError, match="a path on this machine, got an address"):
        atomic_write("ftp://host/x.sonde", b"")


def test_a_failure_is_one_sentence_without_the_answer():
    class GenericError(Exception):
        pass

    body = "<Error><Code>SlowDown</Code><Key>AKIAEXAMPLE</Key></Error>"
    told = str(
        _failure(
            "s3://b/x", GenericError(f"performing PUT in 536.1ms: Server returned 503 Slow: {body}")
        )
    )
    assert told.startswith("s3://b/x: it answered 503 (SlowDown), after 8 retries within 60 s.")
    assert "AKIA" not in told
    assert "is kept" in told
    assert "retries" not in str(_failure("s3://b/x", GenericError("404 Not Found: NoSuchBucket")))


def test_access_that_is_refused_is_said_as_that():
    class GenericError(Exception):
        pass

    told = str(_failure("s3://b/x", GenericError("Client error with status 403 Forbidden")))
    assert "access was refused, or there are no credentials" in told


def test_a_bucket_opens_without_credentials(monkeypatch):
    require_packages()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert service_of("s3", "nobody-told-this-one") is not None


def test_a_service_is_opened_once():
    assert service_of("https", "host") is service_of("https", "host")


@pytest.mark.parametrize("as_type", [str, Path])
@pytest.mark.parametrize("address", ["s3:bucket", "GS:bucket/a", "az:a", "hf:a/b", "https:host/a"])
def test_an_address_without_slashes_is_refused_and_not_written_beside(address, as_type):
    scheme, _, rest = address.partition(":")
    with pytest.raises(StoreError, match=f"Write {scheme.lower()}://{rest}, or /.*{address} for a"):
        to_path(as_type(address))
    with pytest.raises(StoreError, match="two slashes"):
        require_local(as_type(address))
    whole = Path.cwd() / address
    assert to_path(whole) == whole
