"""No credential of a URL is printed, logged or stored."""

import json
import os
import subprocess
import sys

import pytest

from cae_seg.data.prepare.manifest import Manifest, save_manifest
from cae_seg.redaction import redact, redact_uri

SECRET = "s3cret"
URIS = [
    f"https://me:{SECRET}@example.org/a.zip",
    f"https://{SECRET}@example.org/a.zip",
    f"https://example.org:8443/a.zip?X-Signature={SECRET}&x=1",
    f"https://me:{SECRET}@example.org:8443/a.zip?token={SECRET}#part",
    f"postgresql://me:p@{SECRET}/:?#&w@db.example.org:5432/mlflow",
    f"postgresql+psycopg2://me:{SECRET}@db/mlflow?sslmode=require&password={SECRET}",
    f"mysql://me:a/{SECRET}@db/mlflow",
    f"http://me:x/{SECRET}@example.org/a",
    f"https://me:{SECRET}@[::1]:80/a",
]


@pytest.mark.parametrize("uri", URIS)
def test_credentials_are_hidden_in_an_address_and_in_text(uri):
    assert SECRET not in redact_uri(uri)
    assert SECRET not in redact(f"cannot reach {uri}: timed out")
    assert "***" in redact_uri(uri)


@pytest.mark.parametrize("uri", URIS)
def test_scheme_and_host_stay_readable(uri):
    hidden = redact_uri(uri)
    assert hidden.startswith(uri.split("://")[0] + "://")
    assert any(host in hidden for host in ("example.org", "db", "[::1]"))


@pytest.mark.parametrize("password", ["a b", "a'b", 'a"b', "<x>", "ü", "a\tb", "://", "@@@"])
def test_a_password_of_a_database_may_hold_any_character(password):
    assert redact_uri(f"postgresql://me:{password}@db/x") == "postgresql://***@db/x"


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////home/me/a b/mlflow.db",
        "http://127.0.0.1:5000/#/experiments/1",
        "https://example.org/path@v1/file.pth",
        "data/a@b.zip: no such file",
        "C:/x?y",
    ],
)
def test_text_without_credentials_is_unchanged(text):
    assert redact(text) == text


def cae_seg(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "cae_seg.cli", *arguments]
    env = os.environ | environment
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)


def test_a_failed_download_does_not_print_the_token(tmp_path):
    url = f"http://me:{SECRET}@127.0.0.1:1/a.zip?token={SECRET}"
    answer = cae_seg("prepare", "data", "--source", url, "--root", str(tmp_path / "data"),
                     "--manifest", str(tmp_path / "m.json"))  # fmt: skip
    assert answer.returncode == 2
    assert SECRET not in answer.stdout + answer.stderr
    assert "http://***@127.0.0.1:1/a.zip?***: cannot be downloaded" in answer.stderr


def test_an_address_may_name_an_environment_variable_that_must_be_set(tmp_path):
    url = "http://127.0.0.1:1/a.zip?token=${CAE_SEG_TEST_TOKEN}"
    arguments = ("prepare", "data", "--source", url, "--root", str(tmp_path / "data"),
                 "--manifest", str(tmp_path / "m.json"))  # fmt: skip
    assert "variable CAE_SEG_TEST_TOKEN is not set" in cae_seg(*arguments).stderr
    answer = cae_seg(*arguments, CAE_SEG_TEST_TOKEN=SECRET)
    assert "cannot be downloaded" in answer.stderr
    assert SECRET not in answer.stderr


def test_the_manifest_does_not_store_the_token(tmp_path):
    counts = {"training": 0, "validation": 0}
    manifest = Manifest(tmp_path, "f", (), counts, {split: {} for split in counts}, URIS[3])
    save_manifest(manifest, tmp_path / "manifest.json")
    text = (tmp_path / "manifest.json").read_text()
    assert SECRET not in text
    assert json.loads(text)["source"].startswith("https://***@example.org:8443/a.zip")
