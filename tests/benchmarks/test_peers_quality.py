"""The benchmark beside other libraries: ours and theirs give the same samples, and times are kept apart."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import peers_quality


@pytest.mark.filterwarnings("ignore::sgm_sde.sampling.diagnosis.UnsuitedWarning")  # Heun with 4 calls, as theirs
@pytest.mark.parametrize("method", ["heun", "ancestral"])
def test_ours_beside_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    """Whoever is installed has a row for each method and budget, with the network calls asked for."""
    argv = ["--out", str(tmp_path), "--n", "40", "--batch", "24", "--nfe", "4,7", "--methods", method]
    monkeypatch.setattr(sys, "argv", ["peers_quality", *argv])
    peers_quality.main()
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "peers_quality.json").read_text())
    rows = result["rows"]
    assert {row["method"] for row in rows} == {method}
    libraries = {row["library"] for row in rows}
    assert libraries == {"sgm_sde", *result["peers"]}
    assert len(rows) == 2 * len(libraries)
    for row in rows:
        assert row["nfe"] == (row["budget"] // 2 * 2 if method == "heun" else row["budget"])
        assert row["batches"] == 2
        assert row["off_by"] < 1e-3
        assert row["frechet"] > 0
        assert row["network_s"] > 0
        assert row["beside_s"] > 0
        assert f"| {method} | {row['library']} | " in printed
