"""Flows of coupled pairs are trained by the couplings that are named, and measured as the default takes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import sgm_sde as sg
from benchmarks import beds, coupled_flows
from benchmarks.defaults import programs


def test_transport_within_a_batch() -> None:
    """In one dimension the least sum of squares pairs data and noise in order."""
    generator = torch.Generator().manual_seed(0)
    x, z = torch.randn(2, 16, 1, generator=generator)
    order = x.flatten().argsort()
    assert coupled_flows.transported(x, z)[order].equal(z.sort(0).values)


@pytest.mark.parametrize("name", ["moons-transport", "rings-reflow"])
def test_a_network_is_trained_and_measured(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default is that for coupled pairs."""
    short = replace(coupled_flows.RECIPES[name], iterations=3, n=4, steps=(100, 0))
    monkeypatch.setattr(coupled_flows, "WEIGHTS", tmp_path)
    monkeypatch.setattr(coupled_flows, "PAIRS", 64)
    monkeypatch.setattr(coupled_flows, "RECIPES", {name: short})
    monkeypatch.setattr(beds, "CACHE", tmp_path)
    monkeypatch.setattr(beds, "BUDGETS", (5,))
    monkeypatch.setattr(coupled_flows, "programs", lambda sde, nfe: dict(list(programs(sde, nfe).items())[:3]))
    found = coupled_flows.measure(name)

    bed = coupled_flows.bed(name)
    assert bed.score.coupled
    straight = beds.error(bed, sg.defaults.default_setting(bed.sde, 5, coupled=True), 5)
    assert found[5].default == max(straight, bed.reference.doubt)
    lines = coupled_flows.tables({name: found})
    assert lines[2].startswith(f"| {name} | choose | 5 | {found[5].default:.2g} |")
    assert f"| default / DDIM, worst | {found[5].default / found[5].ddim:.1f} |" in lines
