"""Write the golden pipelines anew; look at the difference before you commit it.

.venv/bin/python tests/perfit_pipelines/renew_goldens.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from goldens import PIPELINES, compiled, golden_file, normalised

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        for pipeline in PIPELINES:
            golden_file(pipeline).parent.mkdir(exist_ok=True)
            golden_file(pipeline).write_text(normalised(compiled(pipeline, Path(directory))), encoding="utf-8")
            print(f"wrote {golden_file(pipeline)}")
