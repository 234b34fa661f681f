import json

from .argo import details
from .conftest import QUICK, Perfit, write_federation


def test_a_run_is_submitted_followed_and_linked(api, perfit, file):
    out = perfit.succeed("submit", file, *QUICK)
    (pipeline,) = api.pipelines.values()
    print(out)
