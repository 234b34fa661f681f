"""Connecting to Kubeflow: who may, and the error for everyone else."""

from __future__ import annotations

import socket
import subprocess
from contextlib import closing

import pytest

from perfit_pipelines.cluster.connection import Endpoint

from .conftest import QUICK, Perfit
from .kfp_api import KfpApi, serving

TOKEN = "eyJhbGciOi.secret.token"
COOKIE = "authservice_session=secret-cookie"


def test_nobody_listens(perfit, file):
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
    error = perfit.fail("submit", file, "--host", f"http://127.0.0.1:{port}")
    assert error.problem.startswith(f"Kubeflow at http://127.0.0.1:{port} cannot be reached")
    assert "port-forward" in error.fix


def test_no_such_host(perfit, file):
    error = perfit.fail("submit", file, "--host", "http://kubeflow.invalid")
    assert "cannot be reached" in error.problem


def test_no_host_at_all(file):
    error = Perfit(KfpApi()).fail("schedule", "list", "--host", "")
    assert "cannot be reached" in error.problem
    assert "--host" in error.fix


def test_credentials_in_the_address_are_not_repeated(perfit, file):
    error = perfit.fail("submit", file, "--host", "http://me:password@kubeflow.invalid")
    assert "http://kubeflow.invalid" in error.problem
    assert "password" not in str(error)


def test_credentials_in_the_address_are_not_in_links(api, perfit, file):
    host = api.url.replace("://", "://me:password@")
    out = perfit.succeed("submit", file, "--host", host, *QUICK)
    assert f"{api.url}/#/runs/details/" in out
    assert "password" not in out


def test_the_host_may_come_from_kfps_own_variable(api, file, monkeypatch):
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", api.url)
    Perfit(api).succeed("schedule", "list")
    assert api.calls("GET", "/recurringruns")


def test_links_go_to_the_ui_where_the_host_is_the_bare_api(api, perfit, file):
    out = perfit.succeed("submit", file, "--ui-host", "https://kubeflow.example/pipeline/", *QUICK)
    assert "https://kubeflow.example/pipeline/#/runs/details/" in out


def test_a_token_is_used_and_not_shown(serve, file, monkeypatch):
    perfit = Perfit(serve(token=TOKEN))
    monkeypatch.setenv("PERFIT_KFP_TOKEN", TOKEN)
    assert "secret" not in perfit.succeed("submit", file, *QUICK)
    assert "secret" not in repr(Endpoint(token=TOKEN, cookies=COOKIE))


@pytest.mark.parametrize("token", ["", "secret-but-old"])
def test_a_wrong_token_is_refused_at_once_and_not_shown(serve, file, monkeypatch, token):
    api = serve(token=TOKEN)
    monkeypatch.setenv("PERFIT_KFP_TOKEN", token)
    result = Perfit(api)("submit", file)
    assert "(401)" in result.exception.problem
    assert "PERFIT_KFP_TOKEN" in result.exception.fix
    assert "secret" not in f"{result.output}{result.exception}"
    # KFP's own client would ask five times, five seconds apart.
    assert len(api.requests) == 1


def test_cookies_of_a_browser_session_are_used(serve, file, monkeypatch):
    monkeypatch.setenv("PERFIT_KFP_COOKIES", COOKIE)
    Perfit(serve(cookie=COOKIE)).succeed("submit", file, *QUICK)


def test_a_login_page_instead_of_data(serve, file):
    api = serve(cookie=COOKIE)
    error = Perfit(api).fail("submit", file)
    assert "answered with a web page" in error.problem
    assert "PERFIT_KFP_COOKIES" in error.fix
    assert not api.pipelines


def test_several_users_need_a_namespace(serve, file):
    error = Perfit(serve(multi_user=True)).fail("submit", file)
    assert "serves several users" in error.problem
    assert "--namespace" in error.fix


def test_everything_goes_to_the_namespace(serve, file):
    api = serve(multi_user=True, namespaces=("team-a",))
    perfit = Perfit(api)
    result = perfit("submit", file, "--namespace", "team-a", *QUICK)
    assert result.exit_code == 0
    assert {item.namespace for item in (*api.pipelines.values(), *api.experiments.values())} == {"team-a"}

    api.play(("FAILED", []))
    assert "kubectl logs -n team-a" in perfit("submit", file, "--namespace", "team-a", *QUICK).stderr


def test_a_namespace_of_others(serve, file):
    error = Perfit(serve(multi_user=True)).fail("submit", file, "--namespace", "team-b")
    assert "(403)" in error.problem
    assert "not authorized" in error.problem
    assert "--namespace" in error.fix


def test_a_namespace_is_no_matter_where_kubeflow_serves_one_user(api, perfit, file):
    perfit.succeed("submit", file, "--namespace", "anything", *QUICK)
    assert not any("namespace" in query for _, _, query in api.requests)


def test_a_server_that_is_not_kubeflow(api, perfit, file):
    api.fail("GET", "/healthz", 404, "no such page")
    error = perfit.fail("submit", file)
    assert "(404)" in error.problem
    assert "--host" in error.fix


def test_a_server_that_fails(api, perfit, file):
    api.fail("POST", "/experiments$", 500, "the database is gone")
    error = perfit.fail("submit", file)
    assert "would not create the experiment demo (500): the database is gone" in error.problem
    assert "kubectl -n kubeflow logs deploy/ml-pipeline" in error.fix
    # The server's trace of Go functions is of no use here.
    assert "github.com" not in str(error)


def test_a_login_page_without_a_redirect(api, perfit, file):
    api.fail("GET", "/healthz", 200)
    assert "answered with a web page" in perfit.fail("submit", file).problem


def test_https_where_there_is_none(api, perfit, file):
    error = perfit.fail("submit", file, "--host", api.url.replace("http:", "https:"))
    assert error.problem == f"{api.url.replace('http:', 'https:')} does not speak TLS"


def test_a_certificate_of_an_authority_of_ones_own(tmp_path):
    certificate = tmp_path / "server.pem"
    names = ("-subj", "/CN=kubeflow", "-addext", "subjectAltName=IP:127.0.0.1")
    new = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1")
    made = ("-keyout", certificate, "-out", tmp_path / "ca.pem")
    subprocess.run([*new, *names, *made], check=True, capture_output=True)
    certificate.write_text(certificate.read_text() + (tmp_path / "ca.pem").read_text())
    with serving(KfpApi(), certificate) as api:
        perfit = Perfit(api)
        error = perfit.fail("schedule", "list")
        assert "cannot be verified" in error.problem
        assert "--ca-cert" in error.fix
        perfit.succeed("schedule", "list", "--ca-cert", tmp_path / "ca.pem")
        perfit.succeed("schedule", "list", "--no-verify-ssl")
