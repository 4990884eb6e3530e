"""Dashboards and alerts ask for metrics that exist, by labels that these have."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from tests.k8s.kube import Doc, at, of_kind
from tests.k8s.queries import dashboards, groups, unknown

from trimtab.run.gauges import TOLD

PROMTOOL = shutil.which("promtool")


def wrongs(board: dict) -> list[str]:
    """What Grafana would stumble over, or show nothing for."""
    found = [
        key for key in ("uid", "title", "schemaVersion", "time", "refresh", "templating", "panels") if key not in board
    ]
    ids = [panel["id"] for panel in board["panels"]]
    found += ["two panels with one id"] * (len(set(ids)) < len(ids))
    known = {one["name"] for one in board["templating"]["list"]} | {"__all"}
    places = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        found += [f"{panel['title']}: lies over another panel"] * bool(cells & places)
        found += [f"{panel['title']}: beyond the page"] * (place["x"] + place["w"] > 24)
        places |= cells
        found += [f"{panel['title']}: no description"] * (not panel["description"])
        found += [f"{panel['title']}: asks nothing"] * (not panel["targets"])
        for target in panel["targets"]:
            asked = set(re.findall(r"\$\{?(\w+)", target["expr"] + target["datasource"]["uid"]))
            found += [f"{panel['title']}: no variable {name}" for name in sorted(asked - known)]
            found += [f"{panel['title']}: no metric {name}" for name in sorted(unknown(target["expr"]))]
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            kept = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", target["expr"]))))
            found += [f"{panel['title']}: label {name} is summed away" for name in sorted(shown - kept)]
    return found


def test_dashboards_are_sound() -> None:
    assert {name: wrongs(board) for name, board in dashboards().items()} == {
        "training": [],
        "tuning": [],
        "serving": [],
    }
    assert len({board["uid"] for board in dashboards().values()}) == 3
    for board in dashboards().values():
        queries = [one["query"] for one in board["templating"]["list"] if one["type"] == "query"]
        assert not set().union(*map(unknown, queries))


def test_damage_to_a_dashboard_is_found() -> None:
    for old, new, said in (
        ("trimtab_slots_in_use", "trimtab_slots_taken", "no metric trimtab_slots_taken"),
        ("$endpoint", "$endpiont", "no variable endpiont"),
        ("sum by (trimtab_serves, status)", "sum by (trimtab_serves)", "label status is summed away"),
    ):
        board = yaml.safe_load(yaml.safe_dump(dashboards()["serving"]).replace(old, new))
        assert said in str(wrongs(board))
    board = dashboards()["serving"]
    board["panels"][1]["gridPos"] = board["panels"][0]["gridPos"]
    assert "lies over another panel" in str(wrongs(board))


def test_dashboards_are_config_maps_that_grafana_takes(local: list[Doc]) -> None:
    found = [doc for doc in of_kind(local, "ConfigMap") if doc["metadata"]["name"].startswith("dashboard-")]
    assert {at(doc, "metadata", "labels", "grafana_dashboard") for doc in found} == {"1"}
    assert {key for doc in found for key in doc["data"]} == {"serving.json", "training.json", "tuning.json"}


def test_alerts_ask_for_what_exists_and_say_what_to_do() -> None:
    rules = [rule for group in groups() for rule in group["rules"]]
    assert {rule["alert"]: unknown(rule["expr"]) for rule in rules if unknown(rule["expr"])} == {}
    assert all(rule["labels"]["severity"] in ("warning", "critical") for rule in rules)
    assert all(rule["annotations"].keys() == {"summary", "description"} for rule in rules)
    assert len({rule["alert"] for rule in rules}) == len(rules)
    assert unknown("rate(trimtab_request_total[5m]) + ray_node_mem_usd") == {
        "trimtab_request_total",
        "ray_node_mem_usd",
    }


def test_what_runs_tell_is_shown() -> None:
    shown = " ".join(
        target["expr"] for board in dashboards().values() for panel in board["panels"] for target in panel["targets"]
    )
    assert [name for name in TOLD if f"ray_{name}" not in shown] == []


@pytest.mark.skipif(PROMTOOL is None, reason="needs promtool (Debian: prometheus)")
def test_prometheus_reads_the_rules(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": groups()}))
    assert subprocess.run([PROMTOOL, "check", "rules", path], check=False).returncode == 0
    exprs = [
        target["expr"] for board in dashboards().values() for panel in board["panels"] for target in panel["targets"]
    ]
    queries = [{"record": f"shown:{i}", "expr": expr} for i, expr in enumerate(exprs)]
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": queries}]}))
    assert subprocess.run([PROMTOOL, "check", "rules", path], check=False).returncode == 0
    path.write_text(yaml.safe_dump({"groups": groups()}).replace("sum by (", "sum buy ("))
    assert subprocess.run([PROMTOOL, "check", "rules", path], check=False).returncode != 0
