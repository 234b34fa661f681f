"""Prints what the extras of a project need, one requirement a line: `requirements.py pyproject.toml EXTRA...`.

With it an image's packages are a layer of their own, which a change of this project's code leaves as it is.
"""

import sys
import tomllib

with open(sys.argv[1], "rb") as file:
    project = tomllib.load(file)["project"]
extras = [project["optional-dependencies"][name] for name in sys.argv[2:]]
print("\n".join(dict.fromkeys(sum(extras, project["dependencies"]))))
