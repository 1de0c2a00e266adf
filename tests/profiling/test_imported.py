# SPDX-License-Identifier: Apache-2.0
"""Chains from a folder of results: sums, failed cases, folders of other bundles."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from secateur.bundle.reader import Bundle
from secateur.engines.cases import Case
from secateur.errors import BadMeasurement
from secateur.export.bundle import Exported
from secateur.profiling.imported import read_folder, timed_schedules
from tests.profiling import made

Trt = tuple[Path, Exported]


@pytest.fixture(scope="module")
def bundle(trt_bundle: Trt) -> Bundle:
    return Bundle.load(trt_bundle[0])


def cost(case: Case) -> float:
    """Return a time in milliseconds that differs for every case."""
    return 1.0 + len(case.graph) + case.shapes.get("hidden_states", (1, 1, 1))[1] / 64


def test_a_chain_is_the_sum_of_its_graphs(bundle: Bundle, tmp_path: Path) -> None:
    cases = made.usual_cases(bundle.manifest)
    names = list(bundle.manifest.schedules)
    found = read_folder(bundle, made.folder(bundle.manifest, tmp_path / "results", cases, cost), names)
    assert [chain.schedule for chain in found.chains] == names and not found.failures
    assert found.machine == {"GPU": "Orin", "TensorRT": "10.16.0.72"}
    for chain in found.chains:
        mine = [case for case in cases if chain.schedule in case.schedules]
        first = sum(cost(case) for case in mine if case.kind != "decode")
        assert chain.first_token.p50 == pytest.approx(first)
        assert chain.first_token.p99 == pytest.approx(1.5 * first)
        assert chain.first_token.p90 is chain.first_token.p95 is None
        assert chain.decode is not None
        assert chain.decode.p50 == pytest.approx(sum(cost(case) for case in mine if case.kind == "decode"))
        assert sum(chain.stages.values()) == pytest.approx(first)
        assert chain.encode.p50 + chain.prefill.p50 == pytest.approx(first)
        assert chain.speed_up == pytest.approx(found.chains[0].first_token.p50 / first)
        gates = {gate.graph for gate in bundle.manifest.schedules[chain.schedule].gates}
        spent = sum(cost(case) for case in mine if case.graph in gates)
        assert chain.gates_share == pytest.approx(spent / first)
        for part in (False, True):
            shares = [
                g.shares[chain.schedule]
                for g in found.graphs
                if chain.schedule in g.shares and (g.part == "decode") == part
            ]
            assert sum(shares) == pytest.approx(1)


def test_times_and_layers_of_a_gate(bundle: Bundle, tmp_path: Path) -> None:
    cases = made.usual_cases(bundle.manifest)
    found = read_folder(
        bundle, made.folder(bundle.manifest, tmp_path / "results", cases, cost), list(bundle.manifest.schedules)
    )
    gate = next(graph for graph in found.graphs if graph.kind == "gate")
    case = next(case for case in cases if case.name == gate.name)
    assert gate.runs == 4 and gate.compute.p50 == cost(case) and gate.compute.p99 == 1.5 * cost(case)
    assert gate.enqueue == 0.05  # from the console, not 0.04 as in the file
    top, other = gate.layers
    assert (top.name, top.type, top.nodes, top.selects, top.share) == ('say "top"', "kgen", ("/top/TopK",), True, 0.8)
    assert other.name == "mul [/red]" and not other.selects


def test_failed_cases_are_listed_and_the_rest_is_used(bundle: Bundle, tmp_path: Path) -> None:
    cases = made.usual_cases(bundle.manifest)
    results = made.folder(bundle.manifest, tmp_path / "results", cases, cost)
    (pruned,) = [name for name in bundle.manifest.schedules if name.startswith("btp")]
    gates = [case for case in cases if case.graph == bundle.manifest.schedules[pruned].gates[0].graph]
    decode = next(
        case
        for case in cases
        if case.kind == "decode" and case.graph.startswith("segment") and "full" in case.schedules
    )
    (results / gates[0].log).write_text(made.log(result="FAILED", error="Error[1]: Cuda failure"))
    (results / decode.times).unlink()
    (results / decode.log).unlink()
    (results / f"{decode.graph}.build.log").write_text(made.log(result="FAILED", error="Error[2]: OutOfMemory"))
    found = read_folder(bundle, results, list(bundle.manifest.schedules))
    reasons = {failure.case: failure.reason for failure in found.failures}
    assert set(reasons) == {gates[0].name, decode.name}
    assert "Error[1]: Cuda failure" in reasons[gates[0].name] and "Error[2]: OutOfMemory" in reasons[decode.name]
    chains = {chain.schedule: chain for chain in found.chains}
    assert pruned not in chains and chains["full"].decode is None and len(chains) >= 2
    assert any(chain.decode is not None for chain in found.chains) or len(decode.schedules) > 1


@pytest.mark.parametrize("damage", ["", "[", "{}", '[\n  { "count" : 3 }\n]'])
def test_a_damaged_file_fails_its_case_alone(bundle: Bundle, tmp_path: Path, damage: str) -> None:
    cases = made.usual_cases(bundle.manifest)
    results = made.folder(bundle.manifest, tmp_path / "results", cases, cost)
    (results / cases[0].times).write_text(damage)
    found = read_folder(bundle, results, ["full"])
    (failure,) = found.failures
    assert failure.case == cases[0].name and cases[0].times in failure.reason and len(found.graphs) > 3


def test_times_without_logs_are_enough(bundle: Bundle, tmp_path: Path) -> None:
    results = made.folder(bundle.manifest, tmp_path / "results", made.usual_cases(bundle.manifest), cost)
    for path in results.glob("*.log"):
        path.unlink()
    found = read_folder(bundle, results, ["full"])
    assert not found.failures and found.machine == {} and {graph.enqueue for graph in found.graphs} == {0.04}
    assert not any(graph.bound for graph in found.graphs)


def test_graphs_that_wait_for_the_host(bundle: Bundle, tmp_path: Path) -> None:
    """trtexec's warning decides; without console output, its rule: enqueue above 80 % of the compute time."""
    cases = made.usual_cases(bundle.manifest)
    fast = {cases[0].name: 0.045, cases[1].name: 0.055}  # the file has an enqueue time of 0.04
    results = made.folder(bundle.manifest, tmp_path / "results", cases, lambda case: fast.get(case.name, 1.0))

    def bound() -> list[str]:
        return [
            graph.name for graph in read_folder(bundle, results, list(bundle.manifest.schedules)).graphs if graph.bound
        ]

    assert bound() == []
    warning = "* Throughput may be bound by Enqueue Time rather than GPU Compute and the GPU may be under-utilized."
    (results / cases[2].log).write_text(made.log(warning=warning))
    assert bound() == [cases[2].name]
    for path in results.glob("*.log"):
        path.unlink()
    assert bound() == [cases[0].name]


def test_only_the_given_schedules(bundle: Bundle, tmp_path: Path) -> None:
    results = made.folder(bundle.manifest, tmp_path / "results", made.usual_cases(bundle.manifest), cost)
    found = read_folder(bundle, results, ["full"])
    assert [chain.schedule for chain in found.chains] == ["full"]
    assert all(set(graph.shares) == {"full"} for graph in found.graphs)


def test_schedules_that_were_not_timed(bundle: Bundle, tmp_path: Path) -> None:
    cases = [
        replace(case, schedules=tuple(name for name in case.schedules if name in ("full", "vtw")))
        for case in made.usual_cases(bundle.manifest)
    ]
    results = made.folder(bundle.manifest, tmp_path / "results", [case for case in cases if case.schedules], cost)
    assert timed_schedules(bundle, results) == ["full", "vtw"]
    assert [chain.schedule for chain in read_folder(bundle, results, ["full", "vtw"]).chains] == ["full", "vtw"]
    with pytest.raises(BadMeasurement, match="has no case of the schedule 'btp'; leave it out of --schedules"):
        read_folder(bundle, results, ["full", "btp"])


def test_invalid_folders(bundle: Bundle, tmp_path: Path) -> None:
    cases = made.usual_cases(bundle.manifest)
    with pytest.raises(BadMeasurement, match="has no cases.json; give the folder in which the script"):
        read_folder(bundle, tmp_path, ["full"])
    (tmp_path / "cases.json").write_text("[]")
    with pytest.raises(BadMeasurement, match="cases.json"):
        read_folder(bundle, tmp_path, ["full"])
    newer = replace(bundle.manifest, files=bundle.manifest.files | {"onnx/embed.onnx": "another"})
    with pytest.raises(BadMeasurement, match=r"cases.json was written for another export; give its bundle"):
        read_folder(bundle, made.folder(newer, tmp_path / "newer", cases, cost), ["full"])
    other = Case("alien", "alien", "prefill", 0, {}, ("full",))
    with pytest.raises(BadMeasurement, match="has the graph 'alien' of full, which this bundle lacks"):
        read_folder(bundle, made.folder(bundle.manifest, tmp_path / "other", [other], cost), ["full"])
    empty = made.folder(bundle.manifest, tmp_path / "empty", cases, cost)
    for path in empty.glob("*.times.json"):
        path.unlink()
    with pytest.raises(
        BadMeasurement, match=r"has no result of any of its \d+ cases; the first error is: .* does not exist"
    ):
        read_folder(bundle, empty, list(bundle.manifest.schedules))
