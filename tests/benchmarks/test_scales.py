"""The table of other scales follows the default, whatever it is made of."""

from __future__ import annotations

import pytest

import sgm_sde as sg
from benchmarks import scales


@pytest.mark.slow
def test_the_tables_are_made(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Two scales, one process, one budget for each table; for unit scale both settings are one."""
    monkeypatch.setattr(scales, "PROCESSES", {"VP": sg.VPSDE()})
    monkeypatch.setattr(scales, "SCALES", (1.0, 0.02))
    monkeypatch.setattr(scales, "BUDGETS", (8,))
    monkeypatch.setattr(scales, "MORE", (16,))
    monkeypatch.setattr(scales, "MEANS", (20.0,))
    monkeypatch.setattr(scales, "FEW", (8,))
    monkeypatch.setattr(scales, "WIDE", (3.0, 84.0))
    monkeypatch.setattr(scales, "WIDE_BUDGETS", (8,))
    assert scales.main() == 0

    lines = capsys.readouterr().out.splitlines()
    unit, small = (line.strip("| ").split(" | ") for line in lines[2:4])
    assert unit[:2] == ["VP", "1"] and unit[2] == unit[3]
    assert small[:2] == ["VP", "0.02"] and float(small[3]) < 0.2 * float(small[2])

    cells = [line.strip("| ").split(" | ") for line in lines]
    (raw,) = (float(row[-1]) for row in cells if row[0] == "EDM x 5000")
    default, found = (
        [float(cell) for cell in row[1:]] for row in cells if len(row) == 3 and row[0] in ("default", "pilot")
    )
    assert raw < 0.1

    (far,) = ([float(cell) for cell in row[2:]] for row in cells if row[:2] == ["VP", "20"])
    assert far[0] < far[1] / 3
    assert max(found) < 0.2 < default[1]
    assert [row[1] for row in cells if row[0] == "VP" and len(row) == 3] == ["default", "in log-SNR", "dpm++2m"]
    told = {data: ["told" in row[3] for row in cells if row[:2] == ["VP", data]] for data in scales.wide_data(1.0)}
    assert told["three modes"] == told["five modes"] == [False, True]
