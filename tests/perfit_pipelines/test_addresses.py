"""Which names only a cluster's pods resolve."""

from perfit_pipelines.addresses import is_inside


def test_a_host_inside():
    hosts = {
        "minio.perfit.svc": True,
        "minio.perfit.svc.cluster.local": True,
        "minio": True,
        "s3.example.org": False,
        "127.0.0.1": False,
        "2001:db8::1": False,
    }
    assert {host: is_inside(host) for host in hosts} == hosts
