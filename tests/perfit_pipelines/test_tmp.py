import os
from ..perfit.tiny import save_llama
from ..perfit_components.running import *
def test_x(tmp_path, perfit, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/"llama").mkdir()
    spec = make_spec(save_llama(tmp_path / "llama"), write_data(tmp_path / "data"), **TWO_TIERS)
    (tmp_path/"f.yaml").write_text(spec.to_yaml())
    import time
    for i in range(2):
        t=time.time()
        r = perfit("run", "f.yaml", "--store", (tmp_path/"store").as_uri())
        print(r.code); print(r.out); print(r.err)
        print(time.time()-t)
    print((tmp_path/".perfit/tiny/run.log").read_text()[:5000])
