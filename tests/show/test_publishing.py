"""What a run gives back to the repository."""

import json

from l2lkit import Store, names
from l2lkit.show import notebooks


def test_the_seconds_of_one_seeds_run_are_recorded_with_its_surrogates(monkeypatch, tmp_path):
    monkeypatch.setattr(names, "notebooks", lambda: [tmp_path / "notebooks" / "00.ipynb"])
    (tmp_path / "results" / "recorded").mkdir(parents=True)
    store = Store("smoke", device="cpu", output=tmp_path)
    first = {
        "train/iclr2020/plain/0": 3.0,
        "measure/iclr2020/pgm@ours/0": 2.0,
        "notebook/00_overview": 1.0,
        "train/iclr2020/pgm@ours/1": 4.0,  # a surrogate
    }
    others = {
        "train/iclr2020/grad@ours/1": 5.0,
        "measure/iclr2020/pgm@ours/1": 6.0,
        "train/iclr2020/pgm@ours/12": 7.0,
        "row/iclr2020/pgm@ours/0": 8.0,
    }
    store.runs.mkdir(parents=True, exist_ok=True)
    about = {"step": 0.01, "seconds": first | others}
    (store.runs / "seconds.json").write_text(json.dumps(about))
    notebooks.publish_seconds(store)
    record = json.loads((tmp_path / "results" / "recorded" / "seconds-smoke.json").read_text())
    assert record["seconds"] == first and record["step"] == 0.01
