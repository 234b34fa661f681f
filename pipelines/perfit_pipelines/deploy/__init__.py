"""``perfit deploy``: an overlay of manifests/ with the keys of a federation's server and clients in it.

What it lays on top of ``manifests/overlays/NAME``:

- in the namespace of the runs, a Secret ``perfit-server`` and one a client (``client_secret``), each with AWS_ENDPOINT_URL,
  AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION;
- in the namespace of MinIO (``perfit``), Secrets that MinIO's setup reads. For each role (``perfit-server``, or
  ``perfit-<federation>-<client>``) they hold ``<role>.keys`` (a line with the access key, a line with the secret key: what
  ``mc admin user add ALIAS`` reads from its standard input) and ``<role>.policy.json``, the policy to create under that
  name and to attach to that access key.
"""
